"""`medssr doctor`: what would stop or slow a run, found before it does.

Each check is one small function from the config and the run directory to a CheckResult; one that crashes is itself a
failed check. Which of them are made depends on where: on one machine that does it all, on a login node, on every
node of a job, and on its head for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from medssr_dist.commands.doctor import gpu_count, inputs, software, storage
from medssr_dist.commands.doctor.check_result import Check, CheckResult, print_table, run_check, run_checks
from medssr_dist.commands.doctor.gather import gather_reports
from medssr_dist.commands.doctor.node import check_node
from medssr_dist.commands.doctor.walltime_check import check_walltime
from medssr_dist.config.schema import Config

__all__ = [
    "CHECKS",
    "LOGIN",
    "NODE",
    "CheckResult",
    "DoctorForm",
    "run_check",
    "run_doctor",
    "run_doctor_on_job",
    "run_doctor_on_node",
]

_READ: dict[str, Check] = {
    "model": inputs.check_model,
    "knowledge": inputs.check_knowledge,
    "data": inputs.check_data,
    "tiktoken": inputs.check_vocabulary,
    "trackers": inputs.check_tracking,
}
_ASKED: dict[str, Check] = {"endpoints": inputs.check_endpoints, "api keys": inputs.check_api_keys}
NODE: dict[str, Check] = {
    "packages": software.check_packages,
    "imports": software.check_imports,
    "compiler": software.check_compiler,
    "devices": software.check_devices,
    "limits": software.check_limits,
    "memory": storage.check_memory,
    "disk": storage.check_disk,
    "temp": storage.check_temp,
    "clock": storage.check_clock,
    **_READ,
}
HEAD: dict[str, Check] = {**_ASKED, "private": storage.check_private, "walltime": check_walltime}
CHECKS: dict[str, Check] = {**NODE, "gpus": gpu_count.check_gpus, **HEAD}
LOGIN: dict[str, Check] = {
    "packages": software.check_packages,
    "imports": software.check_imports,
    "disk": storage.check_disk,
    "clock": storage.check_clock,
    **_READ,
    "gpus": gpu_count.check_job_size,
    **HEAD,
}


_FOR_SYNTHESIS_ALONE = {"knowledge", "endpoints", "api keys"}
_NOT_FOR_SYNTHESIS = {"imports", "compiler", "devices", "memory", "model", "gpus", "trackers"}


@dataclass(frozen=True)
class DoctorForm:
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
        return kept | ({"walltime": partial(check_walltime, rates_from=self.rates_from)} if "walltime" in kept else {})


def run_doctor(config: Config, run_dir: Path, form: DoctorForm, dry_run: bool = False) -> int:
    """Run all checks of this machine and print them as a table. Returns 0, or 2 if one failed.

    Args:
        dry_run: only list the checks.
    """
    checks = form.select(LOGIN if form.login else CHECKS)
    if dry_run:
        print("doctor would check:", *checks, sep="\n  ")
        return 0
    return print_table(run_checks(checks, config, Path(run_dir)).items())


def run_doctor_on_node(config: Config, run_dir: Path, form: DoctorForm, out: Path, wait_s: float) -> int:
    """Write this node's report to `out`. Returns 0 whatever was found: `run_doctor_on_job` judges."""
    check_node(config, Path(run_dir), out, wait_s, form.select(NODE))
    return 0


def run_doctor_on_job(config: Config, run_dir: Path, form: DoctorForm, out: Path) -> int:
    """Print one table of all nodes' reports and of the whole job. Returns 0, or 2 if anything failed."""
    return gather_reports(config, Path(run_dir), out, form.select(HEAD), needs_gpus=form.step != "synthesize")
