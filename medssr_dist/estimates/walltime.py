"""The wall time of a run in either `runtime.mode`, from the rates that an earlier run was measured at.

A step takes a start-up and its work, which is what there is to do over the measured rate, in proportion to the GPUs:

- synthesize: accepted questions / (replies a second x share accepted); no start-up, no GPU;
- vote: questions x tokens a question (in proportion to `voting.samples`) / tokens a second;
- a stage: its steps x (generate + learn + sync); generating and learning in proportion to a step's sequences, the
  one over the rollout engines' GPUs, the other over the ranks'; one pass has kept questions / prompts_per_step steps;
- evaluate: answers / answers a second of the voters' GPUs, start-up included.

    stream     = longest start-up + longest work of (synthesize, vote, stage 1), which go on side by side,
                 vote and trainer each on its own GPUs as the config parts them; then stage 2 and evaluate
    sequential = the sum of all start-ups and all work; each step has all GPUs of the run: those the config gives it,
                 and where the config is for `stream`, those of the other side too, used in proportion

On CPU more processes have no more cores, so nothing is in proportion to them, and side by side the work of vote and
stage 1 adds up. What a side waited for another is left out of its rate as far as it was measured: a trainer's waiting
for labels, synthesis held back. Rates of a vote that waited, and rates far from the config's lengths or concurrency,
predict badly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from medssr_dist.config.schema import Config
from medssr_dist.estimates.rates import Rates, VoteRate
from medssr_dist.estimates.workload import count_stage_steps
from medssr_dist.run.clock import duration
from medssr_dist.run.paths import RECORDED_STEPS, STAGES
from medssr_dist.runtime.cluster import slots_in_use, slots_needed

_SIDE_BY_SIDE = ("synthesize", "vote", "stage1")


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step."""

    start: float
    work: float

    @property
    def whole(self) -> float:
        return self.start + self.work


@dataclass(frozen=True)
class Forecast:
    """`seconds` of wall time over the parts that are known; `unknown` names the others."""

    seconds: float
    parts: Mapping[str, StepTime]
    unknown: tuple[str, ...]


@dataclass(frozen=True)
class DataCounts:
    """What the config alone does not say: examples of stage 2 besides pseudo-labels, answers of the evaluation."""

    examples: int
    answers: int


# --- what an earlier run was measured at --------------------------------------------------------------------------


# --- the prediction -----------------------------------------------------------------------------------------------


def forecast(config: Config, rates: Rates, todo: DataCounts, on_gpu: bool) -> dict[str, Forecast]:
    """The wall time in either mode: {"stream": ..., "sequential": ...}. See the module's docstring for the formula."""
    slots = slots_needed(config)
    parted = _paces(config, rates, todo, slots, on_gpu)
    whole = _paces(config, rates, todo, _all_to_each(slots) if config.runtime.mode == "stream" else slots, on_gpu)
    wanted = [name for name in RECORDED_STEPS if name not in STAGES or getattr(config.training, name).enabled]
    unknown = tuple(name for name in wanted if name not in parted)
    return {
        "stream": Forecast(_stream_seconds(parted, on_gpu), parted, unknown),
        "sequential": Forecast(sum(pace.whole for pace in whole.values()), whole, unknown),
    }


def _all_to_each(slots: Mapping[str, int]) -> dict[str, float]:
    """The slots of a partition where vote and trainer take turns on all of them, each divided as before."""
    every, voting = sum(slots.values()), slots["voting engines"]
    side = {name: voting if name == "voting engines" else every - voting for name in slots}
    return {name: count * every / side[name] if count else 0.0 for name, count in slots.items()}


def _stream_seconds(paces: dict[str, StepTime], on_gpu: bool) -> float:
    beside = {name: pace for name, pace in paces.items() if name in _SIDE_BY_SIDE}
    after = sum(pace.whole for name, pace in paces.items() if name not in _SIDE_BY_SIDE)
    work = {name: pace.work for name, pace in beside.items()}
    if not on_gpu:  # they share the cores
        work["vote"] = work.get("vote", 0.0) + work.pop("stage1", 0.0)
    return max((pace.start for pace in beside.values()), default=0.0) + max(work.values(), default=0.0) + after


def _paces(
    config: Config, rates: Rates, todo: DataCounts, slots: Mapping[str, float], on_gpu: bool
) -> dict[str, StepTime]:
    """Step -> seconds on `slots`, of the steps whose rate is known."""

    def faster(part: str) -> float:
        """By how much `part` is faster than it was measured, for having more GPUs."""
        return slots[part] / rates.slots[part] if on_gpu and slots[part] and rates.slots[part] else 1.0

    paces, vote, questions = {}, rates.vote, config.synthesis.accepted
    if rates.questions_per_s:
        paces["synthesize"] = StepTime(0.0, questions / rates.questions_per_s)
    if vote:
        tokens = questions * vote.tokens_per_question * config.voting.samples / vote.samples
        paces["vote"] = StepTime(vote.start_s, tokens / (vote.tokens_per_s * faster("voting engines")))
    for name in STAGES:
        stage = getattr(config.training, name)
        rate = rates.stages.get(name) or next(iter(rates.stages.values()), None)
        steps = _steps(config, name, todo.examples, vote)
        if stage.enabled and rate and steps:
            sequences = stage.prompts_per_step * stage.samples_per_prompt / rate.sequences
            generate = rate.generate_s * sequences / faster("rollout engines")
            learn = rate.learn_s * sequences / faster("training ranks")
            paces[name] = StepTime(rate.start_s, steps * (generate + learn + rate.sync_s))
    if rates.answers_per_s:
        paces["evaluate"] = StepTime(0.0, todo.answers / (rates.answers_per_s * faster("voting engines")))
    return paces


def _steps(config: Config, name: str, gold: int, vote: VoteRate | None) -> int | None:
    """GRPO steps of a stage; None where it hangs on a share of kept labels that is not known."""
    stage = getattr(config.training, name)
    if stage.steps:
        return stage.steps
    examples = 0.0 if name == "stage1" else gold
    if name == "stage1" or config.training.stage2.mix_pseudo_labels:
        if vote is None:
            return None
        examples += config.synthesis.accepted * vote.kept_share
    return count_stage_steps(stage, examples)


# --- in words -----------------------------------------------------------------------------------------------------


def describe_forecast(config: Config, rates: Rates, todo: DataCounts, on_gpu: bool) -> list[tuple[str, str]]:
    """The rates and both forecasts as (label, text)."""
    found = forecast(config, rates, todo, on_gpu)
    parted, whole = found["stream"].parts, found["sequential"].parts
    beside = ", ".join(f"{name} {duration(parted[name].work)}" for name in _SIDE_BY_SIDE if name in parted)
    start = max((parted[name].start for name in _SIDE_BY_SIDE if name in parted), default=0.0)
    after = "".join(f" + {name} {duration(pace.whole)}" for name, pace in parted.items() if name not in _SIDE_BY_SIDE)
    longest = "longest of" if on_gpu else "longest, vote and stage 1 taken together, of"
    steps = " + ".join(f"{name} {duration(pace.whole)}" for name, pace in whole.items())
    texts = {"stream": f"start-up {duration(start)} + {longest} ({beside}){after}", "sequential": steps}
    rows = [("rates", f"of {rates.source}, runtime.mode={rates.mode}"), *(("", text) for text in _rates_text(rates))]
    for mode, text in texts.items():
        slots = slots_in_use(_in_mode(config, "stream" if config.runtime.mode == "stream" else mode))
        where = f"{slots} GPUs" if on_gpu else "these cores"
        without = f"; without {', '.join(found[mode].unknown)}, not measured" if found[mode].unknown else ""
        rows.append((mode, f"{duration(found[mode].seconds)} on {where} = {text}{without}"))
    return rows


def _in_mode(config: Config, mode: str) -> Config:
    return config.model_copy(update={"runtime": config.runtime.model_copy(update={"mode": mode})})


def _rates_text(rates: Rates) -> list[str]:
    lines = []
    if rates.questions_per_s:
        lines.append(f"synthesize: {rates.questions_per_s:,.2f} accepted questions/s")
    if vote := rates.vote:
        lines.append(
            f"vote: {vote.tokens_per_s:,.1f} tokens/s, {vote.tokens_per_question:,.0f} tokens a question of "
            f"{vote.samples} votes, {100 * vote.kept_share:.0f}% kept"
        )
    for name, rate in rates.stages.items():
        step = rate.generate_s + rate.learn_s + rate.sync_s
        lines.append(f"{name}: {step:,.1f} s a step of {rate.sequences} sequences, without waiting for labels")
    if rates.answers_per_s:
        lines.append(f"evaluate: {rates.answers_per_s:,.2f} answers/s")
    return lines
