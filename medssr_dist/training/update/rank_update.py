"""The update on one ZeRO-3 rank: optimizer steps over the micro-batches that the controller planned for it.

In each optimizer step, the loss of a micro-batch is its share of the mean over all tokens (or sequences) of all ranks,
so that gradients are summed (arXiv 2402.03300 eq. 3, with the options of `kernels.GrpoOptions`):

    forward    hidden_RH of the rows that predict an action
    loss       linear_grpo_loss(hidden_RH, weight_VH, target_R, advantage_R, ...), with its gradients: three GEMMs
    backward   DeepSpeed sums the gradients and reduces them over the ranks
    step       AdamW, once after the last micro-batch

Counts are reduced over the ranks once per optimizer step, metrics once per rollout.
Shapes: R rows that predict an unmasked action, H hidden size, V vocabulary, B sequences of a micro-batch, A actions.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.nn import functional as F

from medssr_dist.kernels import GrpoMetrics, linear_grpo_loss
from medssr_dist.training.backend.openrlhf import Experience
from medssr_dist.training.update.flops import compute_mfu, count_model_work, find_peak_flops
from medssr_dist.training.update.grpo_terms import make_grpo_options

if TYPE_CHECKING:
    from medssr_dist.training.backend.strategy import Strategy
    from medssr_dist.training.update.actor import KernelActor


LARGEST = "rollout_ratio_max"  # the metric that is no mean


@dataclass(frozen=True)
class StepCounts:
    """The divisors of the loss in one optimizer step, over all ranks and micro-batches; 0-d tensors, at least 1.

    tokens: unmasked actions. sequences: sequences with at least one action. ranks: number of data-parallel ranks.
    """

    tokens: torch.Tensor
    sequences: torch.Tensor
    ranks: int


class RankUpdate:
    """Trains a KernelActor on the micro-batches of a rollout.

    Args:
        optimizer, scheduler: as `strategy.prepare` returns them for `actor`.
    """

    def __init__(self, strategy: Strategy, actor: KernelActor, optimizer: Any, scheduler: Any):
        self.strategy, self.actor = strategy, actor
        self._optimizer, self._scheduler = optimizer, scheduler
        self._options = make_grpo_options(strategy.grpo)
        self._work = count_model_work(strategy._unwrap_model(actor))

    def run(self, updates: list[list[Experience]], on_progress: Callable[[], None]) -> dict[str, float]:
        """Take one optimizer step for each list of micro-batches.

        Args:
            updates: equally many on every rank; a micro-batch without unmasked actions keeps a rank in step.
            on_progress: called before each micro-batch.

        Returns:
            Field name of StepMetrics -> mean over all tokens of all ranks; gradient norm and learning rate are the
            last ones.
        """
        device = torch.device(torch.cuda.current_device())
        means, started = _TokenMeans(device), time.monotonic()
        tokens_and_flops = torch.zeros(2, dtype=torch.float64)
        self.actor.train()
        for micro_batches in updates:
            counts = count_step(micro_batches, device)
            for number, experience in enumerate(micro_batches, start=1):
                on_progress()
                self.strategy.update_ends = number == len(micro_batches)
                tokens_and_flops += self._count_work(experience)
                means.add(self.train_micro_batch(experience.to_device(device), counts), experience.action_mask.sum())
        values = means.reduce()  # this waits for the device
        last = {"learning_rate": self._scheduler.get_last_lr()[0], "grad_norm": self.strategy.get_grad_norm(self.actor)}
        return values | last | self._measure_speed(tokens_and_flops, time.monotonic() - started, device)

    def train_micro_batch(self, experience: Experience, counts: StepCounts) -> dict[str, torch.Tensor]:
        """Run forward, backward and, if `strategy.update_ends`, the optimizer; return means over its tokens."""
        loss, metrics = self._compute_loss(experience, counts)
        self.strategy.backward(loss, self.actor, self._optimizer)
        self.strategy.optimizer_step(self._optimizer, self.actor, self._scheduler, name="actor")
        # The loss is the share of this micro-batch in the mean of the step; its own mean can be averaged over tokens.
        own_mean = counts.tokens / (counts.ranks * experience.action_mask.sum().clamp(min=1))
        found = {
            "loss": loss.detach() * own_mean,
            "policy_loss": metrics.policy_loss * own_mean,
            "kl": metrics.kl_loss * own_mean,
            "entropy": metrics.entropy * own_mean,
            "clip_ratio": metrics.clip_share,
            "old_kl": metrics.old_kl,
        }
        if experience.rollout_log_probs is not None:
            found |= {name: getattr(metrics, name) for name in ("rollout_kl", "rollout_beyond_2x", LARGEST)}
        if self.strategy.grpo.importance != "off":
            found["importance_dropped"] = metrics.importance_dropped
        return found

    def _compute_loss(self, experience: Experience, counts: StepCounts) -> tuple[torch.Tensor, GrpoMetrics]:
        actions_BA = experience.action_mask.bool()
        metrics: list[GrpoMetrics] = []

        def choose(values_BA: torch.Tensor | None) -> torch.Tensor | None:
            return None if values_BA is None else values_BA[actions_BA]

        def compute(hidden_RH: torch.Tensor, weight_VH: torch.Tensor, target_R: torch.Tensor) -> torch.Tensor:
            loss, found = linear_grpo_loss(
                hidden_RH,
                weight_VH,
                target_R,
                experience.advantages[actions_BA],
                temperature=self.actor.temperature,
                old_logp=choose(experience.action_log_probs),
                ref_logp=choose(experience.base_action_log_probs),
                rollout_logp=choose(experience.rollout_log_probs),
                offsets=F.pad(actions_BA.sum(1).cumsum(0), (1, 0)),
                options=self._options,
                token_count=counts.tokens,
                sequence_count=counts.sequences,
                dp_size=counts.ranks,
            )
            metrics.append(found)
            return loss

        loss = self.actor.over_rows(compute, experience.sequences, actions_BA, experience.attention_mask)
        return loss, metrics[-1]

    def _count_work(self, experience: Experience) -> torch.Tensor:
        """Return [tokens, floating-point operations] of a micro-batch; sequences without actions are not counted."""
        busy = experience.action_mask.any(1)
        lengths = experience.attention_mask.sum(1)[busy]
        flops = self._work.count_update_flops(lengths, int(experience.action_mask.sum()))
        return torch.tensor([int(lengths.sum()), flops], dtype=torch.float64)

    def _measure_speed(self, tokens_and_flops: torch.Tensor, seconds: float, device: torch.device) -> dict[str, float]:
        total = tokens_and_flops.to(device)
        dist.all_reduce(total)
        tokens, flops = total.tolist()
        ranks, config = dist.get_world_size(), self.strategy.config
        peak = find_peak_flops(config.training.peak_tflops, config.policy.dtype)
        speed = {"tokens_per_s_per_gpu": tokens / seconds / ranks}
        return speed if peak is None else speed | {"mfu": compute_mfu(flops, seconds, ranks, peak)}


def count_step(micro_batches: list[Experience], device: torch.device) -> StepCounts:
    """Count the tokens and sequences of one optimizer step over all ranks; a collective."""
    lengths_B = torch.cat([batch.action_mask.sum(1) for batch in micro_batches])
    counts = torch.stack([lengths_B.sum(), (lengths_B > 0).sum()]).to(device, torch.float32)
    dist.all_reduce(counts)
    tokens, sequences = counts.clamp(min=1).unbind()
    return StepCounts(tokens, sequences, dist.get_world_size())


class _TokenMeans:
    """Means of metrics over micro-batches, weighted by their numbers of tokens; of LARGEST, the maximum."""

    def __init__(self, device: torch.device):
        self._tokens = torch.zeros((), device=device)
        self._largest = torch.zeros((), device=device)
        self._sums: dict[str, torch.Tensor] = {}

    def add(self, metrics: dict[str, torch.Tensor], tokens: torch.Tensor) -> None:
        self._tokens += tokens.float()
        for name, value in metrics.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.float().mean() * tokens
        if LARGEST in metrics:
            self._largest = torch.maximum(self._largest, metrics[LARGEST].float())

    def reduce(self) -> dict[str, float]:
        """Return the metrics over all ranks; a collective."""
        sums = torch.stack([self._tokens, *self._sums.values()])
        dist.all_reduce(sums)
        dist.all_reduce(self._largest, op=dist.ReduceOp.MAX)
        tokens, *values = sums.tolist()
        found = {name: value / max(tokens, 1) for name, value in zip(self._sums, values, strict=True)}
        return found | ({LARGEST: self._largest.item()} if LARGEST in found else {})
