"""Rollout time of a step with and without over-draw: the real sampler, on engines with a simulated clock.

An engine has places for so many samples; each token of each sample takes the same time, as on GPUs whose batch is not
full. Lengths are log-normal and cut at the limit, flat groups are drawn with a fixed probability. Both depend on the
number of the prompt alone, so that both ways of drawing get the same groups for the same prompts.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import mean

from medssr_dist.data.prompt_renderer import Prompt
from medssr_dist.data.records import Question
from medssr_dist.training.rollout.examples import Example, PromptLoader
from medssr_dist.training.rollout.groups import Group, GroupRequest, Sample, Sampling
from medssr_dist.training.rollout.sampler import BatchPlan, Sampler


@dataclass(frozen=True)
class EngineModel:
    """What is simulated. Lengths in tokens.

    Attributes:
        places: samples that all engines together generate at a time.
        token_s: seconds of a token of one sample.
        length_mean, length_deviation: of the lengths before they are cut.
        flat: probability that a group is flat.
    """

    name: str
    places: int
    prompts: int = 64
    samples: int = 8
    token_s: float = 0.015
    length_mean: float = 700.0
    length_deviation: float = 450.0
    longest: int = 2048
    flat: float = 0.42
    steps: int = 20


ONE_NODE = EngineModel("1 node: 2 engines of 256 samples", places=512)
FOUR_NODES = EngineModel("4 nodes: 16 engines of 256 samples", places=4096)


@dataclass(frozen=True)
class DrawFigures:
    """Means over the steps.

    Attributes:
        seconds_rollout: of one step.
        prompts_drawn: of one step.
        groups_carried: surplus groups after a step.
        policy_lag: versions between sampling and training, over all samples.
    """

    seconds_rollout: float
    prompts_drawn: float
    groups_carried: float
    policy_lag: float


@dataclass(frozen=True)
class OverDrawFigures:
    """Both ways of drawing with one model. speedup: of the rollout."""

    model: EngineModel
    one_by_one: DrawFigures
    over_draw: DrawFigures
    speedup: float = field(init=False)

    def __post_init__(self) -> None:
        speedup = self.one_by_one.seconds_rollout / self.over_draw.seconds_rollout
        object.__setattr__(self, "speedup", round(speedup, 2))


class ClockedEngines:
    """Engines with a simulated clock, as the sampler calls them. `now`: seconds."""

    restarts = 0

    def __init__(self, model: EngineModel):
        self._model = model
        self._waiting: deque[GroupRequest] = deque()
        self._running: list[tuple[float, int, Group]] = []  # heap: when it ends, number, group
        self.now, self.version = 0.0, 0

    def submit(self, request: GroupRequest) -> None:
        """Start a group if there are places for it, else queue it."""
        self._waiting.append(request)
        self._start_waiting()

    def next_group(self) -> Group:
        """Return the group that ends next, at which the clock then stands."""
        self.now, _, group = heapq.heappop(self._running)
        self._start_waiting()
        return group

    def _start_waiting(self) -> None:
        while self._waiting and (len(self._running) + 1) * self._model.samples <= self._model.places:
            request = self._waiting.popleft()
            group = self._sample(request)
            longest = max(len(sample.token_ids) for sample in group.samples)
            heapq.heappush(self._running, (self.now + longest * self._model.token_s, request.number, group))

    def _sample(self, request: GroupRequest) -> Group:
        model, rng = self._model, random.Random(request.number)
        spread = math.log(1 + (model.length_deviation / model.length_mean) ** 2)
        center = math.log(model.length_mean) - spread / 2
        is_flat = rng.random() < model.flat
        samples = []
        for place in range(model.samples):
            length = min(model.longest, max(1, round(rng.lognormvariate(center, math.sqrt(spread)))))
            reward = 0.0 if is_flat else float(place % 2)
            samples.append(Sample([0] * length, None, reward, False, False, self.version, "A"))
        return Group(request.number, request.prompt, request.prompt_ids, request.label, samples)


class _Prompts:
    """Renders every question as one token."""

    def render(self, question: Question) -> Prompt:
        return Prompt(question.stem, (0,))


def compare_draws(model: EngineModel) -> OverDrawFigures:
    """Return the figures of both ways of drawing."""
    return OverDrawFigures(model, _measure(model, over_draw=False), _measure(model, over_draw=True))


def _measure(model: EngineModel, over_draw: bool) -> DrawFigures:
    engines = ClockedEngines(model)
    examples = [Example(Question.make(f"Question {number}?", ["yes", "no"], source="x"), "A") for number in range(99)]

    def read(start: int) -> Iterator[tuple[int, Example]]:
        return enumerate(examples[start:], start + 1)

    plan = BatchPlan(model.prompts, model.steps + 1, drop_zero_variance=True, ahead=0, over_draw=over_draw)
    sampling = Sampling(model.samples, 1.0, 1.0, model.longest, logprobs=False, random_seed=0)
    sampler = Sampler(plan, sampling, PromptLoader(read, _Prompts(), 9), engines, lambda doing: None)
    seconds, found = [], []
    for _ in range(model.steps):  # without the last one, which has no surplus
        since = engines.now
        found.append(sampler.next_step().metrics)
        seconds.append(engines.now - since)
        engines.version = sampler.returned
    return DrawFigures(
        seconds_rollout=round(mean(seconds), 2),
        prompts_drawn=round(mean(each["prompts_drawn"] for each in found), 1),
        groups_carried=round(mean(each.get("groups_carried", 0) for each in found), 1),
        policy_lag=round(mean(each["policy_lag"] for each in found), 3),
    )
