"""`voting.kept` on the real stack: the offline teacher, vLLM on Ray, and the tiny policy; in both modes, and killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest
from stored_votes import stored_labels, stored_votes

from medssr_dist.data.jsonl import read_json, read_jsonl
from medssr_dist.run.paths import RunPaths

KEPT = 6
SETTINGS = [
    f"voting.kept={KEPT}",
    "voting.threshold=0.4",
    "voting.confidence=requested",
    "voting.question_buffer=4",
    "synthesis.accepted=6",
    "synthesis.candidates=120",
    "training.stage2.enabled=false",
    "evaluation.policies=[base]",
    "evaluation.benchmarks.0.limit=1",
    "evaluation.generations=1",
]
_STEPS = """
import sys
from pathlib import Path
from medssr_dist.config.load import load_config
from medssr_dist.pipeline import run_steps
run_steps(load_config(Path(sys.argv[1]), sys.argv[3:]), Path(sys.argv[2]), ("synthesize", "vote"))
"""


def command(config, run, *settings):
    """Steps 1 and 2 alone, one after the other, as `medssr run` does them before it trains."""
    return [sys.executable, "-c", _STEPS, str(config), str(run.root), *SETTINGS, "runtime.mode=sequential", *settings]


def check(run: RunPaths) -> list[str]:
    """Check that exactly KEPT labels are kept, the last label among them; return the ids of the kept questions."""
    questions, labels = list(read_jsonl(run.synthesis.questions)), stored_labels(run.voting.folder)
    assert [label.question.id for label in labels] == [row["id"] for row in questions[: len(labels)]]
    assert sum(label.kept for label in labels) == KEPT and labels[-1].kept
    votes = stored_votes(run.voting.folder)
    assert len({vote.key for vote in votes}) == len(votes)
    indices = [row["provenance"]["index"] for row in read_jsonl(run.synthesis.journal)]
    assert len(indices) == len(set(indices))
    return [label.question.id for label in labels if label.kept]


@pytest.fixture(scope="module")
def sequential(tmp_path_factory) -> RunPaths:
    return RunPaths(tmp_path_factory.mktemp("sequential") / "run")


@pytest.mark.slow
def test_rounds_until_enough_labels_are_kept(medssr, tiny_config, sequential):
    done = subprocess.run(command(tiny_config, sequential), capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    check(sequential)
    assert f"; {KEPT} wanted" in done.stdout
    assert f"{KEPT} of {KEPT} labels kept" in medssr("status", sequential.root).stdout
    assert len(list(read_jsonl(sequential.synthesis.questions))) > 6  # one round was not enough


@pytest.mark.slow
def test_a_killed_run_keeps_the_same_labels(tiny_config, sequential, tmp_path):
    run = RunPaths(tmp_path / "killed")
    for moment in (run.voting.labels, run.voting.summary):  # in the first vote; after it, in the second round
        child = subprocess.Popen(command(tiny_config, run), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        while child.poll() is None and not (moment.exists() and moment.stat().st_size):
            time.sleep(0.05)
        assert child.poll() is None, "the run ended before it was killed"
        child.send_signal(signal.SIGKILL)
        child.wait()
        time.sleep(3)  # Ray's processes end with their driver
    done = subprocess.run(command(tiny_config, run), capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    assert check(run) == check(sequential)


@pytest.mark.slow
def test_a_stream_run_keeps_and_trains_on_the_same_labels(medssr, tiny_config, sequential, tmp_path):
    run = RunPaths(tmp_path / "stream")
    medssr("run", "--config", tiny_config, "--run-dir", run.root, *SETTINGS, "runtime.mode=stream")
    assert check(run) == check(sequential)
    assert read_json(run.synthesis.summary)["stopped_by"] == "count"
    assert len(list(read_jsonl(run.stage("stage1").metrics))) == 2


@pytest.mark.slow
def test_a_cap_ends_the_rounds_and_is_named(tiny_config, tmp_path):
    run, strict = RunPaths(tmp_path / "capped"), "voting.threshold=0.6"  # not all 6 labels reach it
    capped = subprocess.run(
        command(tiny_config, run, strict, "synthesis.candidates=6"), capture_output=True, text=True, timeout=900
    )
    assert capped.returncode == 0, capped.stderr[-3000:]
    assert f"of voting.kept = {KEPT} labels are kept: synthesis.candidates = 6 requests were used up" in capped.stderr
    before = run.voting.labels.read_bytes()
    more = subprocess.run(command(tiny_config, run, strict), capture_output=True, text=True, timeout=900)
    assert more.returncode == 0, more.stderr[-3000:]
    check(run)
    assert run.voting.labels.read_bytes().startswith(before)


def test_kept_labels_need_the_vote_in_the_same_command(medssr, tiny_config, tmp_path):
    done = medssr("synthesize", "--config", tiny_config, "--run-dir", tmp_path / "run", "voting.kept=6", check=False)
    assert done.returncode == 2 and "voting.kept = 6 needs the vote" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and not (tmp_path / "run").exists()
