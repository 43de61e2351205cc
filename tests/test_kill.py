"""`kill -9` in the middle of every step: the same command completes the run, and nothing is lost or done twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from moments import MOMENTS
from stored_votes import stored_labels, stored_votes

from medssr_dist.data.jsonl import read_json, read_jsonl
from medssr_dist.run.paths import STAGES, RunPaths


def _start_and_kill(command: list[str], moment: Callable[[], bool]) -> None:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 900
    while not moment():
        assert process.poll() is None, f"ended with {process.returncode} before it could be killed"
        assert time.monotonic() < deadline, "the moment to kill it did not come"
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.slow
def test_run_killed_in_every_step_completes(medssr, tiny_config, tmp_path):
    run = RunPaths(tmp_path / "run")
    arguments = ["run", "--config", str(tiny_config), "--run-dir", str(run.root)]
    arguments += [f"training.{stage}.drop_zero_variance=false" for stage in STAGES]  # 2 prompts per step
    for moment in MOMENTS.values():
        _start_and_kill([sys.executable, "-m", "medssr_dist.cli", *arguments], lambda moment=moment: moment(run.root))
    medssr(*arguments)

    requested = [row["provenance"]["index"] for row in read_jsonl(run.synthesis.journal)]
    assert len(requested) >= 8 and sorted(requested) == list(range(len(requested)))
    votes, labels = stored_votes(run.voting.folder), stored_labels(run.voting.folder)
    questions = {row["id"] for row in read_jsonl(run.synthesis.questions)}
    assert len(questions) == 8
    assert len({vote.key for vote in votes}) == len(votes) == sum(label.taken for label in labels)
    assert sorted(label.question.id for label in labels) == sorted(questions)
    for stage in map(run.stage, STAGES):
        rows = list(read_jsonl(stage.metrics))
        assert [(row["step"], row["prompts"]) for row in rows] == [(1, 2), (2, 4)]
    answers = list(read_jsonl(run.evaluation.answers))
    keys = [(row["policy"], row["question_id"], row["generation"]) for row in answers]
    assert len(keys) == len(set(keys)) == 3 * 4 * 2
    assert len(read_json(run.manifest_file)["attempts"]) == len(MOMENTS) + 1
