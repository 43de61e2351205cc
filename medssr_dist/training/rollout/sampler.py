"""The sampler: draws prompts, has the engines sample their groups, and returns whole batches to the loop.

It takes the place of OpenRLHF's SamplesGenerator, which sends each sample as a request and returns what is left of a
filtered batch. A batch depends on the order of the prompts alone: a group without variance is replaced by the group of
the next prompt, so a batch is the first groups with variance among those drawn, whichever engine was faster.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from medssr_dist.training.rollout.engines import RolloutEngines
from medssr_dist.training.rollout.examples import PromptLoader
from medssr_dist.training.rollout.groups import Group, GroupRequest, Sampling

if TYPE_CHECKING:
    from medssr_dist.training.backend.openrlhf import Experience

_MOST_DRAWS = 4  # a batch draws at most this many times its number of prompts


@dataclass(frozen=True)
class BatchPlan:
    """How batches are made.

    prompts: prompts a batch. steps: batches in total; 0 = one pass over the data. drop_zero_variance: replace groups
    whose rewards are all equal. ahead: sample the next batch while this one is trained on (one step off-policy).

    Example: BatchPlan(prompts=64, steps=0, drop_zero_variance=True, ahead=False)
    """

    prompts: int
    steps: int
    drop_zero_variance: bool
    ahead: bool


@dataclass(frozen=True)
class RolloutBatch:
    """Groups of one step, in the order of their prompts.

    drawn: prompts drawn for it. flat: how many of their groups had equal rewards. seconds: from the first request.
    """

    groups: list[Group]
    drawn: int
    flat: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        return vars(self) | {"groups": [group.as_dict() for group in self.groups]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RolloutBatch:
        return cls(**values | {"groups": [Group.from_dict(group) for group in values["groups"]]})


@dataclass(frozen=True)
class StepSamples:
    """What one step trains on.

    samples: N = B x G Experiences of one sequence each, the G samples of a prompt one after the other.
    drawn: prompts drawn for it. metrics: numbers of the sampler, by field name of StepMetrics.
    """

    samples: list[Experience]
    drawn: int
    metrics: dict[str, float] = field(default_factory=dict)


class Sampler:
    """Returns the samples of each step, together with the version of the weights that drew them.

    A version is the number of batches that the weights have been trained on. Where groups without variance are dropped,
    a batch draws at most _MOST_DRAWS times its prompts; groups without variance then fill the rest, so that a policy
    that is always right, or always wrong, does not wait for ever.

    Args:
        report: heartbeat of the controller: called with what it does with the batch it has; "" while it waits.

    Attributes:
        given: batches returned so far.
        ranks_free: held while the ranks train on the batch returned, but not while `finish` waits; the thread that
            makes the next batch takes it before it needs the ranks.
    """

    def __init__(
        self,
        plan: BatchPlan,
        sampling: Sampling,
        prompts: PromptLoader,
        tokenizer,
        engines: RolloutEngines,
        report: Callable[[str], None],
    ):
        self._plan, self._sampling, self._prompts, self._tokenizer = plan, sampling, prompts, tokenizer
        self._engines, self._report = engines, report
        self._coming: Future[RolloutBatch | None] | None = None
        self._left: list[RolloutBatch] = []  # made and not yet returned
        self._made = 0
        self._training = False
        self._failed: BaseException | None = None
        self.ranks_free = threading.Condition()
        self.given = 0

    @property
    def waited_s(self) -> float:
        """Seconds spent waiting for examples, in all steps so far."""
        return self._prompts.waited_s

    def next_step(self) -> StepSamples | None:
        """Return the samples of the next step, waited for; None once there are no more."""
        self.finish()
        if self._failed:
            raise self._failed
        self._report("")
        if self._training:
            self._training = False
            self.ranks_free.release()
        batch = self._left.pop(0) if self._left else self._make()
        if batch is None:
            return None
        self.ranks_free.acquire()
        self._training = True
        if self._plan.ahead:
            self._coming = Future()
            threading.Thread(target=self._make_ahead, args=(self._coming,), daemon=True).start()
        samples = [experience for group in batch.groups for experience in group.experiences(self.given)]
        found = StepSamples(samples, batch.drawn, self._measure(batch))
        self.given += 1
        self._report(f"step {self.given}")
        return found

    def finish(self) -> None:
        """Wait for the batch that is being made ahead, if there is one.

        An error in making it is raised by the next `next_step`: the step that is trained on ends first.
        """
        if self._coming is None:
            return
        self._report("")
        with self.ranks_free:
            self.ranks_free.wait_for(self._coming.done)
        self._report(f"step {self.given}")
        coming, self._coming = self._coming, None
        self._failed = coming.exception()
        if not self._failed and (batch := coming.result()):
            self._left.append(batch)

    def _make_ahead(self, coming: Future[RolloutBatch | None]) -> None:
        try:
            coming.set_result(self._make())
        except BaseException as error:
            coming.set_exception(error)
        with self.ranks_free:
            self.ranks_free.notify_all()

    def state_dict(self) -> dict[str, Any]:
        """Return what a restart needs, as plain values, taken between two steps."""
        self.finish()  # first: a batch that is being made draws prompts
        batches = {"made": self._made, "given": self.given, "left": [batch.as_dict() for batch in self._left]}
        return {"batches": batches, "prompts": self._prompts.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from `state_dict`; called before the checkpoint's weights, version `given`, go to the engines."""
        batches = state["batches"]
        self._made, self.given = batches["made"], batches["given"]
        self._left = [RolloutBatch.from_dict(batch) for batch in batches["left"]]
        self._prompts.load_state_dict(state["prompts"])

    def _make(self) -> RolloutBatch | None:
        """Make the next batch; None where there is no more. If that fails, its prompts are given back."""
        before = self._prompts.state_dict()
        try:
            return self._collect()
        except BaseException:
            self._prompts.load_state_dict(before)
            raise

    def _collect(self) -> RolloutBatch | None:
        if self._plan.steps and self._made == self._plan.steps:
            self._prompts.finish()
            return None
        since = time.monotonic()
        most = self._plan.prompts * (_MOST_DRAWS if self._plan.drop_zero_variance else 1)
        drawn = self._draw(self._plan.prompts, bool(self._plan.steps))
        if not drawn:
            self._prompts.finish()
            return None
        varied, flat = [], []
        while len(varied) + len(flat) < drawn:
            group = self._engines.take()
            (varied if group.has_variance else flat).append(group)
            if self._plan.drop_zero_variance and not group.has_variance and drawn < most:
                drawn += self._draw(1, wrap=True)
        self._made += 1
        if self._made == self._plan.steps:
            self._prompts.finish()
        spare = sorted(flat, key=_number)[: self._plan.prompts - len(varied)]
        return RolloutBatch(sorted(varied + spare, key=_number), drawn, len(flat), time.monotonic() - since)

    def _draw(self, count: int, wrap: bool) -> int:
        """Draw `count` prompts and send them to the engines; 0 where the pass is over before the first."""
        for index in range(count):
            item = self._prompts.draw(wrap=wrap or index > 0)
            if item is None:
                return 0
            prompt, label = item
            ids = self._tokenizer(prompt, add_special_tokens=False)["input_ids"]
            self._engines.give(GroupRequest(self._prompts.taken - 1, prompt, ids, label, self._sampling))
        return count

    def _measure(self, batch: RolloutBatch) -> dict[str, float]:
        samples = [sample for group in batch.groups for sample in group.samples]
        return {
            "policy_lag": sum(self.given - sample.version for sample in samples) / len(samples),
            "zero_variance_drawn": batch.flat / batch.drawn,
            "prompts_drawn": batch.drawn,
            "engine_restarts": self._engines.restarts,
            "seconds_rollout": round(batch.seconds, 6),
        }


def _number(group: Group) -> int:
    return group.number
