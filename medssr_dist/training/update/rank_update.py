"""The update on a rank: optimizer steps over the micro-batches that the controller planned for it.

In place of OpenRLHF's loop, which reduces every metric of every micro-batch over the ranks by itself: here the counts
are reduced once an optimizer step, and the metrics once a rollout.
"""

from __future__ import annotations

import time

import torch
import torch.distributed as dist

from medssr_dist.training.backend import cpu_patches
from medssr_dist.training.update.flops import mfu, model_work, peak_flops

cpu_patches.apply()

from openrlhf.trainer.ppo_utils.experience import Experience  # noqa: E402
from openrlhf.trainer.ray.ppo_actor import ActorPPOTrainer  # noqa: E402


class PlannedUpdate(ActorPPOTrainer):
    """Takes micro-batches, then trains on them. `training_step`, the loss of one, is that of the other base."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._updates: list[list[Experience]] = []
        self._work = model_work(self.strategy._unwrap_model(self.actor))

    def take(self, updates: list[list[Experience]]) -> None:
        """Micro-batches of the next rollout, by optimizer step; as many on every rank."""
        self._updates = updates

    def ppo_train(self, kl_ctl: float) -> dict[str, float]:
        """Train on what was taken. Returns means over all tokens of all ranks, the last gradient norm, and speeds."""
        device = torch.device(torch.cuda.current_device())
        totals, started = _Totals(device), time.monotonic()
        work = torch.zeros(2, dtype=torch.float64)
        for micro_batches in self._updates:
            counts = self._counts(micro_batches, device)
            for number, experience in enumerate(micro_batches, start=1):
                self.strategy.update_ends = number == len(micro_batches)
                work += self._work_of(experience)
                totals.add(self.training_step(experience.to_device(device), kl_ctl, number, counts))
        self._updates = []
        means = totals.means()  # waits for the device
        return means | self._speed(work, time.monotonic() - started, device)

    def _counts(self, micro_batches: list[Experience], device: torch.device) -> dict:
        """What the loss of one optimizer step is divided by: tokens and sequences with an action, over all ranks."""
        lengths = torch.cat([batch.action_mask.sum(1) for batch in micro_batches])
        counts = torch.stack([lengths.sum(), (lengths > 0).sum()]).to(device, torch.float32)
        dist.all_reduce(counts)
        return {
            "dp_size": dist.get_world_size(),
            "batch_num_tokens": counts[0].clamp(min=1),
            "global_batch_size": counts[1].clamp(min=1),
        }

    def _work_of(self, experience: Experience) -> torch.Tensor:
        """(tokens, floating-point operations) of a micro-batch; an idle one has none that count."""
        busy = experience.action_mask.any(1)
        lengths = experience.attention_mask.sum(1)[busy]
        flops = self._work.update_flops(lengths, int(experience.action_mask.sum()))
        return torch.tensor([int(lengths.sum()), flops], dtype=torch.float64)

    def _speed(self, work: torch.Tensor, seconds: float, device: torch.device) -> dict[str, float]:
        work = work.to(device)
        dist.all_reduce(work)
        tokens, flops = work.tolist()
        ranks, config = dist.get_world_size(), self.strategy.config
        peak = peak_flops(config.training.peak_tflops, config.policy.dtype)
        utilization = {} if peak is None else {"mfu": mfu(flops, seconds, ranks, peak)}
        return {"tokens_per_s_per_gpu": tokens / seconds / ranks} | utilization


class _Totals:
    """Sums of the metrics of micro-batches, each weighted by its tokens; values without a weight stay the last."""

    def __init__(self, device: torch.device):
        self._tokens = torch.zeros((), device=device)
        self._sums: dict[str, torch.Tensor] = {}
        self._last: dict[str, float] = {}

    def add(self, status: dict) -> None:
        weights, tokens = status["weights"], status["num_action_tokens"]
        self._tokens += tokens
        for name, value in status["metrics"].items():
            if weights[name] is None:
                self._last[name] = value
            else:
                self._sums[name] = self._sums.get(name, 0.0) + value.float().mean() * tokens

    def means(self) -> dict[str, float]:
        sums = torch.stack([self._tokens, *self._sums.values()])
        dist.all_reduce(sums)
        tokens, *values = sums.tolist()
        return {name: value / max(tokens, 1) for name, value in zip(self._sums, values, strict=True)} | self._last
