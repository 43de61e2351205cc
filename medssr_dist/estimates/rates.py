"""Rates of a run: the measured speed of synthesis, voting, training and evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from medssr_dist.config.removed_keys import drop_removed_keys
from medssr_dist.config.schema import Config
from medssr_dist.config.training import Stage
from medssr_dist.data.jsonl import read_jsonl
from medssr_dist.data.records import parse_record, read_record
from medssr_dist.errors import InputError
from medssr_dist.evaluation.scores import read_scores
from medssr_dist.inference.event_log import EngineEvent
from medssr_dist.run.clock import read_clock
from medssr_dist.run.directory import RunDir
from medssr_dist.run.paths import STAGES, SynthesisPaths, VotingPaths
from medssr_dist.run.recorded_config import read_recorded_config
from medssr_dist.runtime.cluster import count_slots
from medssr_dist.synthesis.synthesis_summary import read_synthesis_progress, read_synthesis_summary
from medssr_dist.training.step_metrics import read_metrics
from medssr_dist.voting.quality_records import VoteSummary


@dataclass(frozen=True)
class VoteRate:
    """Speed of the vote, of all voting engines together.

    Example:
        VoteRate(tokens_per_s=1000.0, tokens_per_question=800.0, kept_share=0.64, samples=16, start_s=60.0)

    Attributes:
        tokens_per_s: generated tokens per second after the start-up.
        tokens_per_question: generated tokens for all votes on one question.
        kept_share: share of the questions whose pseudo-label was kept.
        samples: K, the number of votes on one question.
        start_s: seconds until the first engine was ready.
    """

    tokens_per_s: float
    tokens_per_question: float
    kept_share: float
    samples: int
    start_s: float


@dataclass(frozen=True)
class StageRate:
    """Mean times of one GRPO step of a training stage.

    Example:
        StageRate(generate_s=12.0, learn_s=24.0, sync_s=2.0, sequences=256, start_s=90.0)

    Attributes:
        generate_s: seconds to sample the sequences, without the time spent waiting for pseudo-labels.
        learn_s: seconds to compute log-probs and advantages and to update the policy.
        sync_s: seconds to send the new weights to the rollout engines.
        sequences: sequences in one step.
        start_s: seconds of start-up before the first step.
    """

    generate_s: float
    learn_s: float
    sync_s: float
    sequences: int
    start_s: float


@dataclass(frozen=True)
class Rates:
    """All rates of one run. A rate that is None, or a stage that is missing, was not measured.

    Example:
        Rates(
            source=Path("runs/demo"),
            mode="sequential",
            slots={"voting engines": 2, "training ranks": 4, "reference ranks": 0, "rollout engines": 2},
            questions_per_s=2.0,
            vote=VoteRate(...),
            stages={"stage1": StageRate(...)},
            answers_per_s=4.0,
        )

    Attributes:
        source: the run directory.
        mode: `runtime.mode` of the run.
        slots: number of GPUs (or process slots on CPU) of each part, see `count_slots`.
        questions_per_s: accepted questions per second of the synthesis.
        vote: speed of the vote.
        stages: speed of each training stage by name, "stage1" and "stage2".
        answers_per_s: answers per second of the evaluation, start-up included.
    """

    source: Path
    mode: str
    slots: Mapping[str, int]
    questions_per_s: float | None
    vote: VoteRate | None
    stages: Mapping[str, StageRate]
    answers_per_s: float | None


def read_rates(run_dir: Path) -> Rates | None:
    """Return the rates of the run in `run_dir`, or None if nothing has been measured there yet.

    Raises:
        InputError: the run was made by a version of the program with other settings.
    """
    run = RunDir(run_dir)
    if not run.config_file.exists():
        return None
    tree = read_recorded_config(run.root).model_dump()
    try:
        config = Config.model_validate(drop_removed_keys(tree))
    except ValidationError:
        what = "its config was written by another version of medssr"
        raise InputError(f"the rates of {run.root} cannot be read: {what}") from None
    clock = read_clock(run.root)
    stages = {name: _stage_rate(run, name, getattr(config.training, name), clock) for name in STAGES}
    rates = Rates(
        source=run.root,
        mode=config.runtime.mode,
        slots=count_slots(config),
        questions_per_s=_synthesis_rate(run.synthesis),
        vote=_vote_rate(run.voting, config.voting.samples, clock),
        stages={name: rate for name, rate in stages.items() if rate},
        answers_per_s=_evaluation_rate(run.evaluation.scores),
    )
    known = (rates.questions_per_s, rates.vote, rates.answers_per_s, *rates.stages.values())
    return rates if any(known) else None


def _synthesis_rate(paths: SynthesisPaths) -> float | None:
    """Return accepted questions per second.

    The rate is that of the attempt that finished the step, or of the last seconds of a step that is still running.
    """
    if paths.summary.exists():
        summary = read_synthesis_summary(paths.summary)
        seconds = summary.seconds - summary.held_s
        if summary.requests_sent and seconds > 0:
            return summary.requests_sent / seconds * summary.accepted / summary.requested
    if paths.progress.exists():
        progress = read_synthesis_progress(paths.progress)
        return (progress.replies_per_s or 0) * (progress.accepted_share or 0) or None
    return None


def _vote_rate(paths: VotingPaths, samples: int, clock: dict[str, float]) -> VoteRate | None:
    if not paths.summary.exists():
        return None
    summary = read_record(VoteSummary, paths.summary)
    start = _measure_engine_start(paths.engine_events)
    seconds = clock.get("vote", summary.seconds) - start
    labels = summary.quality
    if not labels.questions or not labels.tokens or seconds <= 0:
        return None
    return VoteRate(
        tokens_per_s=labels.tokens / seconds,
        tokens_per_question=labels.tokens / labels.questions,
        kept_share=labels.kept / labels.questions,
        samples=samples,
        start_s=start,
    )


def _measure_engine_start(file: Path) -> float:
    """Return the seconds from the start of the first engine until some engine was ready."""
    events = [parse_record(EngineEvent, row, str(file)) for row in read_jsonl(file)] if file.exists() else []
    began = next((event.time for event in events if event.event == "start"), 0.0)
    return next((event.time - began for event in events if event.event == "ready"), 0.0)


def _stage_rate(run: RunDir, name: str, stage: Stage, clock: dict[str, float]) -> StageRate | None:
    steps = read_metrics(run.stage(name).metrics)
    if not steps:
        return None
    return StageRate(
        generate_s=sum(step.seconds_generate - step.seconds_wait for step in steps) / len(steps),
        learn_s=sum(step.seconds_experience + step.seconds_update for step in steps) / len(steps),
        sync_s=sum(step.seconds_sync for step in steps) / len(steps),
        sequences=stage.prompts_per_step * stage.samples_per_prompt,
        start_s=max(0.0, clock.get(name, 0.0) - sum(step.seconds for step in steps)),
    )


def _evaluation_rate(scores: Path) -> float | None:
    if not scores.exists():
        return None
    found = read_scores(scores)
    seconds = sum(policy.seconds for policy in found.policies.values())
    answers = sum(score.answers for policy in found.headline.values() for score in policy.benchmarks.values())
    return answers / seconds if answers and seconds else None
