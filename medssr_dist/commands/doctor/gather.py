"""`medssr doctor --gather`: one table from the reports of all nodes, and what only they together show."""

from __future__ import annotations

from pathlib import Path

from medssr_dist.commands.doctor.check_result import Check, CheckResult, print_table, run_check
from medssr_dist.commands.doctor.gpu_count import compare_gpus
from medssr_dist.commands.doctor.slurm_settings import list_job_hosts
from medssr_dist.commands.doctor.storage import judge_clock
from medssr_dist.config.schema import Config
from medssr_dist.data.jsonl import read_json
from medssr_dist.errors import InputError

_SHOWN_NODES = 4


def gather_reports(config: Config, run_dir: Path, out: Path, checks: dict[str, Check], needs_gpus: bool = True) -> int:
    """Print the job's table. Returns 0, or 2 if anything failed on any node.

    Args:
        checks: those that one node makes for all.
        needs_gpus: false for a job that only writes questions.
    Raises:
        InputError: no node has reported.
    """
    files = [file for file in sorted(Path(out).glob("*.json")) if not file.name.endswith(".address.json")]
    reports = {report["host"]: report for report in map(read_json, files)}
    if not reports:
        raise InputError(f"{out} holds no report; run `medssr doctor --node --out {out}` on every node first")
    rows = [("nodes", _nodes(reports)), *merge_reports(reports)]
    rows.append(("same code", _alike(reports, "versions", "run launch/install.sh, or share one environment")))
    rows.append(("same model", _alike(reports, "model", "keep policy.model on a shared file system")))
    rows.append(("clocks", _clocks(reports)))
    if needs_gpus:
        rows.append(("gpus", compare_gpus(config, {host: report["gpus"] for host, report in reports.items()})))
    rows += [(name, run_check(check, config, run_dir)) for name, check in checks.items()]
    return print_table(rows)


def _nodes(reports: dict[str, dict]) -> CheckResult:
    absent = [host for host in list_job_hosts() if host not in reports]
    if absent:
        fix = "the node is down, or the run directory is not on a file system that all nodes share: see its log"
        return CheckResult("fail", f"no report from {_named(absent)}", fix)
    return CheckResult("pass", ", ".join(f"{host} {report['address']}" for host, report in reports.items()))


def merge_reports(reports: dict[str, dict]) -> list[tuple[str, CheckResult]]:
    """One row a check where all nodes pass, else one for each thing that is wrong, with the nodes it is wrong on."""
    rows = []
    for check in dict.fromkeys(name for report in reports.values() for name in report["results"]):
        found = {
            host: CheckResult(**report["results"][check])
            for host, report in reports.items()
            if check in report["results"]
        }
        bad = {result: [] for result in found.values() if result.status != "pass"}
        for host, result in found.items():
            if result in bad:
                bad[result].append(host)
        if not bad:
            host, first = next(iter(found.items()))
            alike = "" if len(found) == 1 else f" [{host}; all {len(found)} pass]"
            rows.append((check, CheckResult("pass", first.detail + alike)))
        rows += [
            (check, CheckResult(result.status, f"{_named(hosts)}: {result.detail}", result.fix))
            for result, hosts in bad.items()
        ]
    return rows


def _alike(reports: dict[str, dict], key: str, fix: str) -> CheckResult:
    """Whether all nodes report the same `key`; names the first that does not."""
    (first, report), *others = reports.items()
    for host, other in others:
        if other[key] != report[key]:
            return CheckResult(
                "fail",
                f"{first} has {_difference(report[key], other[key])}, {host} {_difference(other[key], report[key])}",
                fix,
            )
    return CheckResult("pass", f"on all {len(reports)} nodes" if others else "one node")


def _difference(one: object, other: object) -> str:
    """What `one` holds that `other` does not."""
    if not isinstance(one, dict) or not isinstance(other, dict):
        return str(one)
    return ", ".join(f"{name} {value}" for name, value in one.items() if other.get(name) != value) or "no more"


def _clocks(reports: dict[str, dict]) -> CheckResult:
    pairs = {
        (host, other): abs(offset)
        for host, report in reports.items()
        for other, offset in report["clock_offsets"].items()
    }
    if not pairs:
        return CheckResult("pass", "no other node's clock to compare with")
    (host, other), apart = max(pairs.items(), key=lambda pair: pair[1])
    return judge_clock(apart, f"one another at most ({host}, {other})")


def _named(hosts: list[str]) -> str:
    more = f" and {len(hosts) - _SHOWN_NODES} more" if len(hosts) > _SHOWN_NODES else ""
    return ", ".join(hosts[:_SHOWN_NODES]) + more
