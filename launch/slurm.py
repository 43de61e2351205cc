"""This job as Slurm knows it, and how the job continues after its end: requeued, or submitted again."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
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
    "MemPerTres": "mem-per-gpu",
    "CpusPerTres": "cpus-per-gpu",
    "TresPerJob": "gpus",
    "TresPerNode": "gres",
    "TresPerSocket": "gpus-per-socket",
    "TresPerTask": "gpus-per-task",
    "Features": "constraint",
    "Reservation": "reservation",
    "ReqNodeList": "nodelist",
    "ExcNodeList": "exclude",
    "Licenses": "licenses",
    "Comment": "comment",
    "JobName": "job-name",
    "StdOut": "output",
}
_GPUS_ONLY = ("mem-per-gpu", "cpus-per-gpu", "gpus", "gpus-per-socket", "gpus-per-task")  # the value names no resource
_CALL_S = 60.0  # limit of one call of a Slurm command
_WAITS_S = (2.0, 5.0, 15.0, 30.0, 60.0)  # before the next try, while the controller does not answer
_BUSY = ("timed out", "unable to contact", "connection refused", "zero bytes", "try again", "temporarily unavailable")


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

    element: str = ""  # of a job array, "77_3"; Slurm's commands take "77" for all its elements

    @property
    def name(self) -> str:
        """The job's id as Slurm's commands take it."""
        return self.element or str(self.id)

    @classmethod
    def current(cls) -> SlurmJob | None:
        """Read the job from the environment of a batch script; None outside a batch job. Raises SlurmError."""
        env = os.environ
        if "SLURM_JOB_ID" not in env:
            return None
        names = _run_slurm(["scontrol", "show", "hostnames", env["SLURM_JOB_NODELIST"]]).split()
        array = env.get("SLURM_ARRAY_JOB_ID")
        element = f"{array}_{env['SLURM_ARRAY_TASK_ID']}" if array else ""
        return cls(int(env["SLURM_JOB_ID"]), tuple(names), env.get("SLURMD_NODENAME", names[0]), element)

    def read_record(self) -> dict[str, str]:
        """Return `scontrol show job` as field -> value. Raises SlurmError."""
        return parse_job_record(_run_slurm(["scontrol", "--oneliner", "show", "job", self.name]))

    def read_state(self) -> JobState:
        """Return the job's state and its reason. Raises SlurmError."""
        record = self.read_record()
        return JobState(record["JobState"], record["Reason"])

    def read_start(self) -> float:
        """Return when Slurm started the job, seconds since the epoch. Raises SlurmError."""
        return _parse_time(self.read_record()["StartTime"])

    def read_end(self) -> float | None:
        """Return when Slurm will end the job, seconds since the epoch; None if it has no limit. Raises SlurmError."""
        end = self.read_record()["EndTime"]
        return None if end == "Unknown" else _parse_time(end)

    def requeue(self, script: str, arguments: list[str], run_dir: str) -> None:
        """Requeue the job; if requeue is off for it, submit `script` again with the same request.

        Jobs that depend on this job then depend on the new one. Raises SlurmError with Slurm's message.
        """
        record = self.read_record()
        if record.get("Requeue") == "1":
            _run_slurm(["scontrol", "requeue", self.name])
            return
        environment = os.environ | {"RUN_DIR": run_dir}
        command = [
            "sbatch",
            "--parsable",
            "--no-requeue",
            "--open-mode=append",
            *(read_submit_line(record, script) or list_sbatch_options(record)),
            script,
            *arguments,
        ]
        new = _submit(command, environment, record["JobName"])
        for waiting in _list_dependents(self.name):
            _run_slurm(["scontrol", "update", f"JobId={waiting}", f"Dependency=afterok:{new}"])


class SlurmError(Exception):
    """A Slurm command failed. The message holds the command line and Slurm's message."""


class ControllerBusy(SlurmError):
    """Slurm's controller did not answer; the same call may succeed later."""


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


def read_submit_line(record: dict[str, str], script: str) -> list[str]:
    """Return the options that the job was submitted with, where Slurm has kept the command line; [] where it has not.

    Example: SubmitLine=sbatch --nodes=4 --gpus-per-node=8 slurm/medssr_ssl.sh a=1 gives
    ["--nodes=4", "--gpus-per-node=8"], for any path of slurm/medssr_ssl.sh.
    """
    words = shlex.split(record.get("SubmitLine", ""))
    names = [Path(word).name for word in words]
    if Path(script).name not in names:
        return []
    return words[1 : names.index(Path(script).name)]


def list_sbatch_options(record: dict[str, str]) -> list[str]:
    """Return the options of sbatch that request the same as the job of `record`.

    Example: {"Partition": "gpu", "NumNodes": "4", "TresPerNode": "gres/gpu:h100:8,gres/nvme:1"} gives
    ["--partition=gpu", "--nodes=4", "--gres=gpu:h100:8,nvme:1"].
    """
    options = []
    for field, option in _COPIED.items():
        value = record.get(field, "")
        if field.startswith("Tres") or field.endswith("PerTres"):
            parts = [part.removeprefix("gres:").removeprefix("gres/") for part in value.split(",")]
            if option in _GPUS_ONLY:
                parts = [part.removeprefix("gpu:") for part in parts if part.startswith("gpu:")]
            value = ",".join(parts)
        if value not in _ABSENT and not (option.startswith("mem") and value in ("0", "0M")):
            options.append(f"--{option}={value}")
    return options


def _parse_time(text: str) -> float:
    """Return seconds since the epoch of a time of Slurm's, which is local time."""
    return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))


def _list_dependents(job: str) -> list[str]:
    """Return the ids of the jobs that wait for `job` to succeed."""
    rows = (line.split() for line in _run_slurm(["squeue", "--noheader", "--me", "--format=%i %E"]).splitlines())
    return [row[0] for row in rows if len(row) > 1 and f"afterok:{job}(" in row[1] + "("]


def _submit(command: list[str], environment: dict[str, str], job_name: str) -> str:
    """Submit a job and return its id. A call without an answer may have submitted it: then the queue is read first."""
    queue = ["squeue", "--noheader", "--me", f"--name={job_name}", "--format=%i"]
    before = set(_run_slurm(queue).split())
    for wait_s in _WAITS_S:
        try:
            return _call_slurm(command, environment).strip().split(";")[0]
        except ControllerBusy:
            time.sleep(wait_s)
        if new := set(_run_slurm(queue).split()) - before:
            return max(new, key=int)
    return _call_slurm(command, environment).strip().split(";")[0]


def _run_slurm(command: list[str]) -> str:
    """Return what a Slurm command prints. While the controller does not answer, it is asked again, for two minutes."""
    for wait_s in _WAITS_S:
        try:
            return _call_slurm(command, dict(os.environ))
        except ControllerBusy:
            time.sleep(wait_s)
    return _call_slurm(command, dict(os.environ))


def _call_slurm(command: list[str], environment: dict[str, str]) -> str:
    environment = {name: value for name, value in environment.items() if name != "SLURM_TIME_FORMAT"}
    line = " ".join(command)
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment | {"LC_ALL": "C"}, timeout=_CALL_S
        )
    except subprocess.TimeoutExpired:
        raise ControllerBusy(f"`{line}` did not answer within {_CALL_S:.0f} s") from None
    except FileNotFoundError:
        raise SlurmError(
            f"{command[0]} is not on PATH; load Slurm's module in the cluster's file in launch/env.d, after any "
            "`module purge`"
        ) from None
    if done.returncode:
        error = ControllerBusy if any(words in done.stderr.lower() for words in _BUSY) else SlurmError
        raise error(f"`{line}` ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout
