"""Prepares the samples of a step for the ranks: a plan of micro-batches, and the log-probs that they need.

It replaces OpenRLHF's RemoteExperienceMaker, which always computes the policy's log-probs and splits samples in the
order in which they arrive.

Shapes: N samples of a step, B sequences of a micro-batch, T tokens, A = T - 1 actions; padding is on the right.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import partial

import ray
import torch

from medssr_dist.config.schema import Config
from medssr_dist.config.training import Stage
from medssr_dist.errors import InputError
from medssr_dist.training.backend.openrlhf import Experience, RayActorGroup, compute_approx_kl, zero_pad_sequences
from medssr_dist.training.update import batching
from medssr_dist.training.update.grpo_terms import find_old_logprobs_reason


@dataclass(frozen=True)
class UpdateWork:
    """The micro-batches of one rollout.

    shares: [rank][optimizer step][micro-batch]; all ranks have the same numbers of steps and micro-batches.
    """

    shares: list[list[list[Experience]]]

    @property
    def batches(self) -> list[Experience]:
        """All micro-batches of all ranks."""
        return [batch for rank in self.shares for update in rank for batch in update]


class ExperienceMaker:
    """Prepares the samples of a step for the ranks.

    Args:
        policy, reference: the ranks that compute log-probs; reference is None if no KL is measured.
        pad_token: id of the padding token.
    """

    def __init__(
        self, config: Config, stage: Stage, policy: RayActorGroup, reference: RayActorGroup | None, pad_token: int
    ):
        self._training, self._stage = config.training, stage
        self._seed = config.runtime.random_seed
        self._policy, self._reference, self._pad_token = policy, reference, pad_token

    def plan(self, samples: list[Experience], advantage_N: torch.Tensor, step: int) -> UpdateWork:
        """Split the samples into micro-batches of all ranks, with balanced work.

        Args:
            samples: one sequence each; those of a group are adjacent.
            advantage_N: advantage of each sample.
            step: number of the step, from 0; the seed of the order in which samples are split into optimizer steps.

        Raises:
            InputError: the samples do not form whole groups.
        """
        training, stage = self._training, self._stage
        if len(samples) % stage.samples_per_prompt:
            raise InputError(f"{len(samples)} samples are not whole groups of {stage.samples_per_prompt}")
        size = stage.samples_per_prompt if training.share_prompts else 1
        units = [range(start, start + size) for start in range(0, len(samples), size)]
        lengths = [_count_tokens([samples[index] for index in unit]) for unit in units]
        if stage.micro_batch_tokens:
            cut = batching.make_budget_cut(lengths, training.ranks, stage.micro_batch_tokens)
        elif training.batching == "balanced":
            cut = batching.make_balanced_cut(lengths, training.ranks, stage.micro_batch_size // size)
        else:
            cut = batching.make_fixed_cut(training.ranks, stage.micro_batch_size)
        seed = self._seed + step
        plan = batching.plan_micro_batches(lengths, training.ranks, stage.updates_per_rollout, seed, cut)
        make = partial(make_micro_batch, samples, advantage_N, pad_token=self._pad_token)

        def make_bin(bin_: list[int]) -> Experience:
            return make([index for unit in bin_ for index in units[unit]])

        return UpdateWork([[[make_bin(bin_) for bin_ in update] for update in rank] for rank in plan])

    def add_log_probs(self, work: UpdateWork) -> None:
        """Fill in the reference's log-probs and, if the update needs them, the policy's before the update."""
        if self._reference is not None:
            self._compute(self._reference, work.batches, "base_action_log_probs")
        if find_old_logprobs_reason(self._training, self._stage):
            self._compute(self._policy, work.batches, "action_log_probs")
        for batch in work.batches:
            fill_vote_log_probs(batch)

    def subtract_kl(self, work: UpdateWork) -> float | None:
        """With `kl_in: reward`, subtract the KL to the reference from the advantages; return the mean KL of a token."""
        if not self._stage.kl_in_reward:
            return None
        return subtract_kl(work.batches, self._stage.kl_coef, self._stage.kl_estimator)

    def _compute(self, group: RayActorGroup, batches: list[Experience], field: str) -> None:
        """Fill in `field` [B, A] of every micro-batch with the log-probs that the ranks of `group` compute."""
        names = ("sequences", "action_mask", "attention_mask")
        inputs = {name: [getattr(batch, name) for batch in batches] for name in names}
        found = ray.get(group.async_run_method_batch(method_name="forward", **inputs))
        for batch, logp_BA in zip(batches, itertools.chain.from_iterable(found), strict=True):
            setattr(batch, field, logp_BA)
        if self._training.colocate_reference:
            ray.get(group.async_run_method(method_name="empty_cache"))


def fill_vote_log_probs(batch: Experience) -> None:
    """Give votes the reference's log-probs [B, A] in place of NaN: stage 1's reference is the policy that voted."""
    found = batch.rollout_log_probs
    if found is not None and (unknown_BA := found.isnan()).any():
        batch.rollout_log_probs = torch.where(unknown_BA, batch.base_action_log_probs.to(found.device), found)


def _count_tokens(samples: list[Experience]) -> int:
    """Return the tokens of one sample, or of samples that share their prompt, which counts once."""
    answers = sum(int(sample.action_mask.sum()) for sample in samples)
    return samples[0].sequences.shape[1] - int(samples[0].action_mask.sum()) + answers


def make_micro_batch(
    samples: list[Experience], advantage_N: torch.Tensor, indices: list[int], pad_token: int
) -> Experience:
    """Return the samples of `indices` as one Experience of B sequences, padded on the right.

    Without any index, it is one sequence whose tokens are all masked.
    """
    chosen = [samples[index] for index in indices] or samples[:1]

    def pad(name: str, value: int = 0) -> torch.Tensor | None:
        if getattr(chosen[0], name) is None:
            return None
        return zero_pad_sequences([getattr(sample, name) for sample in chosen], side="right", value=value)

    actions_BA = pad("action_mask")
    actions_BA = actions_BA if indices else torch.zeros_like(actions_BA)
    advantage_B = advantage_N[indices or [0]].to(torch.float32)
    return Experience(
        sequences=pad("sequences", pad_token),
        attention_mask=pad("attention_mask"),
        action_mask=actions_BA,
        rollout_log_probs=pad("rollout_log_probs"),
        advantages=advantage_B[:, None] * actions_BA,
    )


def subtract_kl(batches: list[Experience], kl_coef: float, estimator: str) -> float:
    """Subtract from each token's advantage the KL to the reference of this token and all after it.

    Returns the mean KL of a token.
    """
    total, tokens = 0.0, 0
    for batch in batches:
        kl_BA = compute_approx_kl(batch.action_log_probs, batch.base_action_log_probs, kl_estimator=estimator)
        kl_BA = kl_BA * batch.action_mask
        batch.advantages -= kl_coef * kl_BA.flip(1).cumsum(1).flip(1) * batch.action_mask
        total, tokens = total + kl_BA.sum().item(), tokens + int(batch.action_mask.sum())
    return total / max(tokens, 1)
