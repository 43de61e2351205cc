"""Slurm's commands as they behave: busy, absent, in another time format; and a job that is submitted again.

tests/slurm runs the launcher on a real Slurm. Here a program of the test stands on PATH where Slurm cannot be made to
fail at will.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from medssr_dist.errors import InputError
from medssr_dist.launch import slurm
from medssr_dist.launch.__main__ import main
from medssr_dist.launch.launcher import JOIN_VARIABLE, _limit
from medssr_dist.launch.slurm import (
    SlurmError,
    SlurmJob,
    list_sbatch_options,
    parse_job_record,
    read_submit_line,
)
from medssr_dist.launch.srun import build_srun_command, clean_for_srun

_RECORD = "JobId=77 JobName=x JobState=RUNNING Reason=None Requeue={requeue} StartTime={time} EndTime={time}"
_BUSY = "echo 'slurm_load_jobs error: Socket timed out on send/recv operation' >&2; exit 1"


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Put programs on PATH that log their calls. `add(name, script)` adds one; `calls()` are the lines of all calls."""
    folder, log = tmp_path / "bin", tmp_path / "calls"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(slurm, "_WAITS_S", (0.01, 0.01, 0.01))
    for name in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)

    class Commands:
        def add(self, name: str, script: str) -> None:
            (folder / name).write_text(
                f'#!/bin/sh\necho "{name} $*" >> {log}\nn=$(grep -c "^{name} " {log})\n{script}\n'
            )
            (folder / name).chmod(0o755)

        def calls(self) -> list[str]:
            return log.read_text().splitlines() if log.exists() else []

    return Commands()


def _record(requeue: int = 1, at: str = "2026-01-31T18:00:00") -> str:
    return _RECORD.format(requeue=requeue, time=at)


def test_a_busy_controller_is_asked_again(commands):
    commands.add("scontrol", f'if [ $n -lt 3 ]; then {_BUSY}; fi; echo "{_record()}"')
    assert SlurmJob(77, ("n1",), "n1").read_state() == ("RUNNING", "None")
    assert len(commands.calls()) == 3


def test_a_controller_that_stays_busy_is_an_error(commands):
    commands.add("scontrol", _BUSY)
    with pytest.raises(SlurmError, match="Socket timed out"):
        SlurmJob(77, ("n1",), "n1").read_state()
    assert len(commands.calls()) == 4


def test_a_refused_call_is_not_repeated(commands):
    commands.add("scontrol", "echo 'Invalid job id specified' >&2; exit 1")
    with pytest.raises(SlurmError, match="Invalid job id"):
        SlurmJob(77, ("n1",), "n1").read_state()
    assert len(commands.calls()) == 1


def test_a_missing_command_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n1")
    assert main(["--run-dir", str(tmp_path), "--slots", "1", "true"]) == 4
    error = capsys.readouterr().err
    assert "scontrol is not on PATH" in error and error.count("\n") == 1


@pytest.mark.parametrize("zone", ["America/New_York", "Asia/Tokyo", "UTC"])
def test_the_end_of_the_job_has_no_time_zone(commands, monkeypatch, zone):
    """scontrol prints local time; a container may be in another zone."""
    commands.add("scontrol", f'[ -z "$SLURM_TIME_FORMAT" ] || exit 1; echo "{_record()}"')
    monkeypatch.setenv("SLURM_TIME_FORMAT", "relative")
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        end = SlurmJob(77, ("n1",), "n1").read_end()
    finally:
        monkeypatch.delenv("TZ")
        time.tzset()
    hours = {"America/New_York": 5, "Asia/Tokyo": -9, "UTC": 0}[zone]
    assert end == 1769882400.0 + hours * 3600  # 2026-01-31T18:00 UTC


def test_a_job_without_a_limit_has_no_end(commands):
    commands.add("scontrol", f'echo "{_record(at="Unknown")}"')
    assert SlurmJob(77, ("n1",), "n1").read_end() is None


def test_an_element_of_an_array_is_asked_for_and_requeued(commands, monkeypatch):
    """The last element of an array has the array's own id, which stands for all elements."""
    commands.add("scontrol", f'[ "$2" = hostnames ] && echo n1 || echo "{_record()}"')
    for name, value in {"JOB_ID": "77", "ARRAY_JOB_ID": "77", "ARRAY_TASK_ID": "3", "JOB_NODELIST": "n1"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    job = SlurmJob.current()
    assert job.id == 77 and job.name == "77_3"
    job.requeue("/x/medssr_ssl.sh", [], "/x/run")
    assert commands.calls()[1:] == ["scontrol --oneliner show job 77_3", "scontrol requeue 77_3"]


def test_a_job_that_was_submitted_is_not_submitted_again(commands):
    """sbatch got no answer, but the controller had taken the job."""
    commands.add("scontrol", f'echo "{_record(requeue=0)}"')
    commands.add("squeue", "echo 77; [ $n -lt 2 ] || echo 78")
    commands.add("sbatch", _BUSY)
    SlurmJob(77, ("n1",), "n1").requeue("/x/medssr_ssl.sh", ["a=1"], "/x/run")
    assert [call.split()[0] for call in commands.calls()].count("sbatch") == 1


def test_a_job_record_gives_the_options_to_submit_it_again():
    record = parse_job_record(
        "JobId=7 JobName=two words Partition=gpu Account=(null) QOS=normal TimeLimit=1-00:00:00 NumNodes=4 "
        "CPUs/Task=16 MinMemoryNode=0 TresPerNode=gres:gpu:8 Requeue=0 Command=/x/medssr_ssl.sh voting.samples=3"
    )
    assert record["Command"].endswith("medssr_ssl.sh voting.samples=3") and record["JobName"] == "two words"
    assert list_sbatch_options(record) == [
        "--partition=gpu",
        "--qos=normal",
        "--time=1-00:00:00",
        "--nodes=4",
        "--cpus-per-task=16",
        "--gres=gpu:8",
        "--job-name=two words",
    ]


@pytest.mark.parametrize(
    ("field", "option"),
    [
        ("TresPerJob=gres/gpu:8", "--gpus=8"),
        ("TresPerJob=gres:gpu:h100:8", "--gpus=h100:8"),
        ("TresPerTask=gres/gpu:4", "--gpus-per-task=4"),
        ("TresPerSocket=gres:gpu:2", "--gpus-per-socket=2"),
        ("TresPerNode=gres/gpu:h100:8", "--gres=gpu:h100:8"),
        ("TresPerNode=gres/gpu:4,gres/nvme:1", "--gres=gpu:4,nvme:1"),
        ("TresPerNode=gres:gpu:4,gres:nvme:1", "--gres=gpu:4,nvme:1"),
        ("ExcNodeList=n[7-9]", "--exclude=n[7-9]"),
        ("ReqNodeList=n1", "--nodelist=n1"),
        ("Licenses=matlab:1", "--licenses=matlab:1"),
        ("CpusPerTres=gres:gpu:8", "--cpus-per-gpu=8"),
        ("MemPerTres=gres/gpu:61440", "--mem-per-gpu=61440"),
        ("MinMemoryCPU=4000M", "--mem-per-cpu=4000M"),
        ("Comment=project=abc", "--comment=project=abc"),
    ],
)
def test_every_request_is_made_again(field, option):
    assert list_sbatch_options(parse_job_record(f"JobId=7 {field} ExcNodeLists=(null)")) == [option]


def test_the_submit_line_is_kept_where_slurm_has_it():
    record = parse_job_record(
        "JobId=7 TresPerNode=gres/gpu:1 SubmitLine=sbatch --nodes=4 --comment 'two words' slurm/medssr_ssl.sh a=1 B=2"
    )
    assert read_submit_line(record, "/home/x/slurm/medssr_ssl.sh") == ["--nodes=4", "--comment", "two words"]
    assert read_submit_line(record, "/home/x/slurm/vote.sh") == []
    assert read_submit_line({}, "/home/x/slurm/vote.sh") == []


def test_what_an_earlier_job_left_does_not_reach_srun():
    left = {"SLURM_MEM_PER_CPU": "4000", "SLURM_EXPORT_ENV": "NONE", "SLURM_NTASKS": "3", "MY_DATA": "/data"}
    assert clean_for_srun(left | {"SLURM_MEM_PER_NODE": "0"}) == {"SLURM_MEM_PER_NODE": "0", "MY_DATA": "/data"}
    assert clean_for_srun(left)["SLURM_MEM_PER_CPU"] == "4000"


def test_a_percent_sign_in_a_path_is_no_pattern_of_srun():
    command = build_srun_command(2, Path("/runs/lr 5%j/attempts/0001/%N.supervisor.log"), ["--x"])
    assert command[-2:] == ["--output=/runs/lr 5%%j/attempts/0001/%N.supervisor.log", "--x"]


@pytest.mark.parametrize("text", ["soon", "-1", "0", "inf", "nan"])
def test_a_limit_that_is_no_time_is_refused(monkeypatch, text):
    monkeypatch.setenv(JOIN_VARIABLE, text)
    with pytest.raises(InputError, match=f"MEDSSR_JOIN_S = '{text}' is not a time"):
        _limit(JOIN_VARIABLE)
