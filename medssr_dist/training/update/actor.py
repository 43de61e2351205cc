"""OpenRLHF's actor and update with log-probs, entropy and GRPO loss computed by the kernels, inside the head.

The update takes loss and gradients in one forward pass of the head (three GEMMs, arXiv 2402.03300 eq. 3). Only rows
that predict an unmasked action reach a GEMM: prompt and padding are dropped before. Options that these classes do not
read (critic, mixture-of-experts loss, images, ring attention) are fixed to off in `openrlhf_args.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial

import torch
from torch.nn import functional as F

from medssr_dist.bench.training.stock_loss import OpenRlhfLoss
from medssr_dist.config.training import Training
from medssr_dist.kernels import GrpoMetrics, linear_grpo_loss, linear_logprob
from medssr_dist.training.backend import cpu_patches
from medssr_dist.training.update.algorithm import grpo_options
from medssr_dist.training.update.lm_head import KernelHead, install_head
from medssr_dist.training.update.rank_update import PlannedUpdate
from medssr_dist.training.update.sequence_layout import Layout, packed, padded, shared

cpu_patches.apply()

from openrlhf.models import Actor  # noqa: E402
from openrlhf.trainer.ppo_utils.experience import Experience  # noqa: E402
from openrlhf.trainer.ray.ppo_actor import ActorPPOTrainer  # noqa: E402

# What is computed over the rows: (hidden [n, H], weight [V, H], target [n]) -> one tensor, n the unmasked actions.
LayOut = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Layout]
OverRows = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class KernelActor(Actor):
    """OpenRLHF's Actor, whose head computes what is asked for in place of logits. B sequences, T tokens, A actions.

    Args:
        lay_out: how the model is given the sequences, of `layout.py`.
    """

    def __init__(self, *args, lay_out: LayOut = padded, **kwargs):
        super().__init__(*args, **kwargs)
        install_head(self.model)
        self._lay_out = lay_out

    @property
    def head(self) -> KernelHead:
        return self.model.get_output_embeddings()

    def forward(self, sequences, action_mask, attention_mask, ring_attn_group=None, packed_seq_lens=None):
        """Log-probs of the actions at the rollout temperature, fp32 [B, A], 0 where masked."""

        def logp(hidden, weight, target):
            return linear_logprob(hidden, weight, target, temperature=self.temperature)

        found = self.over_rows(logp, sequences, action_mask, attention_mask)
        return torch.zeros(action_mask.shape, device=found.device).masked_scatter(action_mask.bool(), found)

    def over_rows(self, compute: OverRows, sequences, action_mask, attention_mask) -> torch.Tensor:
        """Run the model with `compute` over the rows that predict an unmasked action, in its head's place.

        Args:
            sequences, attention_mask: [B, T].
            action_mask: [B, A], of the last A tokens; the row before a token predicts it.
        """
        layout = self._lay_out(sequences, attention_mask, action_mask)

        def chosen(hidden, weight):
            return compute(hidden.flatten(0, 1).index_select(0, layout.rows), weight, layout.target)

        with self.head.computing(chosen):
            found = self.model(layout.tokens, attention_mask=layout.attention, position_ids=layout.positions)
        return found["logits"]


class KernelLoss(ActorPPOTrainer):
    """OpenRLHF's trainer of a KernelActor with the kernels' loss; all algorithms of the config."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._options = grpo_options(self.strategy.grpo)

    def training_step(self, experience: Experience, kl_ctl: float, step: int, loss_batch_info: dict) -> dict:
        """One micro-batch forward and backward, and the optimizer's step where DeepSpeed's accumulation is full.

        Args:
            kl_ctl: weight of the KL to the reference.
            loss_batch_info: OpenRLHF's counts over the whole optimizer step, all ranks and micro-batches.
        """
        self.actor.train()
        loss, metrics = self._loss(experience, kl_ctl, loss_batch_info)
        self.strategy.backward(loss, self.actor, self.actor_optim)
        self.strategy.optimizer_step(self.actor_optim, self.actor, self.actor_scheduler, name="actor")
        return self._status(experience, loss, metrics, loss_batch_info)

    def _loss(self, experience: Experience, kl_ctl: float, counts: dict) -> tuple[torch.Tensor, GrpoMetrics]:
        actions = experience.action_mask.bool()

        def of_actions(values: torch.Tensor | None) -> torch.Tensor | None:
            return None if values is None else values[actions]

        metrics = None

        def loss(hidden, weight, target):
            nonlocal metrics
            value, metrics = linear_grpo_loss(
                hidden,
                weight,
                target,
                experience.advantages[actions],
                temperature=self.actor.temperature,
                old_logp=of_actions(experience.action_log_probs),
                ref_logp=of_actions(experience.base_action_log_probs),
                rollout_logp=of_actions(experience.rollout_log_probs),
                offsets=F.pad(actions.sum(1).cumsum(0), (1, 0)),
                options=replace(self._options, kl_coef=kl_ctl if self.args.algo.kl.use_loss else 0.0),
                token_count=counts["batch_num_tokens"],
                sequence_count=counts["global_batch_size"],
                dp_size=counts["dp_size"],
            )
            return value

        value = self.actor.over_rows(loss, experience.sequences, actions, experience.attention_mask)
        return value, metrics

    def _status(self, experience: Experience, loss: torch.Tensor, metrics: GrpoMetrics, counts: dict) -> dict:
        """What OpenRLHF's loop averages and logs: over tokens, over samples, or as it is where the weight is None."""
        tokens = experience.action_mask.sum()
        # The loss is this micro-batch's share of the step's mean; its own mean is what can be averaged over tokens.
        own_mean = counts["batch_num_tokens"] / (counts["dp_size"] * tokens.clamp(min=1))
        over_tokens = {
            "loss": loss.detach() * own_mean,
            "policy_loss": metrics.policy_loss * own_mean,
            "kl": metrics.kl_loss * own_mean,
            "entropy": metrics.entropy * own_mean,
            "ppo_clip_ratio": metrics.clip_share,
            "ppo_kl": metrics.old_kl,
            "logprobs_diff": metrics.reference_log_ratio,
        }
        if self.strategy.grpo.importance != "off":
            over_tokens |= {"vllm_kl": metrics.rollout_kl, "is_filter_ratio": metrics.importance_dropped}
        over_samples = {name: torch.as_tensor(value, dtype=torch.float32) for name, value in experience.info.items()}
        over_samples |= {
            field.name: getattr(experience, field.name)
            for field in fields(Experience)
            if Experience.is_episode_tensor_field(field.name) and field.name not in ("rewards", "scores")
        }
        over_samples = {name: value for name, value in over_samples.items() if value is not None}
        last = {
            "actor_lr": self.actor_scheduler.get_last_lr()[0],
            "actor_grad_norm": self.strategy.get_grad_norm(self.actor),
        }
        return {
            "metrics": over_samples | over_tokens | last,
            "weights": dict.fromkeys(over_samples, "sample")
            | dict.fromkeys(over_tokens, "token")
            | dict.fromkeys(last),
            "num_samples": float(len(experience.action_mask)),
            "num_action_tokens": float(tokens),
        }


def actor_class(training: Training) -> Callable[..., KernelActor]:
    """What makes a rank's model."""
    if training.share_prompts:
        return partial(KernelActor, lay_out=shared)
    return partial(KernelActor, lay_out=packed if training.packing else padded)


def trainer_class(training: Training) -> type[ActorPPOTrainer]:
    """The trainer of a rank: our loss and our loop, or OpenRLHF's own in place of either."""
    planned = training.batching != "openrlhf"
    bases = [PlannedUpdate] if planned else []
    if training.logprob == "kernels":
        bases.insert(0, KernelLoss)
    elif planned:
        bases.insert(0, OpenRlhfLoss)
    return type("Trainer", (*bases, ActorPPOTrainer), {})
