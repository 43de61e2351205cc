"""The vote on the real stack while its parts are killed, stopped and starved: no vote is lost or doubled."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from stored_votes import stored_labels, stored_votes

from medssr_dist.config.load import load_config
from medssr_dist.data.jsonl import read_json, read_jsonl
from medssr_dist.voting.ledger import derive_seeds

pytestmark = pytest.mark.slow
K = 16
PARTS = {"engine": "ray::VllmActor", "engine core": "VLLM::EngineCore", "node": "raylet/raylet", "driver": ""}


@pytest.fixture
def voter(medssr, tiny_config, tmp_path):
    """A run whose vote can be started and killed."""
    return Voter(medssr, tiny_config, tmp_path / "run")


class Voter:
    def __init__(self, medssr, config: Path, run: Path):
        self._medssr, self._config, self.run = medssr, config, run
        self.process: subprocess.Popen | None = None

    def make_questions(self, accepted: int) -> None:
        self._overrides = [f"synthesis.accepted={accepted}", f"voting.samples={K}", "voting.adaptive=never"]
        self._medssr("synthesize", "--config", self._config, "--run-dir", self.run, *self._overrides)

    def start(self, *overrides: str, env: dict[str, str] | None = None) -> None:
        arguments = ["vote", "--config", self._config, "--run-dir", self.run, *self._overrides, *overrides]
        with open(self.run / "chaos.log", "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "medssr_dist.cli", *map(str, arguments)],
                stdout=log,
                stderr=log,
                env=os.environ | (env or {}),
            )

    @property
    def votes(self) -> int:
        folder = self.run / "voting" / "votes"
        return sum(file.read_bytes().count(b"\n") for file in folder.glob("*.jsonl")) if folder.exists() else 0

    @property
    def log(self) -> str:
        return (self.run / "chaos.log").read_text(encoding="utf-8", errors="replace")[-4000:]

    def wait_for(self, condition: Callable[[], object], seconds: float = 300) -> bool:
        """False if the vote ended first."""
        deadline = time.monotonic() + seconds
        while not condition():
            if self.process.poll() is not None:
                return False
            assert time.monotonic() < deadline, f"the condition was never true: {self.log}"
            time.sleep(0.05)
        return True

    def finish(self) -> None:
        assert self.process.wait(timeout=1200) == 0, self.log

    def events(self, kind: str) -> list[dict]:
        return [row for row in read_jsonl(self.run / "voting" / "engines.jsonl") if row["event"] == kind]

    def check(self, quarantined: int = 0) -> None:
        """Each question has its label, and exactly its K votes."""
        questions = [row["id"] for row in read_jsonl(self.run / "synthesis" / "questions.jsonl")]
        labels = stored_labels(self.run / "voting")
        assert [label.question.id for label in labels] == questions
        assert sum(label.outcome == "quarantined" for label in labels) == quarantined
        found = Counter((vote.question_id, vote.seed) for vote in stored_votes(self.run / "voting"))
        assert set(found.values()) == {1}
        whole = [label.question.id for label in labels if label.outcome != "quarantined"]
        random_seed = load_config(self._config).runtime.random_seed
        wanted = {(question, seed) for question in whole for seed in derive_seeds(question, random_seed, K)}
        assert wanted <= set(found)


def list_descendants(pid: int) -> list[tuple[int, str]]:
    """(process id, command) of a process and all its descendants."""
    rows = subprocess.run(
        ["ps", "-eww", "-o", "pid,ppid,args"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    table = [row.split(None, 2) for row in rows[1:]]
    family = {pid}
    while more := {int(row[0]) for row in table if int(row[1]) in family} - family:
        family |= more
    return [(int(row[0]), row[2]) for row in table if int(row[0]) in family and len(row) > 2]


def pick(voter: Voter, part: str, rng: random.Random) -> int | None:
    """The process id of a random part of this kind, if there is one."""
    if part == "driver":
        return voter.process.pid
    found = [
        pid
        for pid, command in list_descendants(voter.process.pid)
        if command.startswith(PARTS[part]) or (part == "node" and PARTS[part] in command)
    ]
    return rng.choice(found) if found else None


def test_twenty_kills_of_random_parts_in_one_run(voter):
    rng, killed = random.Random(7), Counter()
    voter.make_questions(300)
    voter.start("voting.engines=2", "voting.in_flight=8")
    while sum(killed.values()) < 20:
        before = voter.votes
        if not voter.wait_for(lambda before=before: voter.votes >= before + rng.randrange(20, 120)):
            voter.process.wait()
            assert voter.process.returncode != 0, f"it was finished after {killed}"
            voter.start("voting.engines=2", "voting.in_flight=8")
            continue
        part = rng.choice(list(PARTS))
        if pid := pick(voter, part, rng):
            os.kill(pid, signal.SIGKILL)
            killed[part] += 1
            if part == "driver":
                voter.process.wait()
                voter.start("voting.engines=2", "voting.in_flight=8")
    if voter.process.wait() != 0:  # the last was a kill of the node
        voter.start("voting.engines=2")
        voter.finish()
    print("killed", dict(killed))
    voter.check()


@pytest.mark.parametrize("part", ["engine", "engine core"])
def test_an_engine_that_is_stopped_is_replaced(voter, part):
    voter.make_questions(60)
    voter.start("voting.stall_s=5", "voting.in_flight=8")
    assert voter.wait_for(lambda: voter.votes >= 40)
    stopped = pick(voter, part, random.Random(0))
    os.kill(stopped, signal.SIGSTOP)
    voter.finish()
    voter.check()
    assert any("yielded no token" in row["detail"] for row in voter.events("died"))
    assert not Path(f"/proc/{stopped}").exists()


def test_weights_replaced_during_a_vote_end_the_run(voter, tiny_model):
    voter.make_questions(60)
    voter.start("voting.in_flight=4")
    assert voter.wait_for(lambda: voter.votes >= 40)
    weights = tiny_model / "model.safetensors"
    whole = weights.read_bytes()
    try:
        weights.write_bytes(whole[:-8] + bytes(8))
        os.kill(pick(voter, "engine", random.Random(0)), signal.SIGKILL)
        assert voter.process.wait(timeout=300) == 2
        assert "holds other weights" in voter.log
    finally:
        weights.write_bytes(whole)
    voter.start()
    voter.finish()
    voter.check()


# Settings that fit a cluster of one or two slots.
SMALL = ("runtime.mode=sequential", "training.ranks_per_node=1", "voting.engines=1")
FILL = """
import ray, sys
ray.init(address=sys.argv[1], log_to_driver=False)
kept = [ray.put(bytes(2**22)) for _ in range(int(ray.cluster_resources()["object_store_memory"] // 2**22))]
print("full", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def cluster():
    """A Ray cluster with a node of two slots and a small object store."""
    from ray.cluster_utils import Cluster

    head = {"num_gpus": 2, "num_cpus": 4, "object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    yield cluster
    cluster.shutdown()


def test_a_full_object_store_is_survived(voter, cluster):
    """Another process fills Ray's object store: votes are sent in messages and do not need it."""
    voter.make_questions(60)
    command = [sys.executable, "-c", FILL, cluster.address]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as filler:
        assert filler.stdout.readline() == b"full\n"
        voter.start(*SMALL, "voting.in_flight=8", env={"RAY_ADDRESS": cluster.address})
        voter.finish()
        filler.kill()
    voter.check()
    assert read_json(voter.run / "voting" / "summary.json")["votes_taken_now"] == 60 * K


def test_engines_join_and_leave_with_nodes(voter, cluster):
    """A node that joins adds an engine; when it is lost, its engine is lost too, and the vote continues."""
    voter.make_questions(1500)  # enough for an engine to start and for its node to be missed
    voter.start(*SMALL, "voting.max_engines=3", "voting.in_flight=4", env={"RAY_ADDRESS": cluster.address})
    assert voter.wait_for(lambda: voter.votes >= 40)
    node = cluster.add_node(num_gpus=1, num_cpus=2)
    everyone = {f"engine {number}" for number in range(3)}
    assert voter.wait_for(lambda: {row["engine"] for row in voter.events("ready")} == everyone)
    cluster.remove_node(node, allow_graceful=False)
    voter.finish()
    voter.check()
    assert voter.events("died")
