"""What the mismatch meter costs in a step of stage 1: log-probs of sampled tokens, and their comparison in the loss.

One vLLM engine, in this process, samples the rollouts of one step with and without log-probs; the loss of as many
tokens is computed with and without them. The two ways alternate, so that other load on the machine affects both.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from medssr_dist.bench.method.arm_runs import METHOD_CONFIG
from medssr_dist.bench.voting.engine import alternate
from medssr_dist.config.base import DataSource
from medssr_dist.config.load import load_config
from medssr_dist.config.schema import Config
from medssr_dist.inference.vllm_args import build_engine_env, build_rollout_kwargs
from medssr_dist.readers import read_questions
from medssr_dist.runtime.models import load_tokenizer, make_prompt_renderer, resolve_model
from medssr_dist.training.rollout.groups import GroupRequest

_HIDDEN, _VOCABULARY = 128, 2048  # of the mini policy


@dataclass(frozen=True)
class MeterCost:
    """Seconds of one step with the meter and without it.

    Attributes:
        tokens: sampled in the step.
        rollout_with, rollout_without, loss_with, loss_without: medians over the rounds, seconds.
        rollout_ratio, loss_ratio: medians of the ratios of each round, with over without.
        step_seconds: of a whole step, measured in stage 1 with rollouts by the engines.
    """

    tokens: int
    rollout_with: float
    rollout_without: float
    loss_with: float
    loss_without: float
    rollout_ratio: float
    loss_ratio: float
    step_seconds: float

    @property
    def share(self) -> float:
        """Share of a whole step that the meter takes."""
        rollout = self.rollout_without * (self.rollout_ratio - 1)
        return (rollout + self.loss_without * (self.loss_ratio - 1)) / self.step_seconds


def measure_meter(rounds: int, step_seconds: float) -> MeterCost:
    """Return the cost, measured in so many rounds. `step_seconds`: of a whole step with rollouts by the engines."""
    config = load_config(METHOD_CONFIG)
    tokens, rollout = _compare(_make_rollouts(config), rounds, "rollouts")
    _, loss = _compare(_make_losses(tokens), 10 * rounds, "loss")
    return MeterCost(
        tokens=tokens,
        rollout_with=statistics.median(rollout.with_meter),
        rollout_without=statistics.median(rollout.without),
        loss_with=statistics.median(loss.with_meter),
        loss_without=statistics.median(loss.without),
        rollout_ratio=round(rollout.find_ratio(), 4),
        loss_ratio=round(loss.find_ratio(), 4),
        step_seconds=step_seconds,
    )


def format_meter(cost: MeterCost) -> str:
    """Return the table of the meter's cost."""
    lines = ["mismatch meter      with  without  ratio"]
    lines.append(f"rollouts     {cost.rollout_with:>9.3f} s{cost.rollout_without:>7.3f} s{cost.rollout_ratio:>7.3f}")
    lines.append(f"loss         {cost.loss_with:>9.3f} s{cost.loss_without:>7.3f} s{cost.loss_ratio:>7.3f}")
    lines.append(f"share of a step of {cost.step_seconds:.1f} s: {cost.share:.1%} ({cost.tokens:,} tokens)")
    return "\n".join(lines)


@dataclass(frozen=True)
class _Seconds:
    with_meter: Sequence[float]
    without: Sequence[float]

    def find_ratio(self) -> float:
        return statistics.median(ours / theirs for ours, theirs in zip(self.with_meter, self.without, strict=True))


def _compare(make: Callable[[bool], Callable[[], int]], rounds: int, name: str) -> tuple[int, _Seconds]:
    """Return the tokens of one call and the seconds of both ways in each round."""
    ways = {"with": make(True), "without": make(False)}
    tokens = ways["with"]()
    rates = alternate(ways, rounds, f"{name} with and without log-probs")
    return tokens, _Seconds(*([tokens / rate for rate in rates[way]] for way in ("with", "without")))


def _make_rollouts(config: Config) -> Callable[[bool], Callable[[], int]]:
    import vllm

    from medssr_dist.training.rollout.rollout_engine import make_sampling_params
    from medssr_dist.training.rollout.workers import make_sampling

    stage, model = config.training.stage1, resolve_model(config.policy)
    prompts = make_prompt_renderer(load_tokenizer(model, config.policy), config.policy)
    sampling = make_sampling(config, stage)
    questions = read_questions(DataSource(path="hpo:mini-seeds", limit=stage.prompts_per_step))
    rendered = [prompts.render(question) for question in questions]
    os.environ |= build_engine_env(config.runtime, os.cpu_count() or 1)
    engine = vllm.LLM(**build_rollout_kwargs(model, config))
    inputs = [{"prompt_token_ids": list(each.ids)} for each in rendered]

    def make(with_meter: bool) -> Callable[[], int]:
        chosen = replace(sampling, logprobs=with_meter)
        params = [
            make_sampling_params(GroupRequest(number, each.text, list(each.ids), "A", chosen))
            for number, each in enumerate(rendered)
        ]

        def sample() -> int:
            outputs = engine.generate(inputs, params, use_tqdm=False)
            samples = [sample for output in outputs for sample in output.outputs]
            if with_meter:
                for each in samples:
                    [step[token].logprob for token, step in zip(each.token_ids, each.logprobs, strict=True)]
            return sum(len(each.token_ids) for each in samples)

        return sample

    return make


def _make_losses(tokens: int) -> Callable[[bool], Callable[[], int]]:
    """Return a maker of functions that compute loss and gradient of so many tokens."""
    from medssr_dist.kernels import GrpoOptions, linear_grpo_loss

    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, _HIDDEN, generator=generator, requires_grad=True)
    weight = torch.randn(_VOCABULARY, _HIDDEN, generator=generator, requires_grad=True)
    target = torch.randint(_VOCABULARY, (tokens,), generator=generator)
    advantages, logp = torch.randn(tokens, generator=generator), -torch.rand(tokens, generator=generator)
    options = GrpoOptions()

    def make(with_meter: bool) -> Callable[[], int]:
        def compute() -> int:
            rollout = logp if with_meter else None
            found = linear_grpo_loss(hidden, weight, target, advantages, rollout_logp=rollout, options=options)
            found.loss.backward()
            return tokens

        return compute

    return make
