"""Rates measured in finished runs: what a vote, a training step and an evaluation take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from medssr_dist.config.schema import Config
from medssr_dist.config.training import Stage
from medssr_dist.data.jsonl import read_json, read_jsonl
from medssr_dist.errors import InputError
from medssr_dist.run.clock import seconds_by_step
from medssr_dist.run.directory import RunDir
from medssr_dist.run.paths import STAGES, SynthesisPaths, VotingPaths
from medssr_dist.run.stream import follow
from medssr_dist.runtime.cluster import slots_needed


@dataclass(frozen=True)
class VoteRate:
    """Of all voting engines together; `samples` is K."""

    tokens_per_s: float
    tokens_per_question: float
    kept_share: float
    samples: int
    start_s: float


@dataclass(frozen=True)
class StageRate:
    """Mean seconds of a step of `sequences` sequences; `learn_s` is experience and update."""

    generate_s: float
    learn_s: float
    sync_s: float
    sequences: int
    start_s: float


@dataclass(frozen=True)
class Rates:
    """What the run in `source` was measured at; None or absent = not measured. `slots`: see `slots_needed`."""

    source: Path
    mode: str
    slots: Mapping[str, int]
    questions_per_s: float | None
    vote: VoteRate | None
    stages: Mapping[str, StageRate]
    answers_per_s: float | None


def read_rates(run_dir: Path) -> Rates | None:
    """The rates of the run in `run_dir`; None where it has none yet.

    Raises:
        InputError: `run_dir` was made by another version of the program.
    """
    run = RunDir(run_dir)
    if not run.config_file.exists():
        return None
    try:
        config = Config.model_validate(read_json(run.config_file))
    except ValidationError:
        raise InputError(f"the rates of {run.root} cannot be read: its settings are of another version") from None
    clock = seconds_by_step(run.root)
    stages = {name: _stage_rate(run, name, getattr(config.training, name), clock) for name in STAGES}
    rates = Rates(
        source=run.root,
        mode=config.runtime.mode,
        slots=slots_needed(config),
        questions_per_s=_synthesis_rate(run.synthesis),
        vote=_vote_rate(run.voting, config.voting.samples, clock),
        stages={name: rate for name, rate in stages.items() if rate},
        answers_per_s=_evaluation_rate(run.evaluation.scores),
    )
    known = (rates.questions_per_s, rates.vote, rates.answers_per_s, *rates.stages.values())
    return rates if any(known) else None


def _synthesis_rate(paths: SynthesisPaths) -> float | None:
    """Accepted questions a second, of the attempt that ended the step, or of the last seconds of one that goes on."""
    if paths.summary.exists():
        found = read_json(paths.summary)
        seconds = found["seconds"] - found["held_s"]
        if found["requests_sent"] and seconds > 0:
            return found["requests_sent"] / seconds * found["accepted"] / found["requested"]
    if paths.progress.exists():
        found = read_json(paths.progress)
        return (found["replies_per_s"] or 0) * (found["accepted_share"] or 0) or None
    return None


def _vote_rate(paths: VotingPaths, samples: int, clock: dict[str, float]) -> VoteRate | None:
    if not paths.summary.exists():
        return None
    found = read_json(paths.summary)
    start = _engine_start(paths.engine_events)
    seconds = clock.get("vote", found["seconds"]) - start
    labels = found["quality"]
    if not labels["questions"] or not labels["tokens"] or seconds <= 0:
        return None
    each = labels["tokens"] / labels["questions"]
    return VoteRate(labels["tokens"] / seconds, each, labels["kept"] / labels["questions"], samples, start)


def _engine_start(events: Path) -> float:
    """Seconds from the first engine's start to the first one that was ready."""
    rows = list(read_jsonl(events)) if events.exists() else []
    began = next((row["time"] for row in rows if row["event"] == "start"), 0.0)
    return next((row["time"] - began for row in rows if row["event"] == "ready"), 0.0)


def _stage_rate(run: RunDir, name: str, stage: Stage, clock: dict[str, float]) -> StageRate | None:
    rows = list(follow(run.stage(name).metrics, ended=lambda: True))
    if not rows:
        return None
    waited = sum(row["seconds_wait"] for row in rows)
    return StageRate(
        generate_s=(sum(row["seconds_generate"] for row in rows) - waited) / len(rows),
        learn_s=sum(row["seconds_experience"] + row["seconds_update"] for row in rows) / len(rows),
        sync_s=sum(row["seconds_sync"] for row in rows) / len(rows),
        sequences=stage.prompts_per_step * stage.samples_per_prompt,
        start_s=max(0.0, clock.get(name, 0.0) - sum(row["seconds"] for row in rows)),
    )


def _evaluation_rate(scores: Path) -> float | None:
    if not scores.exists():
        return None
    policies = read_json(scores)["policies"].values()
    seconds = sum(policy["seconds"] for policy in policies)
    answers = sum(score["answers"] for policy in policies for score in policy["benchmarks"].values())
    return answers / seconds if answers and seconds else None
