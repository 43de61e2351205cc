"""One arm as a run of `medssr`, as a user starts it: its config, what it takes over from the base arm, its commands."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from medssr_dist.bench.method.arms import BASE, Arm
from medssr_dist.bench.method.controls import shuffle_kept_labels
from medssr_dist.data.jsonl import read_text, write_atomic
from medssr_dist.errors import InputError
from medssr_dist.run.directory import Manifest, RunDir

METHOD_CONFIG = Path(__file__).with_name("method.yaml")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ArmRun:
    """The run directory of an arm with one seed. `steps`: GRPO steps of every arm."""

    arm: Arm
    seed: int
    folder: Path
    steps: int

    @property
    def run(self) -> RunDir:
        """Its run directory."""
        return RunDir(self.folder / f"seed{self.seed}" / self.arm.name)

    def finish(self, settings: Mapping[str, Any]) -> None:
        """Run the arm to its end, unless it is there already; a killed one is resumed.

        Args:
            settings: dotted keys that hold for all arms.

        Raises:
            InputError: a command of the run has failed.
        """
        if self.run.is_finished("evaluate"):
            return
        _log.info("seed %d, %s", self.seed, self.arm.title)
        config = write_config(self.run.root.with_suffix(".yaml"), self.list_settings(settings))
        if self.arm.shares and not self.run.manifest_file.exists():
            self.take_over()
        for command in ("synthesize", "vote", "evaluate") if self.arm.name == BASE else ("run",):
            call_medssr(command, config, self.run.root)

    def list_settings(self, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the dotted keys of the arm. `settings`: those that hold for all arms."""
        return {**settings, **self.arm.make_settings(self.steps), "runtime.random_seed": self.seed}

    def take_over(self) -> None:
        """Copy the results of the steps that the arm shares with the base arm of the same seed."""
        source, run = RunDir(self.run.root.with_name(BASE)), self.run
        partial = run.root.with_name(f".{run.root.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        target = RunDir(partial)
        for step in self.arm.shares:
            shutil.copytree(source.step(step).folder, target.step(step).folder)
        if self.arm.shuffles:
            shuffle_kept_labels(target.voting.labels, self.seed)
        target.write_manifest(Manifest(steps={step: source.read_manifest().steps[step] for step in self.arm.shares}))
        partial.rename(run.root)


def write_config(file: Path, settings: Mapping[str, Any]) -> Path:
    """Write method.yaml with other values for some dotted keys to `file`; return it."""
    tree = yaml.safe_load(read_text(METHOD_CONFIG))
    for key, value in settings.items():
        *sections, last = key.split(".")
        place = tree
        for section in sections:
            place[section] = dict(place.get(section, {}))  # an alias of YAML is one object in two places
            place = place[section]
        place[last] = value
    write_atomic(file, yaml.safe_dump(tree, sort_keys=False))
    return file


def call_medssr(command: str, config: Path, run_dir: Path) -> None:
    """Call `medssr COMMAND` with its output in a file beside the config. Raises InputError if it fails."""
    log = config.with_suffix(".log")
    call = [sys.executable, "-m", "medssr_dist.cli", command, "--config", str(config), "--run-dir", str(run_dir)]
    with open(log, "ab") as output:
        done = subprocess.run(call, stdout=output, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        raise InputError(f"`medssr {command}` of {run_dir} ended with exit code {done.returncode}; see {log}")
