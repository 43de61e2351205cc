"""OpenRLHF's PPOTrainer fed by our prompts: its loop, our data, experience, update and metrics file."""

from __future__ import annotations

import math
import time

import ray

from medssr_dist.errors import Stopped
from medssr_dist.training.after_step import Boundary, SampleBook
from medssr_dist.training.backend.openrlhf import PlainPPOTrainer
from medssr_dist.training.ranks import BasePPOTrainer, init_logger
from medssr_dist.training.rollout.examples import PromptLoader
from medssr_dist.training.rollout.workers import RolloutSide
from medssr_dist.training.update.algorithm import told
from medssr_dist.training.update.experience import ExperienceMaker

_log = init_logger(__name__)

# metrics.jsonl name -> OpenRLHF's name
_METRICS = {
    "reward": "rollout/reward_mean",
    "reward_std": "rollout/reward_std",
    "group_reward_std": "group_reward_std",
    "invalid_answer": "invalid_answer",
    "response_length": "rollout/response_length_mean",
    "truncated": "rollout/truncated_rate",
    "loss": "loss",
    "policy_loss": "policy_loss",
    "kl": "kl",
    "entropy": "entropy",
    "clip_ratio": "ppo_clip_ratio",
    "old_kl": "ppo_kl",
    "rollout_kl": "vllm_kl",
    "importance_dropped": "is_filter_ratio",
    "advantage_abs": "advantage_abs",
    "zero_variance": "zero_variance",
    "label_confidence": "label_confidence",
    "tokens_per_s_per_gpu": "tokens_per_s_per_gpu",
    "mfu": "mfu",
    "grad_norm": "actor_grad_norm",
    "learning_rate": "actor_lr",
    "samples": "rollout/num_samples",
    "seconds_generate": "timing/generation",
    "seconds_experience": "timing/make_experience",
    "seconds_update": "timing/ppo_train",
    "seconds_sync": "timing/broadcast",
    "seconds": "timing/step_total",
}


class StageTrainer(PlainPPOTrainer):
    """GRPO over a PromptLoader. `fit` is OpenRLHF's: generate, reward, log-probs, update, sync, checkpoint.

    Args:
        strategy: OpenRLHF's DeepspeedStrategy, holding the options.
        policy, reference: RayActorGroups; reference is None when the KL weight is 0.
        rollout: engines and generator.
        prompts: where prompts and labels come from.
        boundary: takes each step's metrics and state.
        samples: takes some of each step's rollouts.
    """

    def __init__(
        self,
        strategy,
        policy,
        reference,
        rollout: RolloutSide,
        tokenizer,
        prompts: PromptLoader,
        boundary: Boundary,
        samples: SampleBook,
    ):
        args = strategy.args
        self.prompts_dataloader, self.eval_dataloader = prompts, None
        self.generate_kwargs = {
            "do_sample": True,
            "max_len": args.data.max_len,
            "max_new_tokens": args.rollout.max_new_tokens,
            "temperature": args.rollout.temperature,
            "top_p": args.rollout.top_p,
        }
        self.samples_generator, self._rollout = rollout.generator, rollout
        self._boundary, self._samples = boundary, samples
        self._plans = strategy.config.training.batching != "openrlhf"
        self._waited_s = 0.0  # for examples, in all steps so far; part of a step's seconds_generate and seconds
        BasePPOTrainer.__init__(self, strategy, policy, None, None, reference, rollout.pool.handles, tokenizer)
        _log.info("log-probs before the update: %s", told(strategy.config.training, strategy.grpo))
        if self._plans:
            self.experience_maker = ExperienceMaker(strategy, policy, reference, tokenizer.pad_token_id)

    def broadcast_to_vllm(self) -> None:
        self._rollout.sync()

    def fit(self) -> None:
        """Train to the end. Raises Stopped, with all finished steps saved, where the stage has to stop."""
        try:
            self._boundary.go_on()
            super().fit()
        except Stopped as reason:
            raise self._boundary.stopped(reason) from None

    def train_step(self, rollout_samples, global_step: int) -> tuple[dict, int]:
        """One step on whole groups of samples: experience, update, weights to the engines."""
        self._samples.keep(rollout_samples, global_step + 1)
        if not self._plans:
            return super().train_step(rollout_samples, global_step)
        began = time.monotonic()
        prepared = self.experience_maker.prepare(rollout_samples, global_step)
        ray.get(self.actor_model_group.async_run_method_batch(method_name="take", updates=prepared.shares))
        made = time.monotonic()
        status = self.ppo_train(global_step) | prepared.metrics | self._compute_rollout_stats(rollout_samples)
        trained = time.monotonic()
        self.broadcast_to_vllm()
        status["timing/make_experience"] = made - began
        status["timing/ppo_train"] = trained - made
        status["timing/broadcast"] = time.monotonic() - trained
        return status, global_step + 1

    def ppo_train(self, global_step: int) -> dict:
        """The update of the step after `global_step`. Raises Diverged where it left no numbers."""
        status = super().ppo_train(global_step)
        self._boundary.updated(global_step + 1, status)
        return status

    def init_checkpoint_states(self) -> dict:
        states = self._boundary.resumed_state()
        if "samples" in states:
            self.samples_generator.load_state_dict(states["samples"])
        return states

    def save_logs_and_checkpoints(self, global_step: int, logs_dict=None, client_states=None) -> None:
        values = {name: logs_dict[key] for name, key in _METRICS.items() if key in logs_dict}
        row = {name: float(f"{value:.8g}") for name, value in values.items() if math.isfinite(value)}  # JSON has no NaN
        row |= self.samples_generator.metrics
        row |= {"step": global_step, "prompts": client_states["total_consumed_prompts"], "time": round(time.time(), 3)}
        row["tokens"] = int(row["response_length"] * row["samples"])
        row["seconds_wait"] = round(self.prompts_dataloader.waited_s - self._waited_s, 6)
        self._waited_s = self.prompts_dataloader.waited_s
        # In this order: the generator may be drawing prompts still.
        state = client_states | {"samples": self.samples_generator.state_dict()}
        state["data_loader_state_dict"] = self.prompts_dataloader.state_dict()
        self._boundary.passed(global_step, row, state)
