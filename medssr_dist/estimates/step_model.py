"""The seconds of a GRPO step by phase, and how long each GPU is idle: rates, and a simulated rollout.

Rates come from the steps that a run has measured (`fit_step_rates`), or for GPUs that nobody has measured from data
sheets and assumed efficiencies (`estimates/gpu_rates.py`). With them

    rollout    = simulated (`estimates/rollout_model.py`)
    experience, update = seconds of one rank for a token x tokens of the step / ranks (+ a fixed time of the update)
    sync       = a fixed time
    step       = rollout + experience + update + sync + turns, where turns is the time of colocated engines and ranks to
                 change places, else 0; or, if the engines sample ahead (training.max_policy_lag),
                 max(rollout, experience + update) + sync

Of the batches that are sampled ahead, all but one begin before the last samples of the one before: they share one end.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from medssr_dist.config.schema import Config
from medssr_dist.config.training import Stage
from medssr_dist.errors import InputError
from medssr_dist.estimates.rollout_model import EngineRates, RolloutLoad, SimulatedRollout, simulate_rollout
from medssr_dist.training.step_metrics import StepMetrics

_FIT_SEEDS = 4  # simulated rollouts for each measured step
_FIT_ROUNDS = 4  # on several engines


@dataclass(frozen=True)
class StepRates:
    """The rates of a step's phases.

    Attributes:
        source: where they come from, in words.
        engine: of one rollout engine.
        experience_s, update_s: seconds of one rank for one token, prompt and answer.
        update_fixed_s: of an update whatever its size. sync_s: of a weight sync.
        turn_s: in a step, for colocated ranks and engines to change places.
    """

    source: str
    engine: EngineRates
    experience_s: float
    update_s: float
    update_fixed_s: float
    sync_s: float
    turn_s: float = 0.0


@dataclass(frozen=True)
class StepForecast:
    """A mean step.

    Attributes:
        seconds: of the step. rollout, experience, update, sync: of its phases. drawn: prompts.
        tokens: that are trained on, prompts and answers. tokens_per_s_per_gpu: of all GPUs of the job.
        engines_idle, ranks_idle: share of the step for each rollout engine, and for each rank.
    """

    seconds: float
    rollout: float
    experience: float
    update: float
    sync: float
    drawn: float
    tokens: float
    tokens_per_s_per_gpu: float
    engines_idle: tuple[float, ...]
    ranks_idle: float

    def mean_idle(self, ranks: int, gpus_per_engine: int, gpus: int) -> float:
        """Return the idle share of all GPUs of a job; those without a rank or an engine are idle all the time.

        Args:
            ranks: with GPUs of their own; those that share theirs with an engine are in `engines_idle`.
        """
        busy = ranks * (1 - self.ranks_idle) + gpus_per_engine * sum(1 - idle for idle in self.engines_idle)
        return 1 - busy / gpus


def forecast_step(
    config: Config,
    stage: Stage,
    rates: StepRates,
    lengths: Sequence[int],
    flat_share: float,
    prompt_tokens: float,
    gpus: int,
    rounds: int = 5,
) -> StepForecast:
    """Return the mean of `rounds` simulated steps of a stage.

    Args:
        lengths: a sample of the lengths of answers. flat_share: of the groups. prompt_tokens: of a prompt.
        gpus: of the job, for the tokens per second and GPU.
    """
    training = config.training
    is_colocated = training.placement == "colocated"
    ahead = 0 if is_colocated else training.max_policy_lag - training.over_draw
    batches = max(1, ahead)
    load = RolloutLoad(
        stage.prompts_per_step * batches,
        stage.samples_per_prompt,
        training.engines,
        flat_share if stage.drop_zero_variance else 0.0,
        prompt_tokens,
        lengths,
        training.over_draw,
    )
    found = [simulate_rollout(load, rates.engine, seed) for seed in range(rounds)]
    rollout = statistics.mean(_rollout_seconds(each, load) for each in found) / batches
    tokens = stage.sequences * (statistics.mean(lengths) + prompt_tokens)
    experience = rates.experience_s * tokens / training.ranks
    update = rates.update_s * tokens / training.ranks + rates.update_fixed_s
    learn = experience + update
    fixed = rates.sync_s + (rates.turn_s if is_colocated else 0.0)
    seconds = (max(rollout, learn) if ahead else rollout + learn) + fixed
    in_turn = learn if is_colocated else 0.0
    busy = [statistics.mean(each.busy[index] for each in found) for index in range(training.engines)]
    share = rollout / statistics.mean(each.seconds for each in found)
    return StepForecast(
        seconds=seconds,
        rollout=rollout,
        experience=experience,
        update=update,
        sync=rates.sync_s,
        drawn=statistics.mean(each.drawn for each in found) * share,
        tokens=tokens,
        tokens_per_s_per_gpu=tokens / seconds / gpus,
        engines_idle=tuple(1 - min(seconds, each * share + rates.sync_s + in_turn) / seconds for each in busy),
        ranks_idle=1 - (learn + rates.sync_s) / seconds,
    )


def _rollout_seconds(rollout: SimulatedRollout, load: RolloutLoad) -> float:
    """Return the seconds of a step's own share of the prompts: what over-draw carries over begins the next step."""
    if not load.over_draw:
        return rollout.seconds
    needed = load.prompts / (1 - load.flat_share) if load.flat_share < 1 else rollout.drawn
    return rollout.seconds * min(1.0, needed / rollout.drawn)


def fit_step_rates(
    steps: Sequence[StepMetrics], config: Config, stage: Stage, lengths: Sequence[int], prompt_tokens: float
) -> StepRates:
    """Return the rates that explain measured steps of a stage best; the first step, which warms up, is left out.

    Base and time per sample of an iteration are fitted by least squares to the iterations of simulated rollouts: those
    of the engine that is busy longest. On several engines the rates decide which one takes the next group, so the
    rollouts are simulated again with the rates found, until they agree.

    Raises:
        InputError: fewer than three steps were measured, or with over-draw, where a step has samples of earlier ones.
    """
    if config.training.over_draw:
        raise InputError("the rates of a step are fitted to a run without over-draw; run it with over_draw=false")
    measured = [step for step in steps[1:] if step.seconds_rollout]
    if len(measured) < 2:
        raise InputError("the rates of a step are fitted to a run of three steps and more")
    engine = _fit_engine(measured, stage, lengths, config.training.engines)
    ranks = config.training.ranks
    tokens = [stage.sequences * (step.response_length + prompt_tokens) for step in measured]
    return StepRates(
        source=f"fitted to {len(measured)} measured steps",
        engine=engine,
        experience_s=ranks * sum(step.seconds_experience for step in measured) / sum(tokens),
        update_s=ranks * sum(step.seconds_update for step in measured) / sum(tokens),
        update_fixed_s=0.0,
        sync_s=statistics.mean(step.seconds_sync for step in measured),
    )


def _fit_engine(steps: Sequence[StepMetrics], stage: Stage, lengths: Sequence[int], engines: int) -> EngineRates:
    import numpy as np

    loads = [_scale_load(step, stage, lengths, engines) for step in steps]
    wanted = np.array([step.seconds_rollout or 0.0 for step in steps])
    rates = EngineRates(1.0, 0.0)
    for _ in range(1 if engines == 1 else _FIT_ROUNDS):
        work = np.array([_count_work(load, rates) for load in loads])
        base, per_sample = np.linalg.lstsq(work, wanted, rcond=None)[0]
        if base < 0 or per_sample < 0:  # steps too equal to tell the two apart: all time is that of samples
            base, per_sample = 0.0, float(work[:, 1] @ wanted / (work[:, 1] @ work[:, 1]))
        rates = EngineRates(float(base), float(per_sample))
    return rates


def _count_work(load: RolloutLoad, rates: EngineRates) -> list[float]:
    """Return iterations and samples iterated of the engine that is busy longest, scaled to the whole rollout; means."""
    counts = []
    for seed in range(_FIT_SEEDS):
        found = simulate_rollout(load, rates, seed)
        longest = max(range(load.engines), key=found.busy.__getitem__)
        scale = found.seconds / found.busy[longest]
        counts.append((scale * found.iterations[longest], scale * found.samples_iterated[longest]))
    return [statistics.mean(column) for column in zip(*counts, strict=True)]


def _scale_load(step: StepMetrics, stage: Stage, lengths: Sequence[int], engines: int) -> RolloutLoad:
    """Return the load of a measured step: its share of flat groups, and its mean length."""
    scaled = scale_lengths(lengths, step.response_length)
    flat_share = step.zero_variance_drawn or 0.0 if stage.drop_zero_variance else 0.0
    return RolloutLoad(stage.prompts_per_step, stage.samples_per_prompt, engines, flat_share, 0.0, scaled)


def scale_lengths(lengths: Sequence[int], mean: float) -> list[int]:
    """Return lengths of answers, in tokens, changed in proportion so that their mean is about `mean`."""
    scale = mean / statistics.mean(lengths)
    return [max(1, round(length * scale)) for length in lengths]
