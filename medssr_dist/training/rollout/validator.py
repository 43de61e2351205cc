"""Held-out validation: the rollout engines answer human-annotated questions with the policy's current weights.

Prompts, sampling limits and reader of answers are those of the evaluation, without its second pass: an answer that
names no option is wrong. Question i has the same seeds in every validation, so two validations differ by their weights
alone, and one that is repeated after a restart gives the same numbers.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from medssr_dist.config.schema import Config
from medssr_dist.data.prompt_renderer import PromptRenderer
from medssr_dist.errors import InputError
from medssr_dist.training.rollout.engines import RolloutEngines
from medssr_dist.training.rollout.examples import DrawnPrompt, make_annotated_examples, render_example
from medssr_dist.training.rollout.groups import GroupRequest, Sample, Sampling
from medssr_dist.training.stage_job import StageJob
from medssr_dist.training.validation_log import ValidationResult, make_result

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ValidationPlan:
    """What is asked and when.

    every: after every this many steps. last_step: also after this one.

    Example: ValidationPlan(prompts=[DrawnPrompt(...)], sampling=Sampling(n=4, ...), every=10, last_step=64)
    """

    prompts: list[DrawnPrompt]
    sampling: Sampling
    every: int
    last_step: int


def make_validation_plan(job: StageJob, renderer: PromptRenderer) -> ValidationPlan | None:
    """Return the plan of the stage's validation; None if `training.validate` is off.

    Questions whose prompt leaves no room for an answer are left out, and counted in the log.

    Raises:
        InputError: every prompt is too long.
    """
    settings, policy = job.config.training.validation, job.config.policy
    if settings is None:
        return None
    room = policy.max_model_len - job.config.evaluation.max_tokens
    prompts = [render_example(renderer, example) for example in make_annotated_examples(job.validation)]
    fitting = [prompt for prompt in prompts if len(prompt.ids) <= room]
    if not fitting:
        raise InputError(
            f"training.validate.data: all {len(prompts)} prompts are longer than policy.max_model_len - "
            f"evaluation.max_tokens = {room} tokens; raise policy.max_model_len, or name other questions"
        )
    if len(fitting) < len(prompts):
        _log.warning(
            "validation leaves out %d of %d questions: their prompts have more than %d tokens",
            len(prompts) - len(fitting),
            len(prompts),
            room,
        )
    return ValidationPlan(fitting, make_validation_sampling(job.config), settings.every, job.expected_steps)


def make_validation_sampling(config: Config) -> Sampling:
    """Return how validation samples: as evaluation does. `training.validate` must be on."""
    evaluation = config.evaluation
    assert config.training.validation is not None
    return Sampling(
        n=config.training.validation.generations,
        temperature=evaluation.temperature,
        top_p=evaluation.top_p,
        max_tokens=evaluation.max_tokens,
        logprobs=False,
        random_seed=config.runtime.random_seed,
        stop=config.policy.prompt.stop,
        top_k=evaluation.top_k,
        series="validation",
    )


class Validator:
    """Measures the held-out accuracy of the weights that the engines hold.

    Call it while no other groups are being sampled: between the weight sync and the next step.

    Args:
        known: the results of earlier attempts; they are not measured again.
        record: called with each new result.
    """

    def __init__(
        self,
        plan: ValidationPlan,
        engines: RolloutEngines,
        known: list[ValidationResult],
        record: Callable[[ValidationResult], None],
    ):
        self._plan, self._engines, self._record = plan, engines, record
        self._known = {result.step: result for result in known}

    def measure_if_due(self, step: int) -> ValidationResult | None:
        """Return the result for the policy after `step` steps; None if it is not due."""
        is_due = step % self._plan.every == 0 or step == self._plan.last_step
        return self.measure(step) if is_due else None

    def measure(self, step: int) -> ValidationResult:
        """Return the result for the policy after `step` steps, whether it is due or not."""
        if step not in self._known:
            self._known[step] = self._ask(step)
            self._record(self._known[step])
        return self._known[step]

    def _ask(self, step: int) -> ValidationResult:
        since, plan = time.monotonic(), self._plan
        for number, prompt in enumerate(plan.prompts):
            self._engines.submit(GroupRequest(number, prompt.text, prompt.ids, prompt.label, plan.sampling))
        answers: dict[int, list[Sample]] = {}
        while len(answers) < len(plan.prompts):
            group = self._engines.next_group()
            answers[group.number] = group.samples
        samples = [sample for number in sorted(answers) for sample in answers[number]]
        truths = [json.loads(prompt.label)["answer"] for prompt in plan.prompts]
        return make_result(
            step,  # letters, not rewards: the reward may be a function of the user's own
            right=[sum(sample.letter == truth for sample in answers[number]) for number, truth in enumerate(truths)],
            generations=plan.sampling.n,
            invalid=sum(sample.invalid for sample in samples) / len(samples),
            truncated=sum(sample.truncated for sample in samples) / len(samples),
            seconds=round(time.monotonic() - since, 3),
        )
