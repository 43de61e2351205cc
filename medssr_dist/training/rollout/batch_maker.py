"""Makes the batches of a stage: draws prompts, has the engines sample their groups, and returns whole batches.

A batch depends only on the order of the prompts, not on which engine is faster: a group without variance is replaced by
the group of the next prompt, so a batch is the first groups with variance.

With `training.over_draw` a batch draws more prompts from the start (`over_draw.py`). What is drawn depends on how many
groups have variance, so batches still do not depend on the engines. Groups beyond the batch are carried over: the next
batch begins with them, and they are part of the state that a checkpoint stores.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import asdict, dataclass, replace
from typing import Any

from medssr_dist.training.rollout.engines import RolloutEngines
from medssr_dist.training.rollout.examples import PromptLoader
from medssr_dist.training.rollout.first_rollouts import PromptChoice
from medssr_dist.training.rollout.groups import Group, GroupRequest, Sample, Sampling
from medssr_dist.training.rollout.over_draw import FlatShare
from medssr_dist.training.rollout.vote_health import VoteHealth, measure_health

_MOST_PASSED_OVER = 50  # a batch passes over at most this multiple of its number of prompts
_MOST_DRAWS = 4  # a batch draws at most this multiple of its number of prompts


@dataclass(frozen=True)
class BatchPlan:
    """How batches are made.

    prompts: number of prompts in a batch. steps: number of batches; 0 = one pass over the data. drop_zero_variance:
    replace groups whose rewards are all equal. ahead: batch b may be begun with weights that are so many steps older
    than those of step b, and is then made while the ranks train. over_draw: draw by the share of equal rewards so far,
    and carry surplus groups over. max_lag: a carried group whose weights are more steps older than this is sampled
    again. interrupts: new weights interrupt the samples that are being drawn, which then continue with them; else they
    wait until the batches that the old weights may begin are made.

    Example: BatchPlan(prompts=64, steps=0, drop_zero_variance=True, ahead=0, over_draw=True, max_lag=1)
    """

    prompts: int
    steps: int
    drop_zero_variance: bool
    ahead: int
    over_draw: bool = False
    max_lag: int = 1
    interrupts: bool = False


@dataclass(frozen=True)
class RolloutBatch:
    """The groups of one step, in the order of their prompts.

    drawn: number of prompts drawn for it. flat: how many of the sampled groups had equal rewards. seconds: time from
    the first request to the last group. health: of all sampled groups; None if there are none, and in batches that an
    earlier version made. again: prompts of carried groups that were sampled again. carried: groups that are left for
    later batches. passed_over: prompts that were not drawn, by their votes. tokens: that engines generated.
    """

    groups: list[Group]
    drawn: int
    flat: int
    seconds: float
    health: VoteHealth | None = None
    again: int = 0
    carried: int = 0
    passed_over: int = 0
    tokens: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for a checkpoint."""
        health = asdict(self.health) if self.health else None
        return vars(self) | {"groups": [group.as_dict() for group in self.groups], "health": health}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RolloutBatch:
        """Read what `as_dict` has returned."""
        health = values.get("health")
        groups = [Group.from_dict(group) for group in values["groups"]]
        return cls(**values | {"groups": groups, "health": VoteHealth(**health) if health else None})


class BatchMaker:
    """Makes one batch after the other; batch number b is the one of step b + 1.

    If groups without variance are dropped, a batch draws at most _MOST_DRAWS times its number of prompts. The rest is
    then filled with groups without variance, so that sampling ends even if the policy is always right or always wrong.

    Args:
        choice: uses the votes on the prompts; None = every prompt is drawn, and every group sampled.

    Attributes:
        made: number of batches made.
    """

    def __init__(
        self,
        plan: BatchPlan,
        sampling: Sampling,
        prompts: PromptLoader,
        engines: RolloutEngines,
        choice: PromptChoice | None,
    ):
        self._plan, self._sampling, self._prompts = plan, sampling, prompts
        self._engines, self._choice = engines, choice
        self._from_votes: dict[int, list[Sample]] = {}  # number of a prompt -> its samples that are votes
        self._complete: deque[Group] = deque()  # groups of votes alone
        self._passed_over = 0  # in the batch that is being made
        self._carried: list[Group] = []  # with variance, beyond the batches made, in the order of their prompts
        self._flat_share = FlatShare()
        self.made = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the state between two batches, as plain values. Groups are not copied: they never change."""
        state: dict[str, Any] = {"made": self.made, "prompts": self._prompts.state_dict()}
        if self._plan.over_draw or self._carried:
            state["carried"] = [group.as_dict() for group in self._carried]
            state["flat_share"] = asdict(self._flat_share)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a state returned by `state_dict`."""
        self.made = state["made"]
        self._carried = [Group.from_dict(group) for group in state.get("carried", [])]
        self._flat_share = FlatShare(**state.get("flat_share", {}))
        self._prompts.load_state_dict(state["prompts"])

    def make(self) -> RolloutBatch | None:
        """Make the next batch; None if there are no more. If it fails, its prompts will be drawn again."""
        before, carried = self._prompts.state_dict(), list(self._carried)
        try:
            return self._collect()
        except BaseException:
            self._prompts.load_state_dict(before)
            self._carried = carried
            self._complete.clear()
            raise

    def _collect(self) -> RolloutBatch | None:
        if self._plan.steps and self.made == self._plan.steps:
            self._prompts.finish()
            return None
        since, plan = time.monotonic(), self._plan
        self._passed_over = 0
        varied, again = self._take_carried()
        drawn = self._draw_first(plan.prompts - len(varied) - again, bool(varied or again))
        if not (drawn or varied or again):
            self._prompts.finish()
            return None
        most = plan.prompts * (_MOST_DRAWS if plan.drop_zero_variance else 1)
        new: list[Group] = []
        flat: list[Group] = []
        while len(new) < drawn + again:
            new.append(self._next_group())
            (varied if new[-1].has_variance else flat).append(new[-1])
            possible = len(varied) + drawn + again - len(new)  # groups with variance, if all that come have it
            if plan.drop_zero_variance and possible < plan.prompts and drawn < most:
                drawn += self._draw_more(most - drawn)
        return self._close_batch(varied, flat, new, drawn, again, since)

    def _take_carried(self) -> tuple[list[Group], int]:
        """Return the carried groups that can be trained on; request the others again and return their number."""
        carried, self._carried = self._carried, []
        fresh = [group for group in carried if self.made - group.version <= self._plan.max_lag]
        stale = [group for group in carried if self.made - group.version > self._plan.max_lag]
        for group in stale:
            self._engines.submit(
                GroupRequest(group.number, group.prompt, group.prompt_ids, group.label, self._sampling)
            )
        return fresh, len(stale)

    def _draw_first(self, missing: int, begun: bool) -> int:
        """Draw the prompts that a batch begins with: `missing` ones, and more by the share of flat groups so far.

        A single pass ends with a batch that is filled from the beginning; a batch that is `begun` is filled so too.
        """
        if missing <= 0:
            return 0
        wrap = bool(self._plan.steps)
        drawn = self._draw(missing, wrap or begun)
        if drawn and self._is_over_drawn:
            extra = self._flat_share.count_draws(missing, _MOST_DRAWS * self._plan.prompts) - missing
            drawn += self._draw(extra, wrap, fill=wrap)
        return drawn

    def _draw_more(self, most: int) -> int:
        """Draw one prompt in place of a flat group, or, with over-draw, as many as are expected to have one varied."""
        drawn = self._draw(1, wrap=True)
        if self._is_over_drawn:
            wrap = bool(self._plan.steps)
            drawn += self._draw(self._flat_share.count_draws(1, most) - 1, wrap, fill=wrap)
        return drawn

    @property
    def _is_over_drawn(self) -> bool:
        """Whether the batch may draw surplus prompts; the last of a fixed number of batches has no next one."""
        return self._plan.over_draw and self.made + 1 != self._plan.steps

    def _close_batch(
        self, varied: list[Group], flat: list[Group], new: list[Group], drawn: int, again: int, since: float
    ) -> RolloutBatch:
        plan = self._plan
        varied = sorted(varied, key=_get_number)
        self._carried = varied[plan.prompts :]
        self._flat_share.add(len(flat), len(new))
        self.made += 1
        if self.made == plan.steps:
            self._prompts.finish()
        spare = sorted(flat, key=_get_number)[: max(0, plan.prompts - len(varied))]
        groups = sorted(varied[: plan.prompts] + spare, key=_get_number)
        health = measure_health(new) if new else None
        seconds = time.monotonic() - since
        tokens = sum(len(each.token_ids) for group in new for each in group.samples if each.vote_weight is None)
        carried, passed_over = len(self._carried), self._passed_over
        return RolloutBatch(groups, drawn, len(flat), seconds, health, again, carried, passed_over, tokens)

    def _draw(self, count: int, wrap: bool, fill: bool = True) -> int:
        """Draw `count` prompts and send them to the engines; return their number, 0 if the pass was already over.

        Args:
            wrap: begin again if the pass is over before the first prompt.
            fill: begin again if the pass ends after the first prompt.
        """
        for index in range(count):
            if not self._draw_one(wrap if index == 0 else fill):
                return index
        return max(0, count)

    def _draw_one(self, wrap: bool) -> bool:
        """Draw the next prompt that is not passed over, and have its group sampled; False if the pass is over."""
        most = _MOST_PASSED_OVER * self._plan.prompts
        while drawn := self._prompts.draw(wrap):
            samples = self._choice.find_samples(drawn, self.made) if self._choice else []
            if self._choice and self._passed_over < most and self._choice.passes_over(drawn, samples):
                self._passed_over += 1
                continue
            self._request(
                GroupRequest(self._prompts.taken - 1, drawn.text, drawn.ids, drawn.label, self._sampling), samples
            )
            return True
        return False

    def _request(self, request: GroupRequest, samples: list[Sample]) -> None:
        """Have the engines sample what `samples` lack of a group."""
        missing = self._sampling.n - len(samples)
        if not missing:
            self._complete.append(Group(request.number, request.prompt, request.prompt_ids, request.label, samples))
            return
        if samples:
            self._from_votes[request.number] = samples
            request = replace(request, sampling=replace(self._sampling, n=missing))
        self._engines.submit(request)

    def _next_group(self) -> Group:
        """Return a group of votes alone, or wait for the next one of the engines and add its votes."""
        if self._complete:
            return self._complete.popleft()
        group = self._engines.next_group()
        return replace(group, samples=self._from_votes.pop(group.number, []) + group.samples)


def _get_number(group: Group) -> int:
    return group.number
