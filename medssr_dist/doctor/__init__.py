"""`medssr doctor`: what would stop or slow a run, found before it does.

Each check is one small function from the config and the run directory to a Result; one that crashes is itself a
failed check. Which of them are made depends on where: on one machine that does it all, on a login node, on every
node of a job, and on its head for all of them.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from medssr_dist.config import Config
from medssr_dist.doctor import arithmetic, inputs, software, storage
from medssr_dist.doctor.forecast import walltime
from medssr_dist.doctor.gather import gather
from medssr_dist.doctor.node import check_node
from medssr_dist.doctor.result import Check, Result, print_table, run_check

__all__ = ["CHECKS", "LOGIN", "NODE", "Result", "doctor", "doctor_gather", "doctor_node", "run_check"]

_READ: dict[str, Check] = {
    "model": inputs.model,
    "knowledge": inputs.knowledge,
    "data": inputs.data,
    "tiktoken": inputs.vocabulary,
}
_ASKED: dict[str, Check] = {"endpoints": inputs.endpoints, "api keys": inputs.api_keys}
NODE: dict[str, Check] = {
    "packages": software.packages,
    "imports": software.imports,
    "compiler": software.compiler,
    "devices": software.devices,
    "limits": software.limits,
    "memory": storage.memory,
    "disk": storage.disk,
    "temp": storage.temp,
    "clock": storage.clock,
    **_READ,
}
HEAD: dict[str, Check] = {**_ASKED, "private": storage.private, "walltime": walltime}
CHECKS: dict[str, Check] = {**NODE, "gpus": arithmetic.arithmetic, **HEAD}
LOGIN: dict[str, Check] = {
    "packages": software.packages,
    "imports": software.imports,
    "disk": storage.disk,
    "clock": storage.clock,
    **_READ,
    "gpus": arithmetic.job_size,
    **HEAD,
}


def doctor(
    config: Config, run_dir: Path, dry_run: bool = False, login: bool = False, rates_from: Path | None = None
) -> int:
    """Run all checks of this machine and print them as a table. Returns 0, or 2 if one failed.

    Args:
        dry_run: only list the checks.
        login: this is a login node: what only the job's nodes can show is left to them.
        rates_from: an earlier run, whose rates predict this one's time.
    """
    checks = _with_rates(LOGIN if login else CHECKS, rates_from)
    if dry_run:
        print("doctor would check:", *checks, sep="\n  ")
        return 0
    return print_table((name, run_check(check, config, Path(run_dir))) for name, check in checks.items())


def doctor_node(config: Config, run_dir: Path, out: Path, wait_s: float) -> int:
    """Write this node's report to `out`. Returns 0 whatever was found: `doctor_gather` judges."""
    check_node(config, Path(run_dir), out, wait_s, NODE)
    return 0


def doctor_gather(config: Config, run_dir: Path, out: Path, rates_from: Path | None = None) -> int:
    """Print one table of all nodes' reports and of the whole job. Returns 0, or 2 if anything failed."""
    return gather(config, Path(run_dir), out, _with_rates(HEAD, rates_from))


def _with_rates(checks: dict[str, Check], rates_from: Path | None) -> dict[str, Check]:
    return checks | {"walltime": partial(walltime, rates_from=rates_from)}
