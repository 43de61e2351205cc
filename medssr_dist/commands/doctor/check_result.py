"""What a check finds, and the table that all of them make."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from medssr_dist.config.schema import Config
from medssr_dist.errors import EXIT_BAD_INPUT, InputError


@dataclass(frozen=True)
class CheckResult:
    """Outcome of a check. `fix`: one line, empty for a pass."""

    status: str  # pass, warn or fail
    detail: str
    fix: str = ""


Check = Callable[[Config, Path], CheckResult]


def run_check(check: Check, config: Config, run_dir: Path) -> CheckResult:
    """The check's result; what it raises is a failure with that message."""
    try:
        return check(config, run_dir)
    except InputError as error:
        detail, _, fix = str(error).rpartition("; ")
        return CheckResult("fail", detail or fix, fix)
    except Exception as error:  # one broken check must not hide the others
        return CheckResult("fail", f"the check itself failed: {type(error).__name__}: {error}", "report this")


def run_checks(checks: Mapping[str, Check], config: Config, run_dir: Path) -> dict[str, CheckResult]:
    """Results by name, in the order of `checks`. Imports, half of the time, are tried beside the others."""
    with ThreadPoolExecutor(1) as beside:
        importing = {
            name: beside.submit(run_check, checks[name], config, run_dir) for name in checks.keys() & {"imports"}
        }
        others = {name: run_check(check, config, run_dir) for name, check in checks.items() if name not in importing}
        found = others | {name: result.result() for name, result in importing.items()}
    return {name: found[name] for name in checks}


def print_table(rows: Iterable[tuple[str, CheckResult]]) -> int:
    """Print name, status, detail and fix of each row, and in the last line the counts with what failed.

    Returns 0, or 2 if anything failed.
    """
    rows = list(rows)
    width = max(12, *(len(name) for name, _ in rows))
    for name, result in rows:
        print(f"{result.status:<5} {name:<{width}} {result.detail}")
        if result.fix:
            print(f"{'':<{width + 6}} fix: {result.fix}")
    counts = [f"{sum(result.status == status for _, result in rows)} {status}" for status in ("pass", "warn", "fail")]
    failed = [f"{name}: {result.detail} (fix: {result.fix})" for name, result in rows if result.status == "fail"]
    print("; ".join([", ".join(counts), *failed]))
    return EXIT_BAD_INPUT if failed else 0
