"""This job as Slurm knows it, and how the job continues after its end: requeued, or submitted again."""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import dataclass
from typing import NamedTuple

_ABSENT = ("", "(null)", "N/A", "None")
# Field of `scontrol show job` -> option of sbatch, for a job that is submitted again.
_COPIED = {
    "Partition": "partition",
    "Account": "account",
    "QOS": "qos",
    "TimeLimit": "time",
    "NumNodes": "nodes",
    "CPUs/Task": "cpus-per-task",
    "MinMemoryNode": "mem",
    "MinMemoryCPU": "mem-per-cpu",
    "TresPerNode": "gres",
    "Features": "constraint",
    "Reservation": "reservation",
    "JobName": "job-name",
    "StdOut": "output",
}


class JobState(NamedTuple):
    """JobState and Reason of `scontrol show job`. Example: JobState("RUNNING", "None")"""

    state: str
    reason: str


@dataclass(frozen=True)
class SlurmJob:
    """The job that this process runs in.

    Example: SlurmJob(id=7, nodes=("n1", "n2"), host="n1")
    """

    id: int
    nodes: tuple[str, ...]
    host: str  # the node of the batch script

    @classmethod
    def current(cls) -> SlurmJob | None:
        """Read the job from the environment of a batch script; None outside a batch job."""
        if "SLURM_JOB_ID" not in os.environ:
            return None
        names = _run_slurm(["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]]).split()
        return cls(int(os.environ["SLURM_JOB_ID"]), tuple(names), os.environ.get("SLURMD_NODENAME", names[0]))

    def read_record(self) -> dict[str, str]:
        """Return `scontrol show job` as field -> value. Raises SlurmError."""
        return parse_job_record(_run_slurm(["scontrol", "--oneliner", "show", "job", str(self.id)]))

    def read_state(self) -> JobState:
        """Return the job's state and its reason. Raises SlurmError."""
        record = self.read_record()
        return JobState(record["JobState"], record["Reason"])

    def read_start(self) -> float:
        """Return when Slurm started the job, seconds since the epoch. Raises SlurmError."""
        return time.mktime(time.strptime(self.read_record()["StartTime"], "%Y-%m-%dT%H:%M:%S"))

    def read_end(self) -> str:
        """Return when Slurm will end the job, local time in ISO 8601; "" if it has no limit. Raises SlurmError."""
        end = self.read_record()["EndTime"]
        return "" if end == "Unknown" else end

    def requeue(self, script: str, arguments: list[str], run_dir: str) -> None:
        """Requeue the job; if requeue is off for it, submit `script` again with the same request.

        Jobs that depend on this job then depend on the new one. Raises SlurmError with Slurm's message.
        """
        record = self.read_record()
        if record.get("Requeue") == "1":
            _run_slurm(["scontrol", "requeue", str(self.id)])
            return
        environment = os.environ | {"RUN_DIR": run_dir}
        command = [
            "sbatch",
            "--parsable",
            "--no-requeue",
            "--open-mode=append",
            *list_sbatch_options(record),
            script,
            *arguments,
        ]
        new = _run_slurm(command, environment).strip().split(";")[0]
        for waiting in _list_dependents(self.id):
            _run_slurm(["scontrol", "update", f"JobId={waiting}", f"Dependency=afterok:{new}"])


class SlurmError(Exception):
    """A Slurm command failed. The message holds the command line and Slurm's message."""


def parse_job_record(text: str) -> dict[str, str]:
    """Parse the `Key=value` words of a `scontrol --oneliner` record.

    A word without `=` belongs to the value before it. Example: "JobId=7 JobName=two words" gives
    {"JobId": "7", "JobName": "two words"}.
    """
    record: dict[str, str] = {}
    key = ""
    for word in text.split():
        name, equals, value = word.partition("=")
        if equals and name[:1].isupper():
            key, record[name] = name, value
        elif key:
            record[key] += f" {word}"
    return record


def list_sbatch_options(record: dict[str, str]) -> list[str]:
    """Return the options of sbatch that request the same as the job of `record`.

    Example: {"Partition": "gpu", "NumNodes": "4"} gives ["--partition=gpu", "--nodes=4"].
    """
    options = []
    for field, option in _COPIED.items():
        value = record.get(field, "").removeprefix("gres:").removeprefix("gres/")
        if value not in _ABSENT and not (option.startswith("mem") and value in ("0", "0M")):
            options.append(f"--{option}={value}")
    return options


def _list_dependents(job: int) -> list[str]:
    """Return the ids of the jobs that wait for `job` to succeed."""
    rows = (line.split() for line in _run_slurm(["squeue", "--noheader", "--me", "--format=%i %E"]).splitlines())
    return [row[0] for row in rows if len(row) > 1 and f"afterok:{job}(" in row[1] + "("]


def _run_slurm(command: list[str], environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SlurmError(f"`{' '.join(command)}` ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout
