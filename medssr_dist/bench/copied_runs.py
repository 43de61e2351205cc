"""Runs of a benchmark that start from finished steps of another run, and commands called as a user calls them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medssr_dist.data.jsonl import JsonlLedger
from medssr_dist.data.records import Label
from medssr_dist.errors import InputError
from medssr_dist.run.directory import Manifest, RunDir, StepRecord


def copy_steps(
    source: RunDir,
    target: RunDir,
    steps: Sequence[str],
    change: Callable[[RunDir], None],
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Make the new run `target` with finished steps of `source`.

    A folder without a manifest at its place, such as a killed call can leave, is replaced.

    Args:
        steps: names of the steps.
        change: is called with the copy before it stands at its place, to change files in it.
        settings: dotted keys in which `target` is meant to differ although these steps were run without.
    """
    partial = target.root.with_name(f".{target.root.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    copy, found = RunDir(partial), source.read_manifest().steps
    for step in steps:
        shutil.copytree(source.step(step).folder, copy.step(step).folder)
    change(copy)
    records = {step: _change_settings(found[step], settings or {}) for step in steps}
    copy.write_manifest(Manifest(steps=records))
    if not target.manifest_file.exists():
        shutil.rmtree(target.root, ignore_errors=True)
    partial.rename(target.root)


def _change_settings(record: StepRecord, settings: Mapping[str, Any]) -> StepRecord:
    changed = {key: settings.get(key, value) for key, value in record.settings.items()}
    return record.model_copy(update={"settings": changed})


def replace_labels(file: Path, labels: Iterable[Label]) -> None:
    """Replace a labeled.jsonl by another one."""
    file.unlink(missing_ok=True)
    with JsonlLedger(file) as ledger:
        ledger.append(*(label.model_dump(mode="json") for label in labels))


def call_medssr(command: str, config: Path, run_dir: Path, overrides: Sequence[str] = ()) -> None:
    """Call `medssr COMMAND`; its output goes into RUN_DIR.log. Raises InputError if it fails."""
    log = run_dir.with_name(f"{run_dir.name}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    call = [sys.executable, "-m", "medssr_dist.cli", command, "--config", str(config), "--run-dir", str(run_dir)]
    with open(log, "ab") as output:
        done = subprocess.run([*call, *overrides], stdout=output, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        raise InputError(f"`medssr {command}` of {run_dir} ended with exit code {done.returncode}; see {log}")


def check_parallel(parallel: int) -> None:
    """Raise InputError if `parallel`, the number of runs at the same time, is below 1."""
    if parallel < 1:
        raise InputError(f"--parallel is {parallel}; give the number of runs at the same time, at least 1")
