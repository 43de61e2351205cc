"""OpenRLHF's own network and loss, on whole logits, in our update: for `medssr bench training` and tests."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch

from medssr_dist.bench.training.stock_sync import make_stock_trainer
from medssr_dist.training.backend.openrlhf import Actor, Experience
from medssr_dist.training.ranks import PolicyRank
from medssr_dist.training.update.rank_update import RankUpdate, StepCounts


class StockLossUpdate(RankUpdate):
    """Our update with the loss of OpenRLHF's trainer. Without old log-probs the update is on-policy."""

    def __init__(self, rank: PolicyRank, strategy, optimizer, scheduler):
        super().__init__(strategy, rank.actor, optimizer, scheduler)
        self._stock = make_stock_trainer(rank, strategy, optimizer, scheduler, None)
        self._stock.actor_loss_fn = partial(_use_own_logprobs, self._stock.actor_loss_fn)

    def train_micro_batch(self, experience: Experience, counts: StepCounts) -> dict[str, torch.Tensor]:
        """See RankUpdate. OpenRLHF returns shares in the mean of the optimizer step; they become means over tokens."""
        stage = self.strategy.grpo
        kl_coef = stage.kl_coef if stage.kl_in == "loss" else 0.0
        info = {"batch_num_tokens": counts.tokens, "global_batch_size": counts.sequences, "dp_size": counts.ranks}
        found = self._stock.training_step(experience, kl_coef, 0, info)["metrics"]
        own_mean = counts.tokens / (counts.ranks * experience.action_mask.sum().clamp(min=1))
        unknown = torch.tensor(math.nan)
        policy_loss, kl = found["policy_loss"] * own_mean, found.get("kl", torch.zeros(())) * own_mean
        metrics = {
            "loss": policy_loss + kl_coef * kl,
            "policy_loss": policy_loss,
            "kl": kl,
            "entropy": found["entropy_loss"] * own_mean if "entropy_loss" in found else unknown,
            "clip_ratio": found["ppo_clip_ratio"],
            "old_kl": found["ppo_kl"],
        }
        if "vllm_kl" in found:
            metrics |= {"rollout_kl": found["vllm_kl"], "importance_dropped": found["is_filter_ratio"]}
        return metrics


class StockLossRank(PolicyRank):
    """Our rank with OpenRLHF's network and loss."""

    def load_network(self, strategy, folder: str) -> Actor:
        args = strategy.args
        return Actor(
            folder,
            attn_implementation=args.ds.attn_implementation,
            experts_implementation=args.ds.experts_implementation,
            param_dtype=args.ds.param_dtype,
            lora_rank=args.ds.lora.rank,
            lora_alpha=args.ds.lora.alpha,
            target_modules=args.ds.lora.target_modules,
            lora_dropout=args.ds.lora.dropout,
            ds_config=strategy.get_ds_train_config(),
            packing_samples=args.ds.packing_samples,
            temperature=args.rollout.temperature,
        )

    def make_update(self, strategy, optimizer, scheduler) -> Any:
        return StockLossUpdate(self, strategy, optimizer, scheduler)


def _use_own_logprobs(loss, log_probs, old_log_probs, *args, **kwargs):
    """Return OpenRLHF's loss; without old log-probs the update is on-policy, and the new ones are used, detached."""
    return loss(log_probs, log_probs.detach() if old_log_probs is None else old_log_probs, *args, **kwargs)
