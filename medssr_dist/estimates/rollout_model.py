"""A simulation of one step's rollout: a queue of prompts, engines with continuous batching, and groups that are flat.

Each group of G samples goes to the engine with the fewest groups. An engine computes a token of each running sample in
an iteration, which takes

    iteration = base + per_sample x n + per_cached_token x (tokens in the cache of the n samples)    [seconds]

and stops for `per_prompt_token` seconds for each token of a prompt that it begins. When a group has arrived and is flat
(all rewards equal, with probability `flat_share`), a further prompt is drawn, or with over-draw more from the start, as
the sampler does (`training/rollout/sampler.py`). Lengths are drawn from a measured distribution.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from medssr_dist.training.rollout.over_draw import FlatShare

_MOST_DRAWS = 4  # as the sampler


@dataclass(frozen=True)
class EngineRates:
    """How fast one engine is, in seconds. Example: EngineRates(base=0.01, per_sample=1e-5)

    Attributes:
        base: of an iteration, whatever runs in it. per_sample: more for each running sample.
        per_cached_token: more for each token in the cache. per_prompt_token: for a prompt.
        most_samples: vLLM's max_num_seqs.
    """

    base: float
    per_sample: float
    per_cached_token: float = 0.0
    per_prompt_token: float = 0.0
    most_samples: int = 128


@dataclass(frozen=True)
class RolloutLoad:
    """What a step samples.

    Example: RolloutLoad(prompts=128, samples=8, engines=4, flat_share=0.42, prompt_tokens=300, lengths=(100, 200))

    Attributes:
        prompts, samples: B and G. engines: that share the work.
        flat_share: of the groups; 0 where flat groups are not replaced. over_draw: `training.over_draw`.
        prompt_tokens: of a prompt. lengths: a sample of the lengths of answers, in tokens; drawn from with replacement.
    """

    prompts: int
    samples: int
    engines: int
    flat_share: float
    prompt_tokens: float
    lengths: Sequence[int]
    over_draw: bool = False


@dataclass(frozen=True)
class SimulatedRollout:
    """How one step's rollout went.

    Attributes:
        seconds: until the last group that the step waits for. drawn: prompts. tokens: generated.
        busy: seconds of each engine with at least one sample. iterations: of each engine. samples_iterated: the running
        samples of each engine, summed over its iterations.
    """

    seconds: float
    drawn: int
    tokens: int
    busy: tuple[float, ...]
    iterations: tuple[float, ...]
    samples_iterated: tuple[float, ...]


@dataclass
class _Engine:
    rates: EngineRates
    waiting: list[tuple[int, int]] = field(default_factory=list)  # (length, group), taken from the end
    running: list[tuple[float, int]] = field(default_factory=list)  # heap of (iteration at its end, group)
    groups: int = 0
    iteration: float = 0.0
    cached: float = 0.0
    stall: float = 0.0
    busy: float = 0.0
    work: float = 0.0  # running samples, summed over iterations

    def admit(self, prompt_tokens: float) -> None:
        """Start waiting samples in the free places."""
        while self.waiting and len(self.running) < self.rates.most_samples:
            length, group = self.waiting.pop()
            heapq.heappush(self.running, (self.iteration + length, group))
            self.cached += prompt_tokens

    @property
    def pace(self) -> float:
        """Seconds of an iteration now."""
        rates, n = self.rates, len(self.running)
        return rates.base + rates.per_sample * n + rates.per_cached_token * (self.cached + n / 2)

    def seconds_to_next(self) -> float:
        """Seconds until a sample is finished."""
        return self.stall + (self.running[0][0] - self.iteration) * self.pace if self.running else float("inf")

    def advance(self, seconds: float) -> None:
        """Compute for so many seconds; no sample may be finished before."""
        if not self.running:
            return
        self.busy += seconds
        stalled = min(self.stall, seconds)
        self.stall -= stalled
        done = (seconds - stalled) / self.pace
        self.iteration += done
        self.cached += done * len(self.running)
        self.work += done * len(self.running)


def simulate_rollout(
    load: RolloutLoad, rates: EngineRates, seed: int, share: FlatShare | None = None
) -> SimulatedRollout:
    """Return how a rollout goes.

    Args:
        share: of flat groups in earlier steps, for over-draw; None = exactly `flat_share`, from many groups.
    """
    draw = random.Random(seed)
    engines = [_Engine(rates) for _ in range(load.engines)]
    share = share or FlatShare(1e6 * load.flat_share, 1e6)
    lengths: dict[int, list[int]] = {}
    left: dict[int, int] = {}

    def submit() -> None:
        group = len(lengths)
        lengths[group] = [draw.choice(load.lengths) for _ in range(load.samples)]
        left[group] = load.samples
        engine = min(engines, key=lambda each: each.groups)
        engine.groups += 1
        engine.stall += load.prompt_tokens * rates.per_prompt_token
        engine.waiting = [(length, group) for length in lengths[group]] + engine.waiting

    first = share.count_draws(load.prompts, _MOST_DRAWS * load.prompts) if load.over_draw else load.prompts
    for _ in range(first):
        submit()
    now, varied, arrived, tokens = 0.0, 0, 0, 0
    while varied < load.prompts and arrived < len(lengths):
        for engine in engines:
            engine.admit(load.prompt_tokens)
        engine = min(engines, key=_Engine.seconds_to_next)
        seconds = max(0.0, engine.seconds_to_next())
        now += seconds
        for each in engines:
            each.advance(seconds)
        while engine.running and engine.running[0][0] <= engine.iteration + 1e-6:
            _, group = heapq.heappop(engine.running)
            length = lengths[group][left[group] - 1]
            engine.cached -= load.prompt_tokens + length
            tokens += length
            left[group] -= 1
            if left[group]:
                continue
            engine.groups -= 1
            arrived += 1
            is_flat = draw.random() < load.flat_share
            varied += not is_flat
            possible = varied + len(lengths) - arrived
            if is_flat and possible < load.prompts and len(lengths) < _MOST_DRAWS * load.prompts:
                submit()
    return SimulatedRollout(
        now,
        len(lengths),
        tokens,
        tuple(each.busy for each in engines),
        tuple(each.iteration for each in engines),
        tuple(each.work for each in engines),
    )
