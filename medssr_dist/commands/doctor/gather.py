"""`medssr doctor --gather`: one table from the reports of all nodes, and the checks that need all nodes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from medssr_dist.commands.doctor.check_result import Check, CheckResult, ResultRow, print_table, run_check
from medssr_dist.commands.doctor.gpu_count import compare_gpus
from medssr_dist.commands.doctor.node_report import NodeReport, read_reports
from medssr_dist.commands.doctor.slurm_settings import list_job_hosts
from medssr_dist.commands.doctor.storage import judge_clock
from medssr_dist.config.schema import Config
from medssr_dist.errors import InputError

_SHOWN_NODES = 4


def gather_reports(
    config: Config, run_dir: Path, out: Path, checks: Mapping[str, Check], needs_gpus: bool = True
) -> int:
    """Print the table of the job.

    Args:
        out: folder with the reports of the nodes.
        checks: checks that one node runs for the whole job.
        needs_gpus: False for a job that only writes questions.

    Returns:
        The exit code: 0, or 2 if a check failed on any node.

    Raises:
        InputError: no node has reported.
    """
    reports = read_reports(Path(out))
    if not reports:
        raise InputError(f"{out} holds no report; run `medssr doctor --node --out {out}` on every node first")
    versions = {host: report.versions for host, report in reports.items()}
    models = {host: report.model or "no model" for host, report in reports.items()}
    rows = [ResultRow("nodes", _check_nodes(reports)), *merge_reports(reports)]
    rows.append(ResultRow("same code", _compare_versions(versions)))
    rows.append(ResultRow("same model", _compare_models(models)))
    rows.append(ResultRow("clocks", _compare_clocks(reports)))
    if needs_gpus:
        rows.append(ResultRow("gpus", compare_gpus(config, {host: report.gpus for host, report in reports.items()})))
    rows += [ResultRow(name, run_check(check, config, run_dir)) for name, check in checks.items()]
    return print_table(rows)


def _check_nodes(reports: Mapping[str, NodeReport]) -> CheckResult:
    absent = [host for host in list_job_hosts() if host not in reports]
    if absent:
        fix = "the node is down, or the run directory is not on a file system that all nodes share: see its log"
        return CheckResult("fail", f"no report from {_join_names(absent)}", fix)
    return CheckResult("pass", ", ".join(f"{host} {report.address}" for host, report in reports.items()))


def merge_reports(reports: Mapping[str, NodeReport]) -> list[ResultRow]:
    """Return one row for each check that passes on all nodes, and one for each different problem with its nodes."""
    rows = []
    for check in dict.fromkeys(name for report in reports.values() for name in report.results):
        found = {host: report.results[check] for host, report in reports.items() if check in report.results}
        hosts_by_problem: dict[CheckResult, list[str]] = {}
        for host, result in found.items():
            if result.status != "pass":
                hosts_by_problem.setdefault(result, []).append(host)
        if not hosts_by_problem:
            host, first = next(iter(found.items()))
            all_pass = "" if len(found) == 1 else f" [{host}; all {len(found)} pass]"
            rows.append(ResultRow(check, CheckResult("pass", first.detail + all_pass)))
        for result, hosts in hosts_by_problem.items():
            rows.append(
                ResultRow(check, CheckResult(result.status, f"{_join_names(hosts)}: {result.detail}", result.fix))
            )
    return rows


def _compare_versions(versions: Mapping[str, Mapping[str, str]]) -> CheckResult:
    """Check that all nodes have the same versions. The result names the first node that differs."""
    (first, expected), *others = versions.items()
    for host, found in others:
        if found != expected:
            detail = f"{first} has {_list_differences(expected, found)}, {host} {_list_differences(found, expected)}"
            return CheckResult("fail", detail, "run launch/install.sh, or share one environment")
    return _report_alike(len(versions))


def _list_differences(one: Mapping[str, str], other: Mapping[str, str]) -> str:
    """Return the versions in `one` that `other` does not have."""
    return ", ".join(f"{name} {version}" for name, version in one.items() if other.get(name) != version) or "no more"


def _compare_models(models: Mapping[str, str]) -> CheckResult:
    """Check that all nodes have the same policy in the same directory."""
    (first, expected), *others = models.items()
    for host, found in others:
        if found != expected:
            detail = f"{first} has {expected}, {host} {found}"
            return CheckResult("fail", detail, "keep policy.model on a shared file system")
    return _report_alike(len(models))


def _report_alike(nodes: int) -> CheckResult:
    return CheckResult("pass", f"on all {nodes} nodes" if nodes > 1 else "one node")


def _compare_clocks(reports: Mapping[str, NodeReport]) -> CheckResult:
    differences = {
        (host, other): abs(offset) for host, report in reports.items() for other, offset in report.clock_offsets.items()
    }
    if not differences:
        return CheckResult("pass", "no other node's clock to compare with")
    (host, other), seconds = max(differences.items(), key=lambda pair: pair[1])
    return judge_clock(seconds, f"one another at most ({host}, {other})")


def _join_names(hosts: list[str]) -> str:
    more = f" and {len(hosts) - _SHOWN_NODES} more" if len(hosts) > _SHOWN_NODES else ""
    return ", ".join(hosts[:_SHOWN_NODES]) + more
