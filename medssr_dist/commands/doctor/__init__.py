"""`medssr doctor`: what would stop or slow a run, found before it does.

Each check is one small function from the config and the run directory to a Result; one that crashes is itself a
failed check. Which of them are made depends on where: on one machine that does it all, on a login node, on every
node of a job, and on its head for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from medssr_dist.commands.doctor import arithmetic, inputs, software, storage
from medssr_dist.commands.doctor.gather import gather
from medssr_dist.commands.doctor.node import check_node
from medssr_dist.commands.doctor.result import Check, Result, print_table, run_check, run_checks
from medssr_dist.commands.doctor.walltime_check import walltime
from medssr_dist.config.schema import Config

__all__ = ["CHECKS", "Form", "LOGIN", "NODE", "Result", "doctor", "doctor_gather", "doctor_node", "run_check"]

_READ: dict[str, Check] = {
    "model": inputs.model,
    "knowledge": inputs.knowledge,
    "data": inputs.data,
    "tiktoken": inputs.vocabulary,
    "trackers": inputs.trackers,
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


_FOR_SYNTHESIS_ALONE = {"knowledge", "endpoints", "api keys"}
_NOT_FOR_SYNTHESIS = {"imports", "compiler", "devices", "memory", "model", "gpus", "trackers"}


@dataclass(frozen=True)
class Form:
    """Which checks are made.

    Attributes:
        step: a step of the method, or run for all of them.
        login: this is a login node: what only the job's nodes can show is left to them.
        rates_from: an earlier run, whose rates predict this one's time.
    """

    step: str = "run"
    login: bool = False
    rates_from: Path | None = None

    def select(self, checks: dict[str, Check]) -> dict[str, Check]:
        """Those of `checks` that the step needs."""
        left_out = {"run": set(), "synthesize": _NOT_FOR_SYNTHESIS}.get(self.step, _FOR_SYNTHESIS_ALONE)
        kept = {name: check for name, check in checks.items() if name not in left_out}
        return kept | ({"walltime": partial(walltime, rates_from=self.rates_from)} if "walltime" in kept else {})


def doctor(config: Config, run_dir: Path, form: Form, dry_run: bool = False) -> int:
    """Run all checks of this machine and print them as a table. Returns 0, or 2 if one failed.

    Args:
        dry_run: only list the checks.
    """
    checks = form.select(LOGIN if form.login else CHECKS)
    if dry_run:
        print("doctor would check:", *checks, sep="\n  ")
        return 0
    return print_table(run_checks(checks, config, Path(run_dir)).items())


def doctor_node(config: Config, run_dir: Path, form: Form, out: Path, wait_s: float) -> int:
    """Write this node's report to `out`. Returns 0 whatever was found: `doctor_gather` judges."""
    check_node(config, Path(run_dir), out, wait_s, form.select(NODE))
    return 0


def doctor_gather(config: Config, run_dir: Path, form: Form, out: Path) -> int:
    """Print one table of all nodes' reports and of the whole job. Returns 0, or 2 if anything failed."""
    return gather(config, Path(run_dir), out, form.select(HEAD), needs_gpus=form.step != "synthesize")
