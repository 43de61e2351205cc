"""What Slurm says of this job, and how the job goes on in another: requeued, or submitted again."""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import dataclass

_ABSENT = ("", "(null)", "N/A", "None")
# Field of `scontrol show job` -> option of sbatch, for a job that submits itself again.
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


@dataclass(frozen=True)
class SlurmJob:
    """The job this process runs in, from the environment that Slurm gives a batch script."""

    id: int
    nodes: tuple[str, ...]
    host: str  # the node that the batch script runs on

    @classmethod
    def current(cls) -> SlurmJob | None:
        """None outside a batch job."""
        if "SLURM_JOB_ID" not in os.environ:
            return None
        names = _output(["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]]).split()
        return cls(int(os.environ["SLURM_JOB_ID"]), tuple(names), os.environ.get("SLURMD_NODENAME", names[0]))

    def record(self) -> dict[str, str]:
        """`scontrol show job` as field -> value."""
        return parse_job_record(_output(["scontrol", "--oneliner", "show", "job", str(self.id)]))

    def state(self) -> tuple[str, str]:
        """JobState and Reason, e.g. ("RUNNING", "None")."""
        record = self.record()
        return record["JobState"], record["Reason"]

    def started(self) -> float:
        """When Slurm started it, seconds since the epoch."""
        return time.mktime(time.strptime(self.record()["StartTime"], "%Y-%m-%dT%H:%M:%S"))

    def ends(self) -> str:
        """When Slurm will end it, local time in ISO 8601; "" where it has no limit."""
        end = self.record()["EndTime"]
        return "" if end == "Unknown" else end

    def go_on(self, script: str, arguments: list[str], run_dir: str) -> None:
        """Requeue, or submit `script` again where requeue is off.

        Whatever waits for this job waits for the new one. Raises SlurmError with Slurm's own message.
        """
        record = self.record()
        if record.get("Requeue") == "1":
            _output(["scontrol", "requeue", str(self.id)])
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
        new = _output(command, environment).strip().split(";")[0]
        for waiting in _waiting_for(self.id):
            _output(["scontrol", "update", f"JobId={waiting}", f"Dependency=afterok:{new}"])


class SlurmError(Exception):
    """A Slurm command failed; its command line and message."""


def parse_job_record(text: str) -> dict[str, str]:
    """`Key=value` words of one `scontrol --oneliner` record; a word without `=` belongs to the value before it."""
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
    """sbatch's options that ask for what the job of `record` has."""
    options = []
    for field, option in _COPIED.items():
        value = record.get(field, "").removeprefix("gres:").removeprefix("gres/")
        if value not in _ABSENT and not (option.startswith("mem") and value in ("0", "0M")):
            options.append(f"--{option}={value}")
    return options


def _waiting_for(job: int) -> list[str]:
    rows = (line.split() for line in _output(["squeue", "--noheader", "--me", "--format=%i %E"]).splitlines())
    return [row[0] for row in rows if len(row) > 1 and f"afterok:{job}(" in row[1] + "("]


def _output(command: list[str], environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SlurmError(f"`{' '.join(command)}` ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout
