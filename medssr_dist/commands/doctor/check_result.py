"""The result of a check, running checks, and the table of results that all forms of the doctor print."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from medssr_dist.config.schema import Config
from medssr_dist.errors import EXIT_BAD_INPUT, InputError
from medssr_dist.runtime.failures import describe_foreseen

Status = Literal["pass", "warn", "fail"]
_SLOW = {"imports"}  # checks that run in parallel to the others


@dataclass(frozen=True)
class CheckResult:
    """Result of one check.

    Example:
        CheckResult("fail", "/scratch is full", fix="free space or give another --run-dir")

    Attributes:
        status: "pass", "warn" or "fail".
        detail: what was found, in one line.
        fix: what the user can do about it, in one line; empty for a pass.
    """

    status: Status
    detail: str
    fix: str = ""


class ResultRow(NamedTuple):
    """One row of the table of results. Example: ResultRow("disk", CheckResult("pass", "2.1 TB free"))."""

    name: str
    result: CheckResult


Check = Callable[[Config, Path], CheckResult]  # called with the config and the run directory


def run_check(check: Check, config: Config, run_dir: Path) -> CheckResult:
    """Run a check and return its result. An exception in the check becomes a failure with its message."""
    try:
        return check(config, run_dir)
    except Exception as error:  # the other checks still have to run
        if foreseen := str(error) if isinstance(error, InputError) else describe_foreseen(error):
            detail, _, fix = foreseen.rpartition("; ")
            return CheckResult("fail", detail or fix, fix)
        return CheckResult("fail", f"the check itself failed: {type(error).__name__}: {error}", "report this")


def run_checks(checks: Mapping[str, Check], config: Config, run_dir: Path) -> dict[str, CheckResult]:
    """Return the results by name, in the order of `checks`. Slow checks run in parallel to the others."""
    with ThreadPoolExecutor(1) as pool:
        slow = {name: pool.submit(run_check, checks[name], config, run_dir) for name in checks if name in _SLOW}
        results = {name: run_check(check, config, run_dir) for name, check in checks.items() if name not in slow}
        results |= {name: future.result() for name, future in slow.items()}
    return {name: results[name] for name in checks}


def print_table(rows: Iterable[ResultRow]) -> int:
    """Print name, status, detail and fix of each row. The last line has the counts and all failures.

    Returns:
        The exit code: 0, or 2 if a check failed.
    """
    rows = list(rows)
    width = max(12, *(len(row.name) for row in rows))
    for name, result in rows:
        print(f"{result.status:<5} {name:<{width}} {result.detail}")
        if result.fix:
            print(f"{'':<{width + 6}} fix: {result.fix}")
    counts = [f"{sum(row.result.status == status for row in rows)} {status}" for status in ("pass", "warn", "fail")]
    failed = [f"{name}: {result.detail} (fix: {result.fix})" for name, result in rows if result.status == "fail"]
    print("; ".join([", ".join(counts), *failed]))
    return EXIT_BAD_INPUT if failed else 0
