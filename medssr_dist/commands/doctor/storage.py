"""Checks of memory, of the places where a run writes, and of the clock. The places are checked by writing to them."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import time
from pathlib import Path

from medssr_dist.commands.doctor.check_result import CheckResult
from medssr_dist.commands.doctor.slurm_settings import list_job_hosts
from medssr_dist.commands.prefetch import format_size
from medssr_dist.config.schema import Config
from medssr_dist.errors import InputError
from medssr_dist.estimates.memory import count_parameters, estimate_checkpoint_bytes, estimate_memory

_WRITTEN_BYTES = 32 * 2**20
_WRITTEN_FILES = 32
_FEWEST_FILES = 10_000  # free inodes; a run with both stages creates a few thousand files
_COMFORTABLE_SHARE = 0.85  # of the free memory
_COMFORTABLE_TEMP = 10 * 10**9  # Ray writes its logs and spilled objects there
_COMFORTABLE_SHM = 2**30  # Ray keeps its object store there, and the processes of an engine exchange data there
# Longest path of a Unix socket, minus what Ray and the run append
_LONGEST_TEMP = 107 - 64 - len(f"/medssr-ray-{os.getuid()}/12345678")
_CLOCK_WARN_S, _CLOCK_FAIL_S = 2.0, 60.0


def check_memory(config: Config, run_dir: Path) -> CheckResult:
    """Compare estimated with free memory. On CPU each node is assumed to get an equal share of the run."""
    from medssr_dist.runtime.device import on_gpu

    parameters = _known_parameters(config)
    if parameters is None:
        return CheckResult("warn", "not estimated: the policy is not on this machine", "see 'model'")
    demands, nodes = estimate_memory(config, parameters), 1 if on_gpu() else len(list_job_hosts())
    detail = "; ".join(
        f"{demand.what} needs about {format_size(demand.needed / nodes)} of {format_size(demand.available)} free"
        for demand in demands
    )
    detail = f"{parameters / 1e6:,.0f}M parameters, roughly: {detail}"
    fix = "smaller policy.model, fewer engines, runtime.mode=sequential; on GPU more ranks, training.offload_optimizer"
    worst = max(demand.needed / nodes / demand.available for demand in demands)
    if worst > 1:
        return CheckResult("fail", detail, fix)
    return CheckResult("warn", detail, fix) if worst > _COMFORTABLE_SHARE else CheckResult("pass", detail)


def check_disk(config: Config, run_dir: Path) -> CheckResult:
    """Write bytes and files where the run directory will be; compare free space and inodes with the estimate."""
    target = find_existing_parent(run_dir)
    try:
        seconds = _measure_write(target)
    except OSError as error:
        return CheckResult(
            "fail", f"cannot write in {target} ({error.strerror})", "free space or give another --run-dir"
        )
    parameters, free, inodes = _known_parameters(config), shutil.disk_usage(target).free, os.statvfs(target)
    detail = f"{target}: {format_size(_WRITTEN_BYTES)} and {_WRITTEN_FILES} files written in {seconds:.1f} s, "
    detail += f"{format_size(free)} free"
    if inodes.f_files and inodes.f_favail < _FEWEST_FILES:
        return CheckResult(
            "fail", f"{detail}, {inodes.f_favail:,} inodes free", "delete files or give another --run-dir"
        )
    if parameters is None:
        return CheckResult("warn", f"{detail}, checkpoints not estimated", "see 'model'")
    needed = estimate_checkpoint_bytes(config, parameters)
    detail += f", checkpoints take up to {format_size(needed)}"
    fix = "free space, give another --run-dir, or lower training.*.keep_checkpoints"
    return CheckResult("pass", detail) if free > needed else CheckResult("fail", detail, fix)


def _measure_write(target: Path) -> float:
    """Write some bytes and files, delete them, and return the seconds that it took.

    Raises:
        OSError: the file system is full, over quota or read-only.
    """
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=target, prefix=".medssr-doctor-") as folder:
        for number in range(_WRITTEN_FILES):
            Path(folder, str(number)).touch()
        with open(Path(folder, "bytes"), "wb") as file:
            file.write(os.urandom(2**20) * (_WRITTEN_BYTES // 2**20))
            file.flush()
            os.fsync(file.fileno())
    return time.monotonic() - started


def find_existing_parent(run_dir: Path) -> Path:
    """Return the run directory, or the closest parent that exists."""
    return next(folder for folder in (run_dir.resolve(), *run_dir.resolve().parents) if folder.exists())


def check_private(config: Config, run_dir: Path) -> CheckResult:
    """Check owner and mode of a run directory that already exists: other users must not write to it."""
    if not run_dir.exists():
        return CheckResult("pass", f"{run_dir} will be created for its user alone")
    info = run_dir.stat()
    mode = stat.S_IMODE(info.st_mode)
    if info.st_uid != os.getuid():
        return CheckResult("fail", f"{run_dir} belongs to user {info.st_uid}", "give another --run-dir")
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        return CheckResult("fail", f"{run_dir} has mode {mode:04o}: others may write", f"chmod 700 {run_dir}")
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        return CheckResult("warn", f"{run_dir} has mode {mode:04o}: others may list it", f"chmod 700 {run_dir}")
    return CheckResult("pass", f"{run_dir} is its user's alone")


def check_temp(config: Config, run_dir: Path) -> CheckResult:
    """Check the local folder for the sockets and spilled objects of Ray, and the shared memory."""
    folder = Path(os.environ.get("MEDSSR_SCRATCH") or tempfile.gettempdir())
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        return CheckResult(
            "fail", f"cannot write in {folder} ({error.strerror})", "set MEDSSR_SCRATCH to a local folder"
        )
    free, shm = shutil.disk_usage(folder).free, shutil.disk_usage("/dev/shm").free
    detail = f"{folder}: {format_size(free)} free; /dev/shm: {format_size(shm)} free"
    if len(str(folder)) > _LONGEST_TEMP:
        fix = f"set MEDSSR_SCRATCH to a path of at most {_LONGEST_TEMP} characters: Ray's sockets lie below it"
        return CheckResult(
            "warn", f"{folder} is {len(str(folder))} characters long: Ray's temporary files go to /tmp", fix
        )
    if shm < _COMFORTABLE_SHM:
        return CheckResult(
            "warn", detail, "remove left-over files in /dev/shm; in a container give it more (--shm-size)"
        )
    if free < _COMFORTABLE_TEMP:
        return CheckResult("warn", detail, "set MEDSSR_SCRATCH to a local folder with more room")
    return CheckResult("pass", detail)


def check_clock(config: Config, run_dir: Path) -> CheckResult:
    """Compare the clock of this machine with that of the file system of the run directory."""
    with tempfile.NamedTemporaryFile(dir=find_existing_parent(run_dir), prefix=".medssr-doctor-") as file:
        file.write(b"now")
        file.flush()
        os.fsync(file.fileno())
        seconds = abs(os.fstat(file.fileno()).st_mtime - time.time())
    return judge_clock(seconds, "the run directory's file system")


def judge_clock(seconds: float, other: str) -> CheckResult:
    """Return the result for a clock that differs by `seconds` from the clock of `other`."""
    detail, fix = f"{seconds:.1f} s apart from {other}", "repair the time service of the node (chrony, ntpd)"
    if seconds > _CLOCK_FAIL_S:
        return CheckResult("fail", detail, fix)
    return CheckResult("warn", detail, fix) if seconds > _CLOCK_WARN_S else CheckResult("pass", detail)


def _known_parameters(config: Config) -> int | None:
    """Return the parameters of the policy; None if it is not on this machine, which another check reports."""
    try:
        return count_parameters(config.policy)
    except InputError:
        return None
