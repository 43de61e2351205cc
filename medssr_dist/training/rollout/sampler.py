"""The rollout: prompts from the stream, one request a prompt, groups that teach nothing replaced, whole batches.

It takes the place of OpenRLHF's SamplesGenerator, which asks for each sample apart and gives what is left of a filtered
batch. Batches are a function of the order of the prompts alone: a group that is dropped is replaced by the next prompt,
so a batch is the first groups that teach among those drawn, whichever engine was faster.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from medssr_dist.training.rollout.engines import EnginePool
from medssr_dist.training.rollout.examples import PromptLoader
from medssr_dist.training.rollout.groups import Group, GroupRequest, Sampling

_MOST_DRAWS = 4  # prompts drawn for a batch, in batches


@dataclass(frozen=True)
class BatchPlan:
    """What a batch is made of.

    prompts: of a batch. steps: batches in all; 0 = one pass over the data. drop_zero_variance: replace groups whose
    rewards are all equal. ahead: the next batch is made while this one is trained on.
    """

    prompts: int
    steps: int
    drop_zero_variance: bool
    ahead: bool


@dataclass(frozen=True)
class Batch:
    """Groups in the order of their prompts. drawn: prompts asked for; flat: how many of their groups taught nothing."""

    groups: list[Group]
    drawn: int
    flat: int
    seconds: float

    def as_dict(self) -> dict:
        return vars(self) | {"groups": [group.as_dict() for group in self.groups]}

    @classmethod
    def from_dict(cls, values: dict) -> Batch:
        return cls(**values | {"groups": [Group.from_dict(group) for group in values["groups"]]})


class Rollout:
    """Gives OpenRLHF's loop its samples (`generate_samples`), of the version of the weights that drew them.

    A version is the number of batches that the weights have been trained on. Where groups are dropped, a batch draws at
    most _MOST_DRAWS batches of prompts; what is then still missing is filled with groups that teach nothing, so that a
    policy that is always right, or never, does not wait for ever.

    Args:
        prompts: with `steps` = 0: the steps are counted here.
        tell: told what is done with the batch that was given; "" while engines or examples are waited for.

    Attributes:
        given: batches given so far. metrics: numbers of the last, for the step's row.
        ranks_free: held while the ranks train on the batch given, but not while `finish` waits; whoever makes the next
            batch beside them takes it before it needs the ranks.
    """

    def __init__(
        self,
        plan: BatchPlan,
        sampling: Sampling,
        prompts: PromptLoader,
        tokenizer,
        pool: EnginePool,
        tell: Callable[[str], None],
    ):
        self._plan, self._sampling, self._prompts, self._tokenizer = plan, sampling, prompts, tokenizer
        self._pool, self._tell = pool, tell
        self._coming: Future[Batch | None] | None = None
        self._left: list[Batch] = []  # made and not yet given
        self._made = 0
        self._training = False
        self._failed: BaseException | None = None
        self.ranks_free = threading.Condition()
        self.given = 0
        self.metrics: dict[str, float] = {}

    def generate_samples(self, **_) -> tuple[list, float | None, int, bool]:
        """(samples, percentage of the groups that teach, prompts drawn, whether there are no more), as OpenRLHF's."""
        self.finish()
        if self._failed:
            raise self._failed
        self._tell("")
        if self._training:
            self._training = False
            self.ranks_free.release()
        batch = self._left.pop(0) if self._left else self._make()
        if batch is None:
            return [], None, 0, True
        self.ranks_free.acquire()
        self._training = True
        if self._plan.ahead:
            self._coming = Future()
            threading.Thread(target=self._make_beside, args=(self._coming,), daemon=True).start()
        samples = [experience for group in batch.groups for experience in group.experiences(self.given)]
        self._note(batch)
        self.given += 1
        self._tell(f"step {self.given}")
        return samples, 100 * (1 - batch.flat / batch.drawn), batch.drawn, False

    def finish(self) -> None:
        """Wait for the batch that is being made beside the training, if one is.

        What making it raised, the next `generate_samples` raises: the step that is trained is to end first.
        """
        if self._coming is None:
            return
        self._tell("")
        with self.ranks_free:
            self.ranks_free.wait_for(self._coming.done)
        self._tell(f"step {self.given}")
        coming, self._coming = self._coming, None
        self._failed = coming.exception()
        if not self._failed and (batch := coming.result()):
            self._left.append(batch)

    def _make_beside(self, coming: Future) -> None:
        try:
            coming.set_result(self._make())
        except BaseException as error:
            coming.set_exception(error)
        with self.ranks_free:
            self.ranks_free.notify_all()

    def state_dict(self) -> dict:
        """Batches made and not yet given, as plain values; to be taken between steps, beside the PromptLoader's."""
        self.finish()
        return {"made": self._made, "given": self.given, "left": [batch.as_dict() for batch in self._left]}

    def load_state_dict(self, state: dict) -> None:
        """To be called before the weights of a checkpoint are sent to the engines: they are version `given`."""
        self._made, self.given = state["made"], state["given"]
        self._left = [Batch.from_dict(batch) for batch in state["left"]]

    def _make(self) -> Batch | None:
        """The next batch, None where there is none to come. Where it cannot be made, its prompts are given back."""
        before = self._prompts.state_dict()
        try:
            return self._collect()
        except BaseException:
            self._prompts.load_state_dict(before)
            raise

    def _collect(self) -> Batch | None:
        if self._plan.steps and self._made == self._plan.steps:
            self._prompts.finish()
            return None
        since = time.monotonic()
        most = self._plan.prompts * (_MOST_DRAWS if self._plan.drop_zero_variance else 1)
        drawn = self._draw(self._plan.prompts, bool(self._plan.steps))
        if not drawn:
            self._prompts.finish()
            return None
        teaching, flat = [], []
        while len(teaching) + len(flat) < drawn:
            group = self._pool.take()
            (teaching if group.teaches else flat).append(group)
            if self._plan.drop_zero_variance and not group.teaches and drawn < most:
                drawn += self._draw(1, wrap=True)
        self._made += 1
        if self._made == self._plan.steps:
            self._prompts.finish()
        spare = sorted(flat, key=_number)[: self._plan.prompts - len(teaching)]
        return Batch(sorted(teaching + spare, key=_number), drawn, len(flat), time.monotonic() - since)

    def _draw(self, count: int, wrap: bool) -> int:
        """Draw `count` prompts and hand them to the engines; 0 where the pass is over before the first."""
        for index in range(count):
            item = self._prompts.draw(wrap=wrap or index > 0)
            if item is None:
                return 0
            prompt, label = item
            ids = self._tokenizer(prompt, add_special_tokens=False)["input_ids"]
            self._pool.give(GroupRequest(self._prompts.taken - 1, prompt, ids, label, self._sampling))
        return count

    def _note(self, batch: Batch) -> None:
        samples = [sample for group in batch.groups for sample in group.samples]
        self.metrics = {
            "policy_lag": sum(self.given - sample.version for sample in samples) / len(samples),
            "zero_variance_drawn": batch.flat / batch.drawn,
            "prompts_drawn": batch.drawn,
            "engine_restarts": self._pool.restarts,
            "seconds_rollout": round(batch.seconds, 6),
        }


def _number(group: Group) -> int:
    return group.number
