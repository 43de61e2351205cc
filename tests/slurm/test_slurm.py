"""`sbatch slurm/medssr_ssl.sh` on a real Slurm of two nodes: the whole method with the real stack and a tiny model."""

from __future__ import annotations

import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml
from moments import MOMENTS, count_lines
from slurm_cluster import SlurmCluster, why_not
from stored_votes import stored_labels, stored_votes

from medssr_dist.data.jsonl import read_json, read_jsonl
from medssr_dist.launch.attempts import FIRST_ANSWER, FIRST_ENGINE, FIRST_STEP, FIRST_TOKEN
from medssr_dist.run.paths import RECORDED_STEPS

pytestmark = [pytest.mark.slurm, pytest.mark.skipif(bool(why_not()), reason=str(why_not()))]
_SLOW_VOTE = ("voting.samples=40", "voting.in_flight=1")  # slow enough to be stopped in
_WITHOUT_STAGE_2 = ("training.stage2.enabled=false", "evaluation.policies=[stage1]")  # for the minute it takes


@pytest.fixture
def slurm_config(tiny_config) -> Path:
    """The tiny config with one rank a node, each step on all slots, and as many votes whatever the timing."""
    tree = yaml.safe_load(tiny_config.read_text())
    tree["voting"]["adaptive"] = "never"
    tree["training"]["ranks_per_node"] = 1
    for stage in ("stage1", "stage2"):
        tree["training"][stage] |= {"drop_zero_variance": False}  # as many prompts a step, whatever is drawn
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
    """Count what a run holds: the same for an undisturbed run and for one that was stopped in each step."""
    asked = [row["provenance"]["index"] for row in read_jsonl(run / "synthesis" / "journal.jsonl")]
    votes = [(vote.question_id, vote.seed) for vote in stored_votes(run / "voting")]
    rows = list(read_jsonl(run / "evaluation" / "answers.jsonl"))
    answers = [(row["policy"], row["question_id"], row["generation"]) for row in rows]
    steps = [(row["step"], row["prompts"]) for stage in (1, 2) for row in _metrics(run, stage)]
    for keys in (asked, votes, answers):
        assert len(set(keys)) == len(keys)
    return {
        "questions": count_lines(run / "synthesis" / "questions.jsonl"),
        "votes a question": Counter(Counter(question for question, _ in votes).values()),
        "labels": count_lines(run / "voting" / "labeled.jsonl"),
        "steps": steps,
        "answers": len(answers),
        "finished": _finished(run),
    }


def _finished(run: Path) -> list[str]:
    steps = read_json(run / "manifest.json")["steps"]
    return [step for step in RECORDED_STEPS if steps.get(step, {}).get("finished")]


def _metrics(run: Path, stage: int) -> list[dict]:
    file = run / "training" / f"stage{stage}" / "metrics.jsonl"
    return list(read_jsonl(file)) if file.exists() else []


def _expected(votes: int = 5, steps: int = 2, policies: int = 3) -> dict:
    return {
        "questions": 8,
        "votes a question": Counter({votes: 8}),
        "labels": 8,
        "steps": [(step, 2 * step) for step in range(1, steps + 1)] * 2,
        "answers": policies * 4 * 2,
        "finished": list(RECORDED_STEPS),
    }


def _without_stage_2(expected: dict) -> dict:
    steps = expected["steps"]
    return expected | {
        "steps": steps[: len(steps) // 2],
        "finished": [step for step in RECORDED_STEPS if step != "stage2"],
    }


def test_one_node_with_a_requeue(cluster, repo, slurm_config, finished, tmp_path):
    """USR1 in the vote, as before the time limit: the job saves, is requeued and completes.

    test_stopped_in_each_step is the whole method on one node.
    """
    run = tmp_path / "one"
    job = _submit(cluster, repo, slurm_config, run, *_WITHOUT_STAGE_2, *_SLOW_VOTE)
    cluster.until(lambda: MOMENTS["vote"](run), "the vote has begun", 900)
    cluster.slurm("scancel", "--batch", "--signal=USR1", job)
    assert cluster.wait(job, 1800)["JobState"] == "COMPLETED", _reason(run, 2)
    assert "stopped by SIGUSR1" in _reason(run, 1)
    assert "voting stopped" in (run / "attempts" / "0001" / "n1.driver.log").read_text()
    assert _reason(run, 2).endswith("ended with 0: done")
    assert _counts(run) == _without_stage_2(_expected(votes=40, policies=1))
    finished[1] = run


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_nodes_with_the_same_script(cluster, repo, slurm_config, finished, tmp_path, whole):
    run, less = tmp_path / "two", ["evaluation.policies=[stage2]"] if whole else _WITHOUT_STAGE_2
    job = _submit(cluster, repo, slurm_config, run, *less, nodes=2)
    places = {name: set() for name in ("VllmActor", "PolicyRank", "RolloutEngine")}
    while cluster.state(job) in ("PENDING", "RUNNING", "COMPLETING"):
        for class_name in places:
            at = {name for name, host in cluster.nodes.items() if host.processes(f"ray::{class_name}")}
            places[class_name] = max(at, places[class_name], key=len)
        time.sleep(1)
    assert cluster.job(job)["JobState"] == "COMPLETED", _reason(run, 1)
    assert places == dict.fromkeys(places, {"n1", "n2"})
    expected = _expected(policies=1)
    assert _counts(run) == (expected if whole else _without_stage_2(expected))
    timings = read_json(run / "attempts" / "0001" / "timings.json")
    milestones = ["preflight passed", "Ray on every node", FIRST_ENGINE, FIRST_TOKEN, FIRST_ANSWER, FIRST_STEP]
    assert [name for name in timings if name in milestones] == milestones
    assert all(f": {name}\n" in Path(f"{run}.out").read_text() for name in milestones)
    if 1 in finished:
        assert _questions(run) == _questions(finished[1])


def _questions(run: Path) -> list[str]:
    return sorted(row["id"] for row in read_jsonl(run / "synthesis" / "questions.jsonl"))


def test_a_failing_preflight_stops_before_anything_starts(cluster, repo, slurm_config, tmp_path):
    run = tmp_path / "refused"
    job = _submit(cluster, repo, slurm_config, run, "policy.model=/no/such/model", nodes=2)
    assert cluster.wait(job)["JobState"] == "FAILED"
    end = read_json(run / "attempts" / "0001" / "exit.json")
    assert end["code"] == 2
    assert "the preflight failed: " in _reason(run, 1) and "'/no/such/model' is neither" in _reason(run, 1)
    assert not list((run / "attempts" / "0001").glob("*.ray.log"))
    assert not (run / "attempts" / "0002").exists()


def test_a_chain_of_steps_stops_where_one_fails(cluster, repo, slurm_config, tmp_path):
    """Bad input in step 1: Slurm starts none of the others."""
    jobs = _submit_all(cluster, repo, slurm_config, tmp_path, "synthesis.seeds=[/no/such/file.jsonl]")
    assert cluster.wait(jobs["synthesize"])["JobState"] == "FAILED"
    assert [cluster.wait(jobs[step])["JobState"] for step in ("vote", "train", "evaluate")] == ["CANCELLED"] * 3
    assert "/no/such/file.jsonl does not exist" in _reason(tmp_path / "chain", 1)
    assert not (tmp_path / "chain" / "voting").exists()


@pytest.mark.slow
def test_a_chain_of_steps(cluster, repo, slurm_config, tmp_path):
    for step, job in _submit_all(cluster, repo, slurm_config, tmp_path, "evaluation.policies=[stage2]").items():
        assert cluster.wait(job, 1800)["JobState"] == "COMPLETED", step
    assert _counts(tmp_path / "chain") == _expected(policies=1)


def _submit_all(cluster: SlurmCluster, repo: Path, config: Path, folder: Path, *overrides: str) -> dict[str, int]:
    """slurm/submit_all.sh with the run directory `folder`/chain. Returns step -> job."""
    env = {"CONFIG": str(config), "RUN_DIR": str(folder / "chain"), "MEDSSR_PYTHON": sys.executable}
    env |= {"MEDSSR_HOME": str(repo), "NODES": "1", "SBATCH_ALL": f"--output={folder}/%x.out"}
    lines = cluster.slurm(repo / "slurm" / "submit_all.sh", *overrides, env=env).splitlines()
    jobs = {line.split(":")[0]: int(line.split()[-1]) for line in lines}
    assert list(jobs) == ["synthesize", "vote", "train", "evaluate"]
    return jobs


@pytest.mark.slow
@pytest.mark.parametrize("first", ["USR1", "requeue"])
def test_stopped_in_each_step(cluster, repo, longer_config, tmp_path, first):
    """By USR1 and by `scontrol requeue` in turn; the finished run has the counts of an undisturbed run."""
    run = tmp_path / "run"
    job = _submit(cluster, repo, longer_config, run, *_SLOW_VOTE)
    commands = [("scancel", "--batch", "--signal=USR1"), ("scontrol", "requeue")]
    for attempt, (step, moment) in enumerate(MOMENTS.items(), start=1):
        cluster.until(lambda moment=moment: moment(run), f"{step} has begun", 900)
        cluster.slurm(*commands[(attempt + (first == "USR1")) % 2], job)
        ended = run / "attempts" / f"{attempt:04}" / "exit.json"
        cluster.until(ended.exists, f"attempt {attempt} has ended", 300)
        assert "stopped by" in _reason(run, attempt)
        assert _finished(run) == list(MOMENTS)[: attempt - 1]
    assert cluster.wait(job, 1800)["JobState"] == "COMPLETED", _reason(run, 6)
    assert _counts(run) == _expected(votes=40, steps=4)


@pytest.fixture
def longer_config(slurm_config) -> Path:
    """Each step lasts long enough to be stopped in it."""
    tree = yaml.safe_load(slurm_config.read_text())
    teacher = {"base_url": "offline-teacher", "model": "offline-teacher", "concurrency": 1, "requests_per_minute": 60}
    tree["synthesis"]["endpoints"] = [teacher]
    for stage in ("stage1", "stage2"):
        tree["training"][stage]["steps"] = 4
    slurm_config.write_text(yaml.safe_dump(tree))
    return slurm_config


@pytest.mark.slow
def test_bench_on_more_nodes_takes_the_same_votes(cluster, medssr, repo, slurm_config, tmp_path):
    """slurm/bench.sh: jobs of one and two nodes vote on the questions of a local run, and take the same votes.

    In float32, whose sums do not depend on the batch.
    """
    untrained = ["training.stage1.enabled=false", "training.stage2.enabled=false", "policy.dtype=float32"]
    local, bench = tmp_path / "local", tmp_path / "bench"
    for step in ("synthesize", "vote"):
        medssr(step, "--config", slurm_config, "--run-dir", local, *untrained)
    env = {"CONFIG": str(slurm_config), "QUESTIONS": str(local), "BENCH": str(bench), "COUNTS": "1 2"}
    env |= {"MEDSSR_PYTHON": sys.executable, "SBATCH_GPU": f"--output={tmp_path}/%j.out"}
    script = repo / "slurm" / "bench.sh"
    jobs = [int(line.split()[-1]) for line in cluster.slurm(script, *untrained, env=env).splitlines()]
    assert [cluster.wait(job, 1800)["JobState"] for job in jobs] == ["COMPLETED"] * 2
    for nodes in (1, 2):
        assert _votes(bench / f"nodes-{nodes}") == _votes(local)
        assert _labels(bench / f"nodes-{nodes}") == _labels(local)
    table = cluster.slurm(script, "table", bench, env=env)
    print(table)
    assert [line.split()[0] for line in table.splitlines()] == ["nodes", "1", "2"]
    assert all(row["votes_per_s"] > 0 and row["first_token_s"] for row in read_json(bench / "bench.json")["rows"])


def _votes(run: Path) -> set[tuple]:
    return {(vote.question_id, vote.seed, vote.answer) for vote in stored_votes(run / "voting")}


def _labels(run: Path) -> list[tuple]:
    return [(label.question.id, label.outcome, label.answer) for label in stored_labels(run / "voting")]
