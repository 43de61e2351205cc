"""From rollout samples to what each rank trains on: advantages, a plan of micro-batches, and the log-probs they need.

In place of OpenRLHF's RemoteExperienceMaker, which always asks the policy for its log-probs and cuts samples as they
come. Shapes: N samples of a step, B of a micro-batch, T tokens, A = T - 1 actions; padding is on the right.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from functools import partial

import ray
import torch

from medssr_dist.errors import InputError
from medssr_dist.training.backend import cpu_patches
from medssr_dist.training.backend.strategy import Strategy
from medssr_dist.training.update import batching
from medssr_dist.training.update.algorithm import advantages_of, old_logprobs_pass

cpu_patches.apply()

from openrlhf.models.utils import compute_approx_kl  # noqa: E402
from openrlhf.trainer.ppo_utils.experience import Experience  # noqa: E402
from openrlhf.trainer.ray.launcher import RayActorGroup  # noqa: E402
from openrlhf.utils.utils import zero_pad_sequences  # noqa: E402


@dataclass(frozen=True)
class Prepared:
    """A step's work: micro-batches as [rank][update][micro-batch], and what is known before the update."""

    shares: list[list[list[Experience]]]
    metrics: dict[str, float]


class ExperienceMaker:
    """Prepares a step's samples for the ranks.

    Args:
        policy, reference: the ranks that are asked for log-probs; reference is None where no KL is measured.
    """

    def __init__(self, strategy: Strategy, policy: RayActorGroup, reference: RayActorGroup | None, pad_token: int):
        self._training, self._stage = strategy.config.training, strategy.grpo
        self._seed = strategy.config.runtime.random_seed
        self._policy, self._reference, self._pad_token = policy, reference, pad_token

    def prepare(self, samples: list[Experience], step: int) -> Prepared:
        """Work of `step` from its samples, one sequence each, those of a group one after the other.

        Raises InputError where the samples are no whole groups.
        """
        if len(samples) % self._stage.samples_per_prompt:
            raise InputError(f"{len(samples)} samples are no whole groups of {self._stage.samples_per_prompt}")
        groups = advantages_of(torch.cat([sample.rewards for sample in samples]), self._stage)
        shares = self._planned(samples, groups.advantage, step)
        batches = [batch for rank in shares for update in rank for batch in update]
        if self._reference is not None:
            self._ask(self._reference, batches, "base_action_log_probs")
        if old_logprobs_pass(self._training, self._stage):
            self._ask(self._policy, batches, "action_log_probs")
        metrics = means_of(samples) | {
            "advantage_abs": groups.advantage.abs().mean().item(),
            "group_reward_std": groups.std.mean().item(),
            "zero_variance": groups.zero_variance.float().mean().item(),
        }
        if self._stage.kl_in_reward:
            metrics["kl"] = lower_by_kl(batches, self._stage.kl_coef, self._stage.kl_estimator)
        return Prepared(shares, metrics)

    def _planned(self, samples: list[Experience], advantages: torch.Tensor, step: int) -> list:
        training, stage = self._training, self._stage
        size = stage.samples_per_prompt if training.share_prompts else 1
        units = [range(start, start + size) for start in range(0, len(samples), size)]
        lengths = [_tokens([samples[index] for index in unit]) for unit in units]
        if stage.micro_batch_tokens:
            cut = batching.budgeted(lengths, training.ranks, stage.micro_batch_tokens)
        elif training.batching == "balanced":
            cut = batching.balanced(lengths, training.ranks, stage.micro_batch_size // size)
        else:
            cut = batching.fixed(training.ranks, stage.micro_batch_size)
        plan = batching.plan(lengths, training.ranks, stage.updates_per_rollout, self._seed + step, cut)
        make = partial(micro_batch, samples, advantages, pad_token=self._pad_token)

        def made(bin_: list[int]) -> Experience:
            return make([index for unit in bin_ for index in units[unit]])

        return [[[made(bin_) for bin_ in update] for update in rank] for rank in plan]

    def _ask(self, group: RayActorGroup, batches: list[Experience], field: str) -> None:
        """Fill in `field` [B, A] of every micro-batch with the log-probs of the ranks of `group`."""
        names = ("sequences", "action_mask", "attention_mask")
        asked = {name: [getattr(batch, name) for batch in batches] for name in names}
        found = ray.get(group.async_run_method_batch(method_name="forward", **asked))
        for batch, log_probs in zip(batches, itertools.chain.from_iterable(found), strict=True):
            setattr(batch, field, log_probs)
        if self._training.colocate_reference:
            ray.get(group.async_run_method(method_name="empty_cache"))


def _tokens(samples: list[Experience]) -> int:
    """Tokens of samples that share their prompt, or of one."""
    answers = sum(int(sample.action_mask.sum()) for sample in samples)
    return samples[0].sequences.shape[1] - int(samples[0].action_mask.sum()) + answers


def micro_batch(samples: list[Experience], advantages: torch.Tensor, indices: list[int], pad_token: int) -> Experience:
    """The samples of `indices` side by side; without any, one sequence none of whose tokens counts."""
    chosen = [samples[index] for index in indices] or samples[:1]

    def side_by_side(name: str, value: int = 0) -> torch.Tensor | None:
        if getattr(chosen[0], name) is None:
            return None
        return zero_pad_sequences([getattr(sample, name) for sample in chosen], side="right", value=value)

    actions = side_by_side("action_mask")
    actions = actions if indices else torch.zeros_like(actions)
    own = advantages[indices or [0]].to(torch.float32)
    return Experience(
        sequences=side_by_side("sequences", pad_token),
        attention_mask=side_by_side("attention_mask"),
        action_mask=actions,
        rollout_log_probs=side_by_side("rollout_log_probs"),
        advantages=own[:, None] * actions,
    )


def lower_by_kl(batches: list[Experience], kl_coef: float, estimator: str) -> float:
    """Take the KL to the reference, of each token and all after it, off the advantages. Returns its mean a token."""
    total, tokens = 0.0, 0
    for batch in batches:
        kl = compute_approx_kl(batch.action_log_probs, batch.base_action_log_probs, kl_estimator=estimator)
        kl = kl * batch.action_mask
        batch.advantages -= kl_coef * kl.flip(1).cumsum(1).flip(1) * batch.action_mask
        total, tokens = total + kl.sum().item(), tokens + int(batch.action_mask.sum())
    return total / max(tokens, 1)


def means_of(samples: list[Experience]) -> dict[str, float]:
    """Means over the samples of what rollout and reward noted about each, and of their labels' confidence."""
    rows = [{name: float(value) for name, value in sample.info.items()} for sample in samples]
    means = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
    notes = [json.loads(label).get("confidence") for sample in samples for label in sample.labels]
    confidences = [confidence for confidence in notes if confidence is not None]
    if confidences:
        means["label_confidence"] = sum(confidences) / len(confidences)
    return means
