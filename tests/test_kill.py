"""`kill -9` in the middle of each step: the same command completes, nothing is asked or trained twice or lost."""

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


def _start_and_kill(command: list[str], moment: Callable[[], bool]) -> None:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 900
    while not moment():
        assert process.poll() is None, f"ended with {process.returncode} before it could be killed"
        assert time.monotonic() < deadline, "the moment to kill did not come"
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.slow
def test_killed_in_every_step(medssr, tiny_config, tmp_path):
    run = tmp_path / "run"
    arguments = ["run", "--config", str(tiny_config), "--run-dir", str(run)]
    arguments += [f"training.{stage}.drop_zero_variance=false" for stage in ("stage1", "stage2")]  # 2 prompts a step
    for moment in MOMENTS.values():
        _start_and_kill([sys.executable, "-m", "medssr_dist.cli", *arguments], lambda moment=moment: moment(run))
    medssr(*arguments)

    asked = [row["provenance"]["index"] for row in read_jsonl(run / "synthesis" / "journal.jsonl")]
    assert len(asked) >= 8 and sorted(asked) == list(range(len(asked)))
    votes, labels = stored_votes(run / "voting"), stored_labels(run / "voting")
    questions = {row["id"] for row in read_jsonl(run / "synthesis" / "questions.jsonl")}
    assert len(questions) == 8
    assert len({vote.key for vote in votes}) == len(votes) == sum(label.taken for label in labels)
    assert sorted(label.question.id for label in labels) == sorted(questions)
    for stage in ("stage1", "stage2"):
        rows = list(read_jsonl(run / "training" / stage / "metrics.jsonl"))
        assert [(row["step"], row["prompts"]) for row in rows] == [(1, 2), (2, 4)]
    answers = list(read_jsonl(run / "evaluation" / "answers.jsonl"))
    first_pass = [(row["policy"], row["question_id"], row["generation"]) for row in answers if not row["second_pass"]]
    assert len(first_pass) == len(set(first_pass)) == 3 * 4 * 2
    assert len(read_json(run / "manifest.json")["attempts"]) == len(MOMENTS) + 1
