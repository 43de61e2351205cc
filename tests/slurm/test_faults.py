"""Faults on a real Slurm of two nodes with a small Ray program: the last line names each, and the job continues."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from config_builder import make_config
from places import HELPERS, REPO
from slurm_cluster import SlurmCluster, why_not

from medssr_dist.data.jsonl import read_json
from medssr_dist.run.directory import open_run

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.skipif(bool(why_not()), reason=str(why_not()))]
PROGRAM = HELPERS / "ray_program.py"
_OTHER_USER = 65534


@pytest.fixture
def submit(cluster) -> Iterator[Callable[..., Submitted]]:
    """A function that submits as `Submitted` does. Jobs that run at the end of the test are cancelled."""
    jobs: list[Submitted] = []

    def submitted(*arguments: object, **options: object) -> Submitted:
        jobs.append(Submitted(cluster, *arguments, **options))
        return jobs[-1]

    yield submitted
    cluster.slurm("scancel", *(job.id for job in jobs))
    for job in jobs:
        cluster.wait(job.id)
    _assert_nothing_left(cluster)


class Submitted:
    """A job of the launcher with `ray_program.py`, and its run directory."""

    def __init__(self, cluster: SlurmCluster, folder: Path, *options: str, user: int = 0, actors: int = 2, **env: str):
        self.cluster, self.run_dir = cluster, folder / "run"
        script = folder / "job.sh"
        program = [sys.executable, PROGRAM, self.run_dir, actors]
        script.write_text(
            f"#!/usr/bin/env bash\nexport MEDSSR_SCRIPT={script} MEDSSR_PYTHON={sys.executable}\n"
            f"export MEDSSR_HOME={REPO}\nsource $MEDSSR_HOME/slurm/common.sh\n"
            f"medssr_supervise --run-dir {self.run_dir} --slots 1 -- {' '.join(map(str, program))}\n"
        )
        self.output = folder / "job.out"
        self.id = cluster.sbatch(
            "--nodes=2",
            "--no-kill",
            "--requeue",
            "--open-mode=append",
            f"--output={self.output}",
            *options,
            script,
            user=user,
            **({"HOME": str(folder)} if user else {}),
            **env,
        )

    def attempt(self, number: int) -> Path:
        return self.run_dir / "attempts" / f"{number:04}"

    def works(self, number: int) -> bool:
        """Return whether attempt `number` has actors on both nodes."""
        log = self.attempt(number) / "launch.log"
        return log.exists() and "actors on 10.77.0.2 10.77.0.3" in log.read_text()

    def reaches(self, number: int) -> None:
        self.cluster.until(lambda: self.works(number), f"attempt {number} works", 300)

    def end_of(self, number: int) -> dict:
        """Wait for the end of attempt `number` and return its exit.json. Its log has to end with the same reason."""
        file = self.attempt(number) / "exit.json"
        self.cluster.until(file.exists, f"attempt {number} has ended", 300)
        end = read_json(file)
        self.cluster.until(lambda: end["reason"] in self.last_line(number), "the last line is the reason")
        return end

    def votes(self) -> int:
        return (self.run_dir / "voting" / "votes" / "00000.jsonl").stat().st_size

    def last_line(self, number: int) -> str:
        return (self.attempt(number) / "launch.log").read_text().splitlines()[-1]

    def head_address(self) -> str:
        """Return the address of this job's Ray, as its driver prints it."""
        log = (self.attempt(1) / "launch.log").read_text()
        return log.partition("existing Ray cluster at address: ")[2].split()[0].rstrip(".")

    def cancel(self) -> None:
        self.cluster.slurm("scancel", self.id)
        self.cluster.wait(self.id)


def _kill(cluster: SlurmCluster, node: str, text: str) -> None:
    (pid, *_) = cluster.nodes[node].processes(text)
    os.kill(pid, signal.SIGKILL)


def _cut(cluster: SlurmCluster, node: str) -> None:
    cluster.nodes[node].run("ip", "link", "set", "eth0", "down")


# Fault -> the function that causes it, and a part of the reason in the last line.
_FAULTS: dict[str, tuple[Callable[[SlurmCluster], None], str]] = {
    "supervisor": (
        lambda c: _kill(c, "n2", "medssr_dist.launch.supervisor"),
        "node n2 (10.77.0.3) is lost: its process",
    ),
    "ray": (lambda c: _kill(c, "n2", "raylet/raylet"), "Ray on n2 (10.77.0.3) ended: raylet"),
    "head's ray": (lambda c: _kill(c, "n1", "gcs_server"), "Ray on n1 (10.77.0.2) ended: gcs_server"),
    "launcher": (lambda c: _kill(c, "n1", "medssr_dist.launch --python"), "the launcher on n1 was killed by signal 9"),
    "link": (lambda c: _cut(c, "n2"), "node n2 (10.77.0.3) is lost: not heard from for 30 s"),
}


@pytest.mark.parametrize("fault", _FAULTS)
def test_a_fault_is_reported_and_the_job_continues(cluster, submit, tmp_path, fault):
    act, reason = _FAULTS[fault]
    job = submit(tmp_path)
    job.reaches(1)
    act(cluster)
    end = job.end_of(1)
    assert end["code"] == 4 and reason in end["reason"]
    if fault == "link":
        cluster.nodes["n2"].run("ip", "link", "set", "eth0", "up")
    job.reaches(2)
    job.cancel()
    assert job.end_of(2)["reason"] == "stopped by SIGTERM"
    assert not job.attempt(3).exists()


def _assert_nothing_left(cluster: SlurmCluster) -> None:
    for host in cluster.nodes.values():
        cluster.until(lambda host=host: not host.processes("ray"), f"no Ray is left on {host.name}")
        assert host.run("sh", "-c", "ls -A /tmp/medssr-ray-*").stdout == ""


def test_the_head_node_crashes(cluster, submit, tmp_path):
    """Slurm requeues the job; the other node notices that the launcher is gone and cleans up."""
    job = submit(tmp_path)
    job.reaches(1)
    cluster.nodes["n1"].crash()
    log = job.attempt(1) / "n2.supervisor.log"
    cluster.until(lambda: "the launcher is lost" in log.read_text(), "n2 notices", 120)
    cluster.boot_node("n1")
    job.reaches(2)


def test_the_vote_continues_without_a_lost_node(cluster, submit, tmp_path):
    """The manifest shows an unfinished vote. Once it is finished, the job continues in a new attempt on all nodes."""
    job = submit(tmp_path)
    job.reaches(1)
    with open_run(job.run_dir, make_config()) as run:
        run.begin_step("vote", make_config(), {})
    _kill(cluster, "n2", "medssr_dist.launch.supervisor")
    log = job.attempt(1) / "launch.log"
    cluster.until(lambda: "the vote continues with the remaining engines" in log.read_text(), "the loss is logged")
    before = job.votes()
    cluster.until(lambda: job.votes() > before, "further votes are written")
    assert not (job.attempt(1) / "exit.json").exists()
    run.finish_step("vote")
    assert "n2 (10.77.0.3) is lost" in job.end_of(1)["reason"]
    job.reaches(2)


@pytest.mark.parametrize("how", ["USR1", "requeue"])
def test_preemption_and_walltime(cluster, submit, tmp_path, how):
    job = submit(tmp_path)
    job.reaches(1)
    command = ["scancel", "--batch", "--signal=USR1"] if how == "USR1" else ["scontrol", "requeue"]
    cluster.slurm(*command, job.id)
    end = job.end_of(1)
    assert end["code"] == 3 and "stopped by" in end["reason"]
    job.reaches(2)
    job.cancel()
    assert not job.attempt(3).exists()


def test_without_requeue_the_job_is_submitted_again(cluster, submit, tmp_path):
    job = submit(tmp_path, "--no-requeue", "--job-name=again")
    job.reaches(1)
    waiting = cluster.sbatch(f"--dependency=afterok:{job.id}", "--wrap=true", "--output=/dev/null")
    cluster.slurm("scancel", "--batch", "--signal=USR1", job.id)
    assert cluster.wait(job.id)["JobState"] == "FAILED"
    new = int(cluster.slurm("squeue", "--noheader", "--name=again", "--format=%i"))
    assert new != job.id
    assert f"afterok:{new}" in cluster.job(waiting)["Dependency"]
    job.reaches(2)
    cluster.slurm("scancel", new)
    cluster.wait(new)


def test_attempts_without_progress_end_the_job(cluster, submit, tmp_path):
    """A program that fails at once is started MEDSSR_IDLE_ATTEMPTS times."""
    job = submit(tmp_path, actors=9, MEDSSR_IDLE_ATTEMPTS="2")  # more actors than slots: it fails at once
    assert cluster.wait(job.id)["JobState"] == "FAILED"
    assert job.end_of(1)["code"] == 1
    assert "not requeued: 2 attempts in a row" in job.last_line(2)
    assert not job.attempt(3).exists()


def test_two_jobs_of_two_users_at_once(cluster, submit):
    """On the same nodes each job has its own cluster, ports and temporary directories, closed to the other user."""
    folders = {user: cluster.folder / f"user{user}" for user in (0, _OTHER_USER)}
    jobs = {}
    for user, folder in folders.items():
        folder.mkdir()
        os.chown(folder, user, user)
        jobs[user] = submit(folder, user=user)
    for job in jobs.values():
        job.reaches(1)
    ours, theirs = (job.head_address() for job in jobs.values())
    assert ours != theirs
    owners = {line.split()[2] for line in cluster.nodes["n2"].run("ls", "-ln", "/tmp").stdout.splitlines()[1:]}
    assert owners == {"0", str(_OTHER_USER)}
    refused = _ray_client(cluster, ours, user=_OTHER_USER, RAY_AUTH_MODE="disabled")
    assert refused.returncode != 0 and "token" in refused.stderr.lower()
    guess = _ray_client(cluster, ours, user=_OTHER_USER, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="guess" * 8)
    assert guess.returncode != 0 and "token" in guess.stderr.lower()
    token = (jobs[0].attempt(1) / "token").read_text()
    assert _ray_client(cluster, ours, user=0, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token).stdout.strip() == "2"
    _assert_secret(cluster, jobs[0], token)


def _ray_client(cluster: SlurmCluster, address: str, user: int, **env: str) -> subprocess.CompletedProcess:
    """Count the nodes of a job's Ray from a process of `user` on its head node."""
    code = f"import ray; ray.init({address!r}, _node_ip_address={address.split(':')[0]!r}); print(len(ray.nodes()))"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return cluster.nodes["n1"].run("timeout", 120, sys.executable, "-c", code, user=user, env=clean | env)


def _assert_secret(cluster: SlurmCluster, job: Submitted, token: str) -> None:
    """The token is in its file alone: not in `ps`, in Slurm's records, or in a log."""
    assert not any(host.processes(token) for host in cluster.nodes.values())
    assert token not in cluster.slurm("scontrol", "show", "job", job.id)
    with_token = [
        file for file in job.run_dir.rglob("*") if file.is_file() and token in file.read_text(errors="replace")
    ]
    assert with_token == [job.attempt(1) / "token"]
    assert all(file.stat().st_mode & 0o077 == 0 for file in job.run_dir.rglob("*"))
