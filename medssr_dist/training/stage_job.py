"""The task of one GRPO stage, and its results."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from medssr_dist.config.schema import Config
from medssr_dist.config.training import Stage
from medssr_dist.data.jsonl import read_json
from medssr_dist.data.records import Question, parse_record
from medssr_dist.run.paths import StagePaths
from medssr_dist.training.vote_access import VoteFunction, VoteSource
from medssr_dist.training.weights.checkpoints import Checkpoint


@dataclass(frozen=True)
class StageJob:
    """The task of one stage.

    name: stage1 or stage2. config: config of the run, without secrets. stage: config of the stage. model: folder of the
    model that it starts from. reference: folder of the model that the KL is measured against. folder: where it writes.
    data: description of the training data for the model card, one sentence. expected_steps: for the learning-rate
    schedule; exact unless the stage is one pass over a stream. checkpoint: the one that it resumes from. end: when it
    will be ended from outside, seconds since the epoch. validation: questions of `training.validate`. votes: on the
    questions of stage 1, if they are its first rollouts. revote: lets the policy vote again on questions.
    """

    name: str
    config: Config
    stage: Stage
    model: Path
    reference: Path
    folder: Path
    data: str
    expected_steps: int
    checkpoint: Checkpoint | None
    end: float | None
    validation: tuple[Question, ...] = ()
    votes: VoteSource | None = None
    revote: VoteFunction | None = None

    @property
    def paths(self) -> StagePaths:
        """The files in `folder`."""
        return StagePaths(self.folder)


@dataclass(frozen=True)
class StageCounts:
    """What a stage counted, how it ended, and what it publishes.

    prompts: prompts drawn. skipped_too_long: examples whose prompt left no room for an answer. old_logprobs: where the
    log-probs before the update came from, for readers. published_step: the published policy was trained for so many
    steps; None: for all. ended_by: why the stage ended before its last step; "" = it did not.

    Example: StageCounts(prompts=1280, skipped_too_long=3, old_logprobs="from the training forward: ...",
        published_step=20, ended_by="guard: ...")
    """

    prompts: int
    skipped_too_long: int
    old_logprobs: str
    published_step: int | None = field(default=None, kw_only=True)
    ended_by: str = field(default="", kw_only=True)

    def describe_published(self) -> str:
        """Return which policy the stage publishes, in words."""
        if self.published_step == 0:
            return "the policy that the stage began with"
        return f"the policy after step {self.published_step}"


@dataclass(frozen=True)
class StageSummary(StageCounts):
    """A finished stage: the content of its summary.json.

    seconds: time of the last attempt, including start-up. tokens: generated in all steps. model: fingerprint of the
    trained model, "" in files of earlier versions. accuracy_by_step: held-out accuracy after
    each validated step. alarms: the collapse guard's, in words.

    Example: StageSummary(prompts=8, skipped_too_long=0, old_logprobs="...", seconds=61.5, steps=2,
        reward_by_step=[0.25, 0.5], tokens=512)
    """

    seconds: float
    steps: int
    reward_by_step: list[float]
    tokens: int
    model: str = ""
    accuracy_by_step: dict[int, float] = field(default_factory=dict, kw_only=True)
    alarms: list[str] = field(default_factory=list, kw_only=True)

    def describe_end(self) -> list[str]:
        """Return an early end, the published policy where one was chosen, and the guard's other alarms, in words."""
        notes = [f"ended early, {self.ended_by}"] if self.ended_by else []
        if self.published_step is not None and (self.accuracy_by_step or self.published_step != self.steps):
            notes.append(f"published: {self.describe_published()}")
        return notes + [f"collapse guard: {alarm}" for alarm in self.alarms if self.ended_by != f"guard: {alarm}"]


def read_stage_summary(file: Path) -> StageSummary:
    """Read the summary.json of a finished stage; files of earlier versions lack some counts.

    Raises:
        InputError: the file is absent or not the summary of a stage.
    """
    row = read_json(file)
    if isinstance(row, dict):
        row = {"prompts": 0, "skipped_too_long": 0, "old_logprobs": ""} | row
    return parse_record(StageSummary, row, f"{file}, the summary of a training stage")
