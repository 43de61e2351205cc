"""`medssr doctor`: find what would stop or slow down a run, before the run starts.

Each check is a small function from the config and the run directory to a CheckResult. A check that crashes counts as
failed. The selection of checks depends on the place: a single machine, a login node, every node of a job, or the head
node of a job.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from medssr_dist.commands.doctor import gpu_count, inputs, software, storage
from medssr_dist.commands.doctor.check_result import Check, CheckResult, ResultRow, print_table, run_check, run_checks
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

_DATA_CHECKS: dict[str, Check] = {
    "model": inputs.check_model,
    "prompt": inputs.check_prompt,
    "knowledge": inputs.check_knowledge,
    "data": inputs.check_data,
    "tiktoken": inputs.check_vocabulary,
    "trackers": inputs.check_tracking,
}
_ENDPOINT_CHECKS: dict[str, Check] = {"endpoints": inputs.check_endpoints, "api keys": inputs.check_api_keys}
NODE: dict[str, Check] = {
    "packages": software.check_packages,
    "imports": software.check_imports,
    "compiler": software.check_compiler,
    "devices": software.check_devices,
    "limits": software.check_limits,
    "caches": software.check_caches,
    "fabric": software.check_fabric,
    "memory": storage.check_memory,
    "disk": storage.check_disk,
    "temp": storage.check_temp,
    "clock": storage.check_clock,
    **_DATA_CHECKS,
}
HEAD: dict[str, Check] = {**_ENDPOINT_CHECKS, "private": storage.check_private, "walltime": check_walltime}
CHECKS: dict[str, Check] = {**NODE, "gpus": gpu_count.check_gpus, **HEAD}
LOGIN: dict[str, Check] = {
    "packages": software.check_packages,
    "imports": software.check_imports,
    "disk": storage.check_disk,
    "clock": storage.check_clock,
    **_DATA_CHECKS,
    "gpus": gpu_count.check_job_size,
    **HEAD,
}


_ONLY_FOR_SYNTHESIS = {"knowledge", "endpoints", "api keys"}
_NOT_FOR_SYNTHESIS = {"imports", "compiler", "devices", "caches", "fabric", "memory"}
_NOT_FOR_SYNTHESIS |= {"model", "prompt", "gpus", "trackers"}


@dataclass(frozen=True)
class DoctorForm:
    """Selection of checks.

    Example:
        DoctorForm(step="vote", login=True, rates_from=Path("runs/demo"))

    Attributes:
        step: a step of the method, or "run" for all steps.
        login: whether this is a login node; checks that need a node of the job are then left out.
        rates_from: an earlier run, whose rates predict the time of this run.
    """

    step: str = "run"
    login: bool = False
    rates_from: Path | None = None

    def select(self, checks: Mapping[str, Check]) -> dict[str, Check]:
        """Return those of `checks` that the step needs."""
        left_out = {"run": set(), "synthesize": _NOT_FOR_SYNTHESIS}.get(self.step, _ONLY_FOR_SYNTHESIS)
        kept = {name: check for name, check in checks.items() if name not in left_out}
        if "walltime" in kept:
            kept["walltime"] = partial(check_walltime, rates_from=self.rates_from)
        return kept


def run_doctor(config: Config, run_dir: Path, form: DoctorForm, dry_run: bool = False) -> int:
    """Run all checks on this machine and print a table of the results.

    Args:
        dry_run: only list the checks.

    Returns:
        The exit code: 0, or 2 if a check failed.
    """
    checks = form.select(LOGIN if form.login else CHECKS)
    if dry_run:
        print("doctor would check:", *checks, sep="\n  ")
        return 0
    results = run_checks(checks, config, Path(run_dir))
    return print_table(ResultRow(name, result) for name, result in results.items())


def run_doctor_on_node(config: Config, run_dir: Path, form: DoctorForm, out: Path, wait_s: float) -> int:
    """Write the report of this node to `out`. Return 0 whatever was found: `run_doctor_on_job` judges the reports."""
    check_node(config, Path(run_dir), Path(out), wait_s, form.select(NODE))
    return 0


def run_doctor_on_job(config: Config, run_dir: Path, form: DoctorForm, out: Path) -> int:
    """Print one table of the reports of all nodes and of the checks of the whole job. Return the exit code, 0 or 2."""
    return gather_reports(config, Path(run_dir), out, form.select(HEAD), needs_gpus=form.step != "synthesize")
