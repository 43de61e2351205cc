"""OpenRLHF's own PPO trainer, update, loss and network, on our prompts, for `medssr bench training`."""

from __future__ import annotations

import time
from typing import Any

import ray

from medssr_dist.bench.training.stock_rollout import StockPrompts, StockSampler, make_generate_options
from medssr_dist.bench.training.stock_sync import patch_for_cpu
from medssr_dist.data.jsonl import JsonlLedger
from medssr_dist.run.paths import StagePaths
from medssr_dist.training.backend.openrlhf import PolicyActor, ReferenceActor, get_plain_class
from medssr_dist.training.backend.strategy import Strategy
from medssr_dist.training.rollout.examples import PromptLoader
from medssr_dist.training.stage_job import StageJob
from medssr_dist.training.step_metrics import StepMetrics

from openrlhf.trainer.ppo_trainer import BasePPOTrainer, PPOTrainer  # isort: skip

# Field of StepMetrics -> OpenRLHF's name of the metric.
_METRICS = {
    "reward": "rollout/reward_mean",
    "response_length": "rollout/response_length_mean",
    "policy_loss": "policy_loss",
    "kl": "kl",
    "grad_norm": "actor_grad_norm",
    "learning_rate": "actor_lr",
    "samples": "rollout/num_samples",
    "seconds_generate": "timing/generation",
    "seconds_experience": "timing/make_experience",
    "seconds_update": "timing/ppo_train",
    "seconds_sync": "timing/broadcast",
    "seconds": "timing/step_total",
}


class StockStrategy(Strategy):
    """OpenRLHF's strategy, in which DeepSpeed counts micro-batches."""

    def _without_counting(self, ds_config: dict[str, Any]) -> dict[str, Any]:
        return ds_config


class StockPolicyRank(PolicyActor):
    """OpenRLHF's rank without changes, except that on CPU its replay buffer and weight sync need no GPU."""

    def report_to(self, board) -> None:
        """Do nothing: OpenRLHF's ranks send no heartbeats."""

    def init_model_from_pretrained(self, strategy, folder: str, optimizer_steps: int, engines: list | None) -> None:
        patch_for_cpu()
        super().init_model_from_pretrained(strategy, folder, optimizer_steps, engines)


class StockReferenceRank(ReferenceActor):
    """OpenRLHF's reference rank without changes."""

    def report_to(self, board) -> None:
        """Do nothing: OpenRLHF's ranks send no heartbeats."""


class StockTrainer(get_plain_class(PPOTrainer)):
    """OpenRLHF's loop (`fit`) over our prompts; it writes a metrics.jsonl."""

    def __init__(self, job: StageJob, strategy, policy, reference, engines: list, prompts: PromptLoader, tokenizer):
        stock_prompts = StockPrompts(prompts, job.stage)
        self.prompts_dataloader, self.eval_dataloader = stock_prompts, None
        self.generate_kwargs = make_generate_options(strategy.args)
        self.samples_generator = StockSampler(strategy, stock_prompts, tokenizer, engines, prompts)
        self._file, self._prompts, self._waited_s = StagePaths(job.folder).metrics, prompts, 0.0
        BasePPOTrainer.__init__(self, strategy, policy, None, None, reference, engines, tokenizer)

    def broadcast_to_vllm(self) -> None:
        ray.get(self.actor_model_group.async_run_method("broadcast_to_vllm"))

    def save_logs_and_checkpoints(self, global_step: int, logs_dict=None, client_states=None) -> None:
        """Write the step's line of metrics.jsonl, and no checkpoint."""
        row = {name: logs_dict[key] for name, key in _METRICS.items() if key in logs_dict}
        row |= {"step": global_step, "prompts": client_states["total_consumed_prompts"], "time": round(time.time(), 3)}
        row["tokens"] = int(row["response_length"] * row["samples"])
        row["seconds_wait"] = round(self._prompts.waited_s - self._waited_s, 6)
        self._waited_s = self._prompts.waited_s
        with JsonlLedger(self._file) as ledger:
            ledger.append(StepMetrics.from_row(row).as_row())
