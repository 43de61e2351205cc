"""Moments to stop or kill a run at: a step has written its first results and is not finished."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from medssr_dist.run.paths import RunPaths, vote_segment


def count_lines(file: Path) -> int:
    """Return the number of lines of a file, or 0 if it does not exist."""
    return file.read_text(encoding="utf-8").count("\n") if file.exists() else 0


MOMENTS: dict[str, Callable[[Path], bool]] = {
    "synthesize": lambda run: count_lines(RunPaths(run).synthesis.journal) >= 1,
    "vote": lambda run: count_lines(vote_segment(RunPaths(run).voting.votes, 0)) >= 1,
    "stage1": lambda run: count_lines(RunPaths(run).stage("stage1").metrics) >= 1,
    "stage2": lambda run: count_lines(RunPaths(run).stage("stage2").metrics) >= 1,
    "evaluate": lambda run: count_lines(RunPaths(run).evaluation.answers) >= 1,
}
