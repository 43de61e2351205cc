"""`sbatch slurm/medssr_ssl.sh` on a real Slurm of two hosts: the whole method with the real stack and a tiny model."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from moments import MOMENTS, lines
from slurm_cluster import SlurmCluster, why_not
from stored_votes import stored_labels, stored_votes

from medssr_dist.jsonl import read_json, read_jsonl
from medssr_dist.launch.attempts import FIRST_ANSWER, FIRST_STEP

pytestmark = [pytest.mark.slurm, pytest.mark.skipif(bool(why_not()), reason=str(why_not()))]
_STEPS = ("synthesize", "vote", "stage1", "stage2", "evaluate")


@pytest.fixture(scope="module")
def cluster(repo, tmp_path_factory) -> Iterator[SlurmCluster]:
    kept = [repo, Path(sys.prefix), tmp_path_factory.getbasetemp(), *_cache()]
    with SlurmCluster(nodes=2, kept=kept) as cluster:
        yield cluster


def _cache() -> list[Path]:
    return [Path(os.environ["MEDSSR_CACHE"])] if "MEDSSR_CACHE" in os.environ else []


@pytest.fixture
def slurm_config(tiny_config) -> Path:
    """The tiny config with one rank a node, each step on all slots, and as many votes whatever the timing."""
    tree = yaml.safe_load(tiny_config.read_text())
    tree["voting"]["adaptive"] = "never"
    tree["training"]["ranks_per_node"] = 1
    tree["runtime"] = {"mode": "sequential"}
    tiny_config.write_text(yaml.safe_dump(tree))
    return tiny_config


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> dict[int, Path]:
    """Nodes -> run directory, of the runs that have finished."""
    return {}


def _submit(
    cluster: SlurmCluster, repo: Path, config: Path, run: Path, *overrides: str, nodes: int = 1, script="medssr_ssl.sh"
) -> int:
    env = {"CONFIG": str(config), "RUN_DIR": str(run), "MEDSSR_HOME": str(repo), "MEDSSR_PYTHON": sys.executable}
    return cluster.sbatch(f"--output={run}.out", f"--nodes={nodes}", repo / "slurm" / script, *overrides, **env)


def _reason(run: Path, attempt: int) -> str:
    return (run / "attempts" / f"{attempt:04}" / "launch.log").read_text().splitlines()[-1]


def _counts(run: Path) -> dict:
    """What a run holds, by number: the same for an undisturbed run and for one that was stopped in each step."""
    votes = [(vote.question_id, vote.seed) for vote in stored_votes(run / "voting")]
    answers = [row for row in read_jsonl(run / "evaluation" / "answers.jsonl") if not row["second_pass"]]
    steps = [(row["step"], row["prompts"]) for stage in (1, 2) for row in _metrics(run, stage)]
    assert len(set(votes)) == len(votes)
    return {
        "questions": lines(run / "synthesis" / "questions.jsonl"),
        "votes a question": Counter(Counter(question for question, _ in votes).values()),
        "labels": lines(run / "voting" / "labeled.jsonl"),
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
    job = _submit(cluster, repo, slurm_config, run)
    cluster.until(lambda: MOMENTS["vote"](run), "the vote has begun", 900)
    cluster.slurm("scancel", "--batch", "--signal=USR1", job)
    assert cluster.wait(job, 1800)["JobState"] == "COMPLETED", _reason(run, 2)
    assert "stopped by SIGUSR1" in _reason(run, 1)
    assert _reason(run, 2).endswith("ended with 0: done")
    assert _counts(run) == _EXPECTED
    finished[1] = run


def test_two_nodes_with_the_same_script(cluster, repo, slurm_config, finished, tmp_path):
    run = tmp_path / "two"
    job = _submit(cluster, repo, slurm_config, run, nodes=2)
    places = {name: set() for name in ("VoteEngine", "KernelPolicyRank", "RolloutEngine")}
    while cluster.state(job) in ("PENDING", "RUNNING", "COMPLETING"):
        for class_name in places:
            at = {name for name, host in cluster.nodes.items() if host.processes(f"ray::{class_name}")}
            places[class_name] = max(at, places[class_name], key=len)
        time.sleep(1)
    assert cluster.job(job)["JobState"] == "COMPLETED", _reason(run, 1)
    assert places == dict.fromkeys(places, {"n1", "n2"})
    assert _counts(run) == _EXPECTED
    timings = read_json(run / "attempts" / "0001" / "timings.json")
    assert {"preflight passed", "Ray on every node", FIRST_ANSWER, FIRST_STEP} <= set(timings)
    assert FIRST_STEP in Path(f"{run}.out").read_text()
    if 1 in finished:
        assert _questions(run) == _questions(finished[1])
        assert _votes(run) == _votes(finished[1])


def _questions(run: Path) -> list[str]:
    return sorted(row["id"] for row in read_jsonl(run / "synthesis" / "questions.jsonl"))


def test_a_failing_preflight_stops_before_anything_starts(cluster, repo, slurm_config, tmp_path):
    run = tmp_path / "refused"
    job = _submit(cluster, repo, slurm_config, run, "policy.model=/no/such/model", nodes=2)
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
    job = _submit(cluster, repo, slurm_config, run, nodes=2)
    command = {"USR1": ("scancel", "--batch", "--signal=USR1"), "requeue": ("scontrol", "requeue")}[how]
    for attempt, moment in enumerate(MOMENTS.values(), start=1):
        cluster.until(lambda moment=moment: moment(run), "the step has begun", 900)
        cluster.slurm(*command, job)
        ended = run / "attempts" / f"{attempt:04}" / "exit.json"
        cluster.until(ended.exists, f"attempt {attempt} has ended", 300)
    assert cluster.wait(job, 1800)["JobState"] == "COMPLETED"
    assert _counts(run) == _EXPECTED


@pytest.mark.slow
def test_the_same_as_a_local_run(cluster, medssr, repo, slurm_config, tmp_path):
    """Questions and their votes do not depend on where the run was."""
    medssr("run", "--config", slurm_config, "--run-dir", tmp_path / "local")
    job = _submit(cluster, repo, slurm_config, tmp_path / "slurm")
    assert cluster.wait(job, 1800)["JobState"] == "COMPLETED"
    assert _questions(tmp_path / "slurm") == _questions(tmp_path / "local")
    assert _votes(tmp_path / "slurm") == _votes(tmp_path / "local")
    assert _labels(tmp_path / "slurm") == _labels(tmp_path / "local")


def _votes(run: Path) -> set[tuple]:
    return {(vote.question_id, vote.seed, vote.answer) for vote in stored_votes(run / "voting")}


def _labels(run: Path) -> list[tuple]:
    return [(label.question.id, label.outcome, label.answer) for label in stored_labels(run / "voting")]
