"""Forecast of the wall time of a run in both modes of `runtime.mode`, from the rates measured in an earlier run.

The time of a step is its start-up plus its work. The work is the number of units divided by the measured rate. The rate
grows in proportion to the number of GPUs:

- synthesize: accepted questions / accepted questions per second; no start-up and no GPU;
- vote: questions x tokens per question / tokens per second; tokens per question are in proportion to `voting.samples`;
- stage 1, stage 2: steps x (generate + learn + sync). Generate and learn are in proportion to the sequences in a step;
  generate depends on the GPUs of the rollout engines, learn on those of the training ranks. Without a configured number
  of steps, a stage has (kept questions / prompts_per_step) steps;
- evaluate: answers / answers per second. It runs on the GPUs of the voting engines, and its rate includes the start-up.

    stream     = longest start-up + longest work of (synthesize, vote, stage 1), which run at the same time, vote and
                 training each on its own GPUs; then stage 2 and evaluate
    sequential = sum of all start-ups and all work. Each step may use all GPUs of the run. If the config is for
                 `stream`, the vote thus also gets the GPUs of training, and training those of the vote

On CPU more processes do not bring more cores. Thus no rate grows with the number of processes, and in `stream` the work
of vote and stage 1 adds up. Time spent waiting for another step is excluded from the rates where it was measured:
the trainer waiting for labels, synthesis waiting under back-pressure. The forecast is poor if the measured vote had to
wait for questions, or if sequence lengths or concurrency differ much from those of the measured run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from medssr_dist.config.schema import Config
from medssr_dist.config.training import Stage
from medssr_dist.estimates.rates import Rates, VoteRate
from medssr_dist.estimates.workload import count_stage_steps, expect_questions
from medssr_dist.run.paths import RECORDED_STEPS, STAGES
from medssr_dist.runtime.cluster import count_slots

CONCURRENT_STEPS = ("synthesize", "vote", "stage1")  # run at the same time in mode `stream`


@dataclass(frozen=True)
class StepTime:
    """Time of one step in seconds.

    Example:
        StepTime(start=60.0, work=800.0).total == 860.0
    """

    start: float
    work: float

    @property
    def total(self) -> float:
        return self.start + self.work


@dataclass(frozen=True)
class Forecast:
    """Wall time of a run in one mode.

    Example:
        Forecast(seconds=500.0, steps={"synthesize": StepTime(0.0, 500.0)}, unknown=("vote", "evaluate"))

    Attributes:
        seconds: wall time of the steps in `steps`.
        steps: time of each step whose rate is known.
        unknown: names of the other steps.
    """

    seconds: float
    steps: Mapping[str, StepTime]
    unknown: tuple[str, ...]


@dataclass(frozen=True)
class Forecasts:
    """Wall time of a run in either mode. Example: Forecasts(stream=Forecast(...), sequential=Forecast(...))."""

    stream: Forecast
    sequential: Forecast


@dataclass(frozen=True)
class DataCounts:
    """Amounts of work that depend on data files and not on the config alone.

    Example:
        DataCounts(gold_examples=500, answers=1200)

    Attributes:
        gold_examples: human-annotated examples of stage 2.
        answers: answers in the first pass of the evaluation.
    """

    gold_examples: int
    answers: int


def forecast_walltime(config: Config, rates: Rates, counts: DataCounts, on_gpu: bool) -> Forecasts:
    """Return the wall time in both modes. The docstring of this module has the formula."""
    slots = count_slots(config)
    own = _forecast_steps(config, rates, counts, slots, on_gpu)  # each step on the GPUs that the config gives it
    all_slots = _share_all_slots(slots) if config.runtime.mode == "stream" else slots
    alone = _forecast_steps(config, rates, counts, all_slots, on_gpu)
    wanted = [name for name in RECORDED_STEPS if name not in STAGES or getattr(config.training, name).enabled]
    unknown = tuple(name for name in wanted if name not in own)
    return Forecasts(
        stream=Forecast(_add_up_stream(own, on_gpu), own, unknown),
        sequential=Forecast(sum(time.total for time in alone.values()), alone, unknown),
    )


def _share_all_slots(slots: Mapping[str, int]) -> dict[str, float]:
    """Return the slots of each part if vote and training use all slots in turn, each in its configured proportions."""
    total, voting = sum(slots.values()), slots["voting engines"]
    group = {name: voting if name == "voting engines" else total - voting for name in slots}
    return {name: count * total / group[name] if count else 0.0 for name, count in slots.items()}


def _add_up_stream(times: Mapping[str, StepTime], on_gpu: bool) -> float:
    concurrent = {name: time for name, time in times.items() if name in CONCURRENT_STEPS}
    after = sum(time.total for name, time in times.items() if name not in CONCURRENT_STEPS)
    work = {name: time.work for name, time in concurrent.items()}
    if not on_gpu:  # vote and stage 1 share the cores
        work["vote"] = work.get("vote", 0.0) + work.pop("stage1", 0.0)
    return max((time.start for time in concurrent.values()), default=0.0) + max(work.values(), default=0.0) + after


def _forecast_steps(
    config: Config, rates: Rates, counts: DataCounts, slots: Mapping[str, float], on_gpu: bool
) -> dict[str, StepTime]:
    """Return the time of each step on `slots`, without the steps whose rate is unknown."""

    def speedup(part: str) -> float:
        """Return how much faster `part` is than when it was measured, because of its number of GPUs."""
        return slots[part] / rates.slots[part] if on_gpu and slots[part] and rates.slots[part] else 1.0

    times, vote = {}, rates.vote
    questions = expect_questions(config, vote.kept_share if vote else None)
    if rates.questions_per_s:
        times["synthesize"] = StepTime(0.0, questions / rates.questions_per_s)
    if vote:
        tokens = questions * vote.tokens_per_question * config.voting.samples / vote.samples
        times["vote"] = StepTime(vote.start_s, tokens / (vote.tokens_per_s * speedup("voting engines")))
    for name in STAGES:
        stage = getattr(config.training, name)
        rate = rates.stages.get(name) or next(iter(rates.stages.values()), None)
        steps = _count_steps(config, name, counts.gold_examples, vote)
        if stage.enabled and rate and steps:
            sequences = stage.prompts_per_step * stage.samples_per_prompt / rate.sequences
            generate = rate.generate_s * sequences / speedup("rollout engines")
            learn = rate.learn_s * sequences / speedup("training ranks")
            times[name] = StepTime(rate.start_s, steps * (generate + learn + rate.sync_s))
    if rates.answers_per_s:
        times["evaluate"] = StepTime(0.0, counts.answers / (rates.answers_per_s * speedup("voting engines")))
    return times


def _count_steps(config: Config, name: str, gold_examples: int, vote: VoteRate | None) -> int | None:
    """Return the GRPO steps of a stage, or None if they depend on an unknown share of kept labels."""
    stage: Stage = getattr(config.training, name)
    if stage.steps:
        return stage.steps
    examples = 0.0 if name == "stage1" else gold_examples
    if name == "stage1" or config.training.stage2.mix_pseudo_labels:
        if vote is None:
            return None
        examples += config.voting.kept or config.synthesis.accepted * vote.kept_share
    return count_stage_steps(stage, examples)
