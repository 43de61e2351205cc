"""The sampler: returns the samples of each step to the loop, and makes batches while the ranks train.

It replaces OpenRLHF's SamplesGenerator, which sends each sample as one request and returns an incomplete batch after
filtering. Batches are made by `batch_maker.py`: by the loop itself while it waits for them, or with
`training.max_policy_lag` by a thread that may be some steps ahead.

The version of weights is the number of steps that they were trained for. Batch b, of step b + 1, is trained on by
weights of version b. It may be begun as soon as the engines hold version b - `ahead` or newer, so no token of it is
from weights that are more than `ahead` steps older. Groups that over-draw carries over are checked when they are used.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from medssr_dist.training.rollout.batch_maker import BatchMaker, BatchPlan, RolloutBatch
from medssr_dist.training.rollout.engines import RolloutEngines
from medssr_dist.training.rollout.examples import PromptLoader
from medssr_dist.training.rollout.first_rollouts import PromptChoice
from medssr_dist.training.rollout.groups import Sampling

if TYPE_CHECKING:
    from medssr_dist.training.backend.openrlhf import Experience


@dataclass(frozen=True)
class StepSamples:
    """What one step trains on.

    samples: N = B x G Experiences of one sequence each; the G samples of a prompt are adjacent.
    drawn: number of prompts drawn for the step. metrics: the sampler's metrics, by field name of StepMetrics.
    weights: N factors of the advantages; None = all are 1.
    """

    samples: list[Experience]
    drawn: int
    metrics: dict[str, float] = field(default_factory=dict)
    weights: list[float] | None = None


class Sampler:
    """Returns the samples of each step, together with the versions of the weights that they were drawn from.

    Args:
        report: heartbeat of the controller; called with what it does with the current batch, and with "" while it
            waits.
        choice: uses the votes on the prompts; None = every prompt is drawn, and every group sampled.

    Attributes:
        returned: number of batches returned so far; the version of the weights after training on all of them.
        ranks_free: lock. The loop holds it from the samples of a step to its end, except while it waits for batches.
            Whoever else uses the ranks takes it first.
    """

    def __init__(
        self,
        plan: BatchPlan,
        sampling: Sampling,
        prompts: PromptLoader,
        engines: RolloutEngines,
        report: Callable[[str], None],
        choice: PromptChoice | None = None,
    ):
        self._plan, self._prompts, self._engines, self._report = plan, prompts, engines, report
        self._uses_votes = choice is not None
        self._maker = BatchMaker(plan, sampling, prompts, engines, choice)
        self._changed = threading.Condition()  # guards all attributes below but `ranks_free`
        self._thread: threading.Thread | None = None
        self._ready: deque[RolloutBatch] = deque()  # made but not yet returned
        self._between = self._maker.state_dict()  # state of the maker before the batch that it is making
        self._weights = 0  # version that the engines hold
        self._is_making = self._is_held = False
        self._is_last = False  # no batch follows those in `_ready`
        self._error: BaseException | None = None
        self._training = False
        self.ranks_free = threading.RLock()
        self.returned = 0

    @property
    def waited_s(self) -> float:
        """Seconds spent waiting for examples, in all steps so far."""
        return self._prompts.waited_s

    def next_step(self) -> StepSamples | None:
        """Wait for the samples of the next step and return them; None after the last step."""
        self._report("")
        if self._training:
            self._training = False
            self.ranks_free.release()
        batch = self._take_ahead() if self._plan.ahead else self._take_or_make()
        if batch is None:
            return None
        self.ranks_free.acquire()
        self._training = True
        samples = [experience for group in batch.groups for experience in group.make_experiences(self.returned)]
        step = StepSamples(samples, batch.drawn, self._measure(batch), _find_weights(batch))
        self.returned += 1
        self._report(f"step {self.returned}")
        return step

    @contextmanager
    def new_weights(self) -> Iterator[int]:
        """Yield the version of the policy's weights; within the block they are sent to all engines.

        If new weights do not interrupt samples, batches that the old weights may begin are made first. If making one
        fails, `next_step` raises the error, so that the current step is finished first.
        """
        if self._thread is not None and not self._plan.interrupts:
            self._wait_for(lambda: self._maker.made > self._weights + self._plan.ahead)
        yield self.returned
        with self._changed:
            self._weights = self.returned
            self._changed.notify_all()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Finish the batch that is being made, and make no other one within the block."""
        with self._changed:
            self._is_held = True
        self._wait_for(lambda: not self._is_making)
        try:
            yield
        finally:
            with self._changed:
                self._is_held = False
                self._changed.notify_all()

    def _wait_for(self, is_reached: Callable[[], bool]) -> None:
        """Wait until the thread that makes batches has reached something, or has ended."""
        self._report("")
        if self._training:
            self.ranks_free.release()  # an engine that has died needs the ranks to continue
        with self._changed:
            self._changed.wait_for(lambda: is_reached() or self._has_ended)
        if self._training:
            self.ranks_free.acquire()
        self._report(f"step {self.returned}")

    def end(self) -> None:
        """Report that no more prompts will be drawn, because the stage ends early."""
        self._prompts.finish()

    def state_dict(self) -> dict[str, Any]:
        """Return the state between two steps, as plain values, for a checkpoint.

        Of a batch that is being made nothing is in it: after a restart its prompts are drawn again.
        """
        with self._changed:
            between = self._between if self._thread is not None else self._maker.state_dict()
            batches = {name: value for name, value in between.items() if name != "prompts"}
            batches |= {"given": self.returned, "left": [batch.as_dict() for batch in self._ready]}
            return {"batches": batches, "prompts": between["prompts"]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a state returned by `state_dict`, before the first step.

        The engines then get the weights of the checkpoint, whose version is `returned`.
        """
        batches = state["batches"]
        self._maker.load_state_dict(batches | {"prompts": state["prompts"]})
        self._between = self._maker.state_dict()
        self._weights = self.returned = batches["given"]
        self._ready = deque(RolloutBatch.from_dict(batch) for batch in batches["left"])

    def _take_or_make(self) -> RolloutBatch | None:
        return self._ready.popleft() if self._ready else self._maker.make()

    def _take_ahead(self) -> RolloutBatch | None:
        """Return the next batch that the thread has made; None if there are no more. Raises the error of the thread."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._make_ahead, daemon=True)
            self._thread.start()
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._has_ended)
            if self._error:
                raise self._error
            return self._ready.popleft() if self._ready else None

    @property
    def _has_ended(self) -> bool:
        return self._is_last or self._error is not None

    def _may_begin(self) -> bool:
        return not self._is_held and self._maker.made <= self._weights + self._plan.ahead

    def _make_ahead(self) -> None:
        """Make all batches, each as soon as the engines hold weights that are new enough for it."""
        while not self._has_ended:
            with self._changed:
                self._changed.wait_for(self._may_begin)
                self._is_making = True
            try:
                batch, error = self._maker.make(), None
            except BaseException as raised:
                batch, error = None, raised
            with self._changed:
                self._is_making = False
                self._error, self._is_last = error, batch is None and error is None
                if batch is not None:
                    self._ready.append(batch)
                self._between = self._maker.state_dict()
                self._changed.notify_all()

    def _measure(self, batch: RolloutBatch) -> dict[str, float]:
        samples = [sample for group in batch.groups for sample in group.samples]
        found = asdict(batch.health) if batch.health else {}
        if sampled := batch.drawn + batch.again:
            found["zero_variance_drawn"] = batch.flat / sampled
        if self._plan.over_draw:
            found["groups_carried"] = batch.carried
        if self._uses_votes:
            found["votes_used"] = sum(sample.vote_weight is not None for sample in samples) / len(samples)
            found["prompts_passed_over"] = batch.passed_over
        if batch.tokens is not None:
            found["tokens_drawn"] = batch.tokens
        return found | {
            "policy_lag": sum(sample.mean_lag(self.returned) for sample in samples) / len(samples),
            "interrupted": sum(bool(sample.switches) for sample in samples) / len(samples),
            "policy_lag_max": self.returned - min(group.version for group in batch.groups),
            "prompts_drawn": batch.drawn,
            "engine_restarts": self._engines.restarts,
            "seconds_rollout": round(batch.seconds, 6),
        }


def _find_weights(batch: RolloutBatch) -> list[float] | None:
    """Return the factors of the advantages, one for each sample; None if no sample is a vote."""
    weights = [sample.vote_weight for group in batch.groups for sample in group.samples]
    if all(weight is None for weight in weights):
        return None
    return [1.0 if weight is None else weight for weight in weights]
