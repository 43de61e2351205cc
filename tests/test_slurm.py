"""`sbatch slurm/medssr_ssl.sh` on a real Slurm of two hosts: the whole method with the real stack and a tiny model."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from slurm_cluster import SlurmCluster, why_not

from medssr_dist.jsonl import read_json, read_jsonl
from medssr_dist.launch.timings import FIRST_ANSWER, FIRST_STEP

pytestmark = [pytest.mark.slurm, pytest.mark.skipif(bool(why_not()), reason=str(why_not()))]
_STEPS = ("synthesize", "vote", "stage1", "stage2", "evaluate")


def _lines(file: Path) -> int:
    return file.read_text(encoding="utf-8").count("\n") if file.exists() else 0


# Step -> when it has begun to leave something and is not finished.
_MOMENTS: dict[str, Callable[[Path], bool]] = {
    "synthesize": lambda run: _lines(run / "synthesis" / "journal.jsonl") >= 1,
    "vote": lambda run: _lines(run / "voting" / "votes.jsonl") >= 1,
    "stage1": lambda run: _lines(run / "training" / "stage1" / "metrics.jsonl") >= 1,
    "stage2": lambda run: _lines(run / "training" / "stage2" / "metrics.jsonl") >= 1,
    "evaluate": lambda run: _lines(run / "evaluation" / "answers.jsonl") >= 1,
}


@pytest.fixture(scope="module")
def cluster(repo, tmp_path_factory) -> Iterator[SlurmCluster]:
    kept = [repo, Path(sys.prefix), tmp_path_factory.getbasetemp(), *_cache()]
    with SlurmCluster(nodes=2, kept=kept) as cluster:
        yield cluster


def _cache() -> list[Path]:
    return [Path(os.environ["MEDSSR_CACHE"])] if "MEDSSR_CACHE" in os.environ else []


@pytest.fixture
def slurm_config(tiny_config) -> Path:
    """The tiny config with one rank a node, each step on all slots."""
    tree = yaml.safe_load(tiny_config.read_text())
    tree["training"]["ranks_per_node"] = 1
    tree["runtime"] = {"mode": "sequential"}
    tiny_config.write_text(yaml.safe_dump(tree))
    return tiny_config


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> dict[int, Path]:
    """Nodes -> run directory, of the runs that have finished."""
    return {}


def _submit(cluster: SlurmCluster, repo: Path, config: Path, run: Path, *options: str, script="medssr_ssl.sh") -> int:
    env = {"CONFIG": str(config), "RUN_DIR": str(run), "MEDSSR_HOME": str(repo), "MEDSSR_PYTHON": sys.executable}
    return cluster.sbatch(f"--output={run}.out", *options, repo / "slurm" / script, **env)


def _reason(run: Path, attempt: int) -> str:
    return (run / "attempts" / f"{attempt:04}" / "launch.log").read_text().splitlines()[-1]


def _counts(run: Path) -> dict:
    """What a run holds, by number: the same for an undisturbed run and for one that was stopped in each step."""
    votes = [(row["question_id"], row["seed"]) for row in read_jsonl(run / "voting" / "votes.jsonl")]
    answers = [row for row in read_jsonl(run / "evaluation" / "answers.jsonl") if not row["second_pass"]]
    steps = [(row["step"], row["prompts"]) for stage in (1, 2) for row in _metrics(run, stage)]
    assert len(set(votes)) == len(votes)
    return {
        "questions": _lines(run / "synthesis" / "questions.jsonl"),
        "votes a question": Counter(Counter(question for question, _ in votes).values()),
        "labels": _lines(run / "voting" / "labeled.jsonl"),
        "steps": steps,
        "answers": len({(row["policy"], row["question_id"], row["generation"]) for row in answers}),
        "finished": [step for step in _STEPS if read_json(run / "manifest.json")["steps"][step]["finished"]],
    }


def _metrics(run: Path, stage: int) -> list[dict]:
    return list(read_jsonl(run / "training" / f"stage{stage}" / "metrics.jsonl"))


_EXPECTED = {
    "questions": 8,
    "votes a question": Counter({5: 8}),
    "labels": 8,
    "steps": [(1, 2), (2, 4)] * 2,
    "answers": 3 * 4 * 2,
    "finished": list(_STEPS),
}


def test_one_node_with_a_requeue(cluster, repo, slurm_config, finished, tmp_path):
    """USR1, as before the time limit, in the vote: the job saves, requeues itself and completes."""
    run = tmp_path / "one"
    job = _submit(cluster, repo, slurm_config, run, "--nodes=1")
    cluster.until(lambda: _MOMENTS["vote"](run), "the vote has begun", 900)
    cluster.slurm("scancel", "--batch", "--signal=USR1", job)
    assert cluster.wait(job, 1800)["JobState"] == "COMPLETED", _reason(run, 2)
    assert "stopped by SIGUSR1" in _reason(run, 1)
    assert _reason(run, 2).endswith("ended with 0: done")
    assert _counts(run) == _EXPECTED
    finished[1] = run


def test_two_nodes_with_the_same_script(cluster, repo, slurm_config, finished, tmp_path):
    run = tmp_path / "two"
    job = _submit(cluster, repo, slurm_config, run, "--nodes=2")
    places = {}
    while cluster.state(job) in ("PENDING", "RUNNING", "COMPLETING"):
        for class_name in ("PolicyRank", "RolloutEngine"):
            at = {name for name, host in cluster.nodes.items() if host.processes(f"ray::{class_name}")}
            places[class_name] = max(at, places.get(class_name, set()), key=len)
    assert cluster.job(job)["JobState"] == "COMPLETED", _reason(run, 1)
    assert places == dict.fromkeys(places, {"n1", "n2"})
    assert _counts(run) == _EXPECTED
    timings = read_json(run / "attempts" / "0001" / "timings.json")
    assert {"preflight passed", "Ray on every node", FIRST_ANSWER, FIRST_STEP} <= set(timings)
    assert "first training step" in Path(f"{run}.out").read_text()
    if 1 in finished:
        assert _questions(run) == _questions(finished[1])


def _questions(run: Path) -> list[str]:
    return sorted(row["id"] for row in read_jsonl(run / "synthesis" / "questions.jsonl"))


def test_a_failing_preflight_stops_before_anything_starts(cluster, repo, slurm_config, tmp_path):
    run = tmp_path / "refused"
    job = _submit(cluster, repo, slurm_config, run, "--nodes=2", "policy.model=/no/such/model")
    assert cluster.wait(job)["JobState"] == "FAILED"
    end = read_json(run / "attempts" / "0001" / "exit.json")
    assert end["code"] == 2
    assert not list((run / "attempts" / "0001").glob("*.ray.log"))
    assert not (run / "attempts" / "0002").exists()


def test_a_chain_of_steps_stops_where_one_fails(cluster, repo, slurm_config, tmp_path):
    """Bad input in step 1: Slurm starts none of the others."""
    env = {"CONFIG": str(slurm_config), "RUN_DIR": str(tmp_path / "chain"), "MEDSSR_PYTHON": sys.executable}
    env |= {"MEDSSR_HOME": str(repo), "NODES": "2", "SBATCH_ALL": f"--output={tmp_path}/%x.out"}
    text = cluster.slurm(repo / "slurm" / "submit_all.sh", "synthesis.seeds=[/no/such/file.jsonl]", env=env)
    jobs = [int(line.split()[-1]) for line in text.splitlines()]
    assert [line.split(":")[0] for line in text.splitlines()] == ["synthesize", "vote", "train", "evaluate"]
    assert cluster.wait(jobs[0])["JobState"] == "FAILED"
    assert [cluster.wait(job)["JobState"] for job in jobs[1:]] == ["CANCELLED"] * 3
    assert not (tmp_path / "chain" / "voting").exists()


@pytest.mark.slow
def test_a_chain_of_steps(cluster, repo, slurm_config, tmp_path):
    env = {"CONFIG": str(slurm_config), "RUN_DIR": str(tmp_path / "chain"), "MEDSSR_PYTHON": sys.executable}
    env |= {"MEDSSR_HOME": str(repo), "NODES": "2", "SBATCH_ALL": f"--output={tmp_path}/%x.out"}
    text = cluster.slurm(repo / "slurm" / "submit_all.sh", env=env)
    for line in text.splitlines():
        assert cluster.wait(int(line.split()[-1]), 1800)["JobState"] == "COMPLETED", line
    assert _counts(tmp_path / "chain") == _EXPECTED


@pytest.mark.slow
@pytest.mark.parametrize("how", ["USR1", "requeue"])
def test_stopped_in_each_step(cluster, repo, slurm_config, tmp_path, how):
    """The finished run equals an undisturbed one in counts."""
    run = tmp_path / "run"
    job = _submit(cluster, repo, slurm_config, run, "--nodes=2")
    command = {"USR1": ("scancel", "--batch", "--signal=USR1"), "requeue": ("scontrol", "requeue")}[how]
    for attempt, moment in enumerate(_MOMENTS.values(), start=1):
        cluster.until(lambda moment=moment: moment(run), "the step has begun", 900)
        cluster.slurm(*command, job)
        ended = run / "attempts" / f"{attempt:04}" / "exit.json"
        cluster.until(ended.exists, f"attempt {attempt} has ended", 300)
    assert cluster.wait(job, 1800)["JobState"] == "COMPLETED"
    assert _counts(run) == _EXPECTED
    if how == "USR1":
        drivers = "".join(file.read_text() for file in (run / "attempts").glob("*/*.driver.log"))
        assert "stage1 stopped after step" in drivers and "asked to" in drivers


@pytest.mark.slow
def test_the_same_as_a_local_run(cluster, medssr, repo, slurm_config, tmp_path):
    """Questions and their votes do not depend on where the run was."""
    medssr("run", "--config", slurm_config, "--run-dir", tmp_path / "local")
    job = _submit(cluster, repo, slurm_config, tmp_path / "slurm", "--nodes=1")
    assert cluster.wait(job, 1800)["JobState"] == "COMPLETED"
    assert _questions(tmp_path / "slurm") == _questions(tmp_path / "local")
    assert _votes(tmp_path / "slurm") == _votes(tmp_path / "local")


def _votes(run: Path) -> set[tuple]:
    return {(row["question_id"], row["seed"], row["answer"]) for row in read_jsonl(run / "voting" / "votes.jsonl")}
