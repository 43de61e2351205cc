"""When a step has begun to leave something on disk and is not finished: the moments to stop or kill a run at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def lines(file: Path) -> int:
    return file.read_text(encoding="utf-8").count("\n") if file.exists() else 0


MOMENTS: dict[str, Callable[[Path], bool]] = {
    "synthesize": lambda run: lines(run / "synthesis" / "journal.jsonl") >= 1,
    "vote": lambda run: lines(run / "voting" / "votes" / "00000.jsonl") >= 1,
    "stage1": lambda run: lines(run / "training" / "stage1" / "metrics.jsonl") >= 1,
    "stage2": lambda run: lines(run / "training" / "stage2" / "metrics.jsonl") >= 1,
    "evaluate": lambda run: lines(run / "evaluation" / "answers.jsonl") >= 1,
}
