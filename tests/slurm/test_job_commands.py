"""How a job reads itself and continues, on a real Slurm: arrays, options of a second submission, a busy controller."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
from slurm_cluster import why_not

pytestmark = [pytest.mark.slurm, pytest.mark.skipif(bool(why_not()), reason=str(why_not()))]
ANSWER_S = 10  # Slurm's MessageTimeout: how long its commands wait for the controller
SCRIPT = """#!/bin/bash
cd {repo}
echo "$SLURM_ARRAY_TASK_ID" >> {folder}/starts
[ -e {folder}/again ] && exit 0
touch {folder}/ready
while [ ! -e {folder}/go ]; do sleep 0.2; done
exec {python} -c '
from medssr_dist.launch.slurm import SlurmJob
job = SlurmJob.current()
print(job.name, job.read_state().state, flush=True)
open("{folder}/again", "w").close()
job.requeue("{folder}/job.sh", [], "{folder}/run")
'
"""


@pytest.fixture
def submit(cluster, repo, tmp_path):
    """submit(*options) starts a job that waits for a file `go`, and then continues in another start. Returns its id."""

    def start(*options: str) -> int:
        (tmp_path / "job.sh").write_text(SCRIPT.format(repo=repo, folder=tmp_path, python=sys.executable))
        job = cluster.sbatch(
            "--time=10", "--open-mode=append", f"--output={tmp_path}/job.%a.out", *options, tmp_path / "job.sh"
        )
        cluster.until((tmp_path / "ready").exists, "the job runs")
        return job

    return start


def read_lines(folder: Path) -> list[str]:
    """Return a line for each start of the script: the number of its element."""
    return sorted((folder / "starts").read_text().splitlines())


def test_an_element_of_an_array_continues_alone(cluster, submit, tmp_path):
    job = submit("--array=3-4%1", "--requeue")  # 4 waits for 3, which asks to be requeued
    (tmp_path / "go").touch()
    cluster.until(lambda: read_lines(tmp_path) == ["3", "3", "4"], "3 was started twice, 4 once", 300)
    assert (tmp_path / "job.3.out").read_text().splitlines()[0] == f"{job}_3 RUNNING"


def test_what_was_asked_for_is_asked_for_again(cluster, submit, tmp_path):
    asked = ("--no-requeue", "--exclude=n2", "--comment=project=abc", "--mem-per-cpu=10", "--cpus-per-task=2")
    job = submit(*asked, "--job-name=again")
    fields = ("ExcNodeList", "Comment", "MinMemoryCPU", "CPUs/Task", "TimeLimit", "Requeue", "NodeList")
    first = cluster.job(job)
    (tmp_path / "go").touch()
    assert cluster.wait(job)["JobState"] == "COMPLETED", list(tmp_path.glob("job.*.out"))
    cluster.until(lambda: len(read_lines(tmp_path)) == 2, "a second job starts")
    jobs = cluster.slurm("squeue", "--noheader", "--states=all", "--name=again", "--format=%i").split()
    (new,) = set(map(int, jobs)) - {job}
    second = cluster.job(new)
    assert {name: second.get(name) for name in fields} == {name: first.get(name) for name in fields}


def test_a_controller_that_hangs_is_asked_again(cluster, submit, tmp_path):
    submit("--requeue", "--job-name=busy")
    with cluster.hanging_controller():
        (tmp_path / "go").touch()
        time.sleep(ANSWER_S + 5)
    assert len(read_lines(tmp_path)) == 1
    cluster.until(lambda: len(read_lines(tmp_path)) == 2, "the job was requeued", 400)
