"""One arm as a run of `medssr`, as a user starts it: its config, what it takes over from the base arm, its commands."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from medssr_dist.bench.copied_runs import call_medssr, copy_steps
from medssr_dist.bench.method.arm_answers import ArmAnswers, make_answers, read_answers, write_answers
from medssr_dist.bench.method.arms import BASE, BASE_ARM, Arm
from medssr_dist.bench.method.controls import shuffle_kept_labels
from medssr_dist.config.load import merge_layers, read_layers
from medssr_dist.data.jsonl import read_json, write_atomic
from medssr_dist.data.records import hash_content, parse_record
from medssr_dist.evaluation.question_letters import read_question_letters
from medssr_dist.run.directory import RunDir
from medssr_dist.voting.quality_records import CurvePoint, VoteSummary

METHOD_CONFIG = Path(__file__).with_name("method.yaml")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ArmRun:
    """The run of an arm with one seed.

    Attributes:
        folder: the runs of all arms.
        steps: GRPO steps of every arm.
        settings: dotted keys that hold for all arms.
    """

    arm: Arm
    seed: int
    folder: Path
    steps: int
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def run(self) -> RunDir:
        """Its run directory."""
        return RunDir(self.folder / f"seed{self.seed}" / self.arm.name)

    @property
    def base(self) -> ArmRun:
        """The run of the base arm with the same seed."""
        return replace(self, arm=BASE_ARM)

    @property
    def answers_file(self) -> Path:
        """What is kept of the run when it has finished."""
        return self.folder.with_suffix(".answers") / f"{self.arm.name}_{self.seed}.json"

    def read_answers(self) -> ArmAnswers | None:
        """Return the answers of the finished run; None if it has not finished. Raises InputError as `read_answers`."""
        return read_answers(self.answers_file, self.hash_settings())

    def prepare(self) -> None:
        """Write and label the questions of the base arm that this run takes over, unless they are there."""
        for step in ("synthesize", "vote"):
            if not self.base.run.is_finished(step):
                self.base.call(step)

    def finish(self) -> None:
        """Run the arm to its end and keep its answers, unless they are there; a killed run is resumed.

        Raises:
            InputError: a command of the run has failed.
        """
        if self.read_answers():
            return
        _log.info("seed %d, %s", self.seed, self.arm.title)
        if self.arm.shares and not self.run.manifest_file.exists():
            self.take_over()
        if self.arm.name == BASE:
            self.prepare()
        if not self.run.is_finished("evaluate"):
            self.call("evaluate" if self.arm.name == BASE else "run")
        rows = read_question_letters(self.run.evaluation.letters)
        precision = read_precision(self.run) if self.arm.name == BASE else ()
        answers = make_answers(self.arm.name, self.seed, self.hash_settings(), rows, self.arm.policy, precision)
        write_answers(self.answers_file, answers)

    def call(self, command: str) -> None:
        """Call `medssr COMMAND` with the config of the arm."""
        call_medssr(command, write_config(self.run.root.with_suffix(".yaml"), self.list_settings()), self.run.root)

    def list_settings(self) -> Mapping[str, Any]:
        """Return the dotted keys in which the config of the arm differs from method.yaml."""
        return {**self.settings, **self.arm.make_settings(self.steps), "runtime.random_seed": self.seed}

    def hash_settings(self) -> str:
        """Return a hash of what method.yaml, the configs that it extends, and the arm set."""
        return hash_content([_read_common_settings(), self.list_settings()])

    def take_over(self) -> None:
        """Copy the results of the steps that the arm shares with the base arm of the same seed."""

        def change(copy: RunDir) -> None:
            if self.arm.shuffles:
                shuffle_kept_labels(copy.voting.labels, self.seed)

        copy_steps(self.base.run, self.run, self.arm.shares, change)


@cache
def _read_common_settings() -> dict[str, Any]:
    return merge_layers(read_layers(METHOD_CONFIG))


def read_precision(run: RunDir) -> tuple[CurvePoint, ...]:
    """Return the precision of the labels of a run by threshold."""
    file = run.voting.summary
    return parse_record(VoteSummary, read_json(file), str(file)).quality.curve


def write_config(file: Path, settings: Mapping[str, Any]) -> Path:
    """Write a config that extends method.yaml, with these values of dotted keys, to `file`; return it."""
    tree: dict[str, Any] = {"extends": str(METHOD_CONFIG)}
    for key, value in settings.items():
        *sections, last = key.split(".")
        place = tree
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    write_atomic(file, yaml.safe_dump(tree, sort_keys=False))
    return file
