"""Make the mini policy: train until its accuracy lies in the wanted range, then write the model directory.

Every `every` seconds the accuracy is measured on check questions, whose patients are in no other set. When it lies in
the range and the majority is far enough above it, it is measured again on more of them; if that confirms it, the
training ends, the model is written, and its accuracy on the evaluation set is measured, once. It does not end before
the last phase of its text, as only that has all wordings of the offline teacher. A killed call continues where it was.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from medssr_dist.data.jsonl import JsonlLedger
from medssr_dist.data.prompt_forms import load_prompt_form
from medssr_dist.errors import InputError
from medssr_dist.knowledge.mini_world import CHECK, EVALUATION, load_mini_world, make_mini_questions
from medssr_dist.mini_policy.learn import Learner, MiniShape
from medssr_dist.mini_policy.mini_text import MiniText
from medssr_dist.mini_policy.mini_tokenizer import train_tokenizer
from medssr_dist.mini_policy.packing import PROMPT
from medssr_dist.mini_policy.publish import MiniMeasured, publish_mini_policy, round_weights
from medssr_dist.mini_policy.sampled_accuracy import MiniAccuracy, measure_accuracy

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_log = logging.getLogger(__name__)
TEMPERATURE = 0.6
VOTES = 16
_DOUBT = 0.02  # our choice: about the standard error of an accuracy on the fewest questions
_LOSSES = 100  # steps that the reported loss is the mean of


@dataclass(frozen=True)
class MiniGoal:
    """When training may stop: `low` <= accuracy <= `high`, and the majority of VOTES at least `gap` above it."""

    low: float = 0.40
    high: float = 0.55
    gap: float = 0.06

    def is_met(self, found: MiniAccuracy) -> bool:
        """Return whether `found` lies in the range, with the gap."""
        return self.low <= found.mean <= self.high and found.majority - found.mean >= self.gap

    def may_be_met(self, found: MiniAccuracy) -> bool:
        """Return whether `found`, of few questions, is near enough to measure again on more of them."""
        wider = MiniGoal(self.low - _DOUBT, self.high + _DOUBT, self.gap - _DOUBT)
        return wider.is_met(found)


@dataclass(frozen=True)
class MiniPlan:
    """What a call does: folder of work, goal, sizes.

    Attributes:
        every: seconds of training between two measurements.
        limit: seconds of training in all, over all calls.
        check_questions, confirm_questions, evaluation_questions: of the first, the second and the last measurement.
    """

    work: Path
    goal: MiniGoal = field(default_factory=MiniGoal)
    shape: MiniShape = field(default_factory=MiniShape)
    seed: int = 1
    every: float = 120.0
    limit: float = 3 * 3600.0
    tokenizer_documents: int = 8000
    check_questions: int = 128
    confirm_questions: int = 600
    evaluation_questions: int = 2000


def make_mini_policy(plan: MiniPlan) -> Path:
    """Train and publish the mini policy; returns the folder of the model.

    Raises:
        InputError: the goal is not met within the limit, or passed between two measurements.
    """
    plan.work.mkdir(parents=True, exist_ok=True)
    tokenizer = _prepare_tokenizer(plan)
    learner = Learner(plan.shape, tokenizer, MiniText(load_mini_world(), plan.seed), plan.seed)
    checkpoint = plan.work / "checkpoint.pt"
    if checkpoint.exists():
        learner.load(checkpoint)
        _log.info("continues at step %d", learner.step)
    while not _train_until_check(learner, plan):
        pass
    round_weights(learner)
    found = _measure(learner, plan, EVALUATION, plan.evaluation_questions)
    return publish_mini_policy(learner, plan.work / "medssr-mini", MiniMeasured(EVALUATION, TEMPERATURE, found))


def _prepare_tokenizer(plan: MiniPlan) -> PreTrainedTokenizerFast:
    """Load the tokenizer of an earlier call, or train it on text of a seed of its own."""
    from transformers import PreTrainedTokenizerFast

    folder = plan.work / "tokenizer"
    if (folder / "tokenizer.json").exists():
        tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(folder)
        return tokenizer
    text = MiniText(load_mini_world(), plan.seed + 1)
    form = load_prompt_form(PROMPT)
    documents = [text.draw() for _ in range(plan.tokenizer_documents)]
    prompts = [form.fill_in(one.question) for one in documents if one.question is not None]
    texts = prompts + [one.text for one in documents]
    tokenizer = train_tokenizer(texts, plan.shape.vocabulary, plan.shape.positions)
    tokenizer.save_pretrained(folder)
    return tokenizer


def _train_until_check(learner: Learner, plan: MiniPlan) -> bool:
    """Train for `plan.every` seconds, save, measure; returns whether the goal is met."""
    if learner.seconds >= plan.limit:
        raise InputError(f"the goal is not met after {learner.seconds:.0f} s of training; raise --hours")
    losses: deque[float] = deque(maxlen=_LOSSES)
    end = learner.seconds + plan.every
    while learner.seconds < end:
        start = time.monotonic()
        losses.append(learner.advance())
        learner.seconds += time.monotonic() - start
    learner.save(plan.work / "checkpoint.pt")
    _log.info("step %d, %.0f s, loss %.3f", learner.step, learner.seconds, sum(losses) / len(losses))
    found = _measure(learner, plan, CHECK, plan.check_questions)
    if learner.step < plan.shape.phases[-1].start:
        return False
    if plan.goal.may_be_met(found):
        found = _measure(learner, plan, CHECK, plan.confirm_questions)
        return plan.goal.is_met(found)
    if found.mean > plan.goal.high + 0.05:
        raise InputError(
            f"accuracy {found.mean:.3f} is above {plan.goal.high}; remove {plan.work / 'checkpoint.pt'} and start "
            "again with a shorter --every"
        )
    return False


def _measure(learner: Learner, plan: MiniPlan, name: str, questions: int) -> MiniAccuracy:
    """Measure on the first `questions` of a set, and write the result as a line of measurements.jsonl."""
    items = make_mini_questions(name, questions, plan.seed)
    _log.info("answering %d questions of %s, %d times each", questions, name, VOTES)
    found = measure_accuracy(learner.model, learner.tokenizer, items, VOTES, TEMPERATURE)
    with JsonlLedger(plan.work / "measurements.jsonl") as ledger:
        ledger.append({"set": name, "step": learner.step, "seconds": round(learner.seconds), **asdict(found)})
    _log.info(
        "%s: mean %.3f (common %.3f, rare %.3f), majority of %d %.3f",
        *(name, found.mean, found.mean_common, found.mean_rare, VOTES, found.majority),
    )
    return found
