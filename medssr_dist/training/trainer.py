"""OpenRLHF's PPOTrainer fed by our prompts: its loop, its update, our data, our metrics file."""

from __future__ import annotations

import time

from medssr_dist.errors import Stopped
from medssr_dist.training.actors import BasePPOTrainer, PlainPPOTrainer
from medssr_dist.training.boundary import Boundary
from medssr_dist.training.prompts import PromptLoader
from medssr_dist.training.rollout_side import RolloutSide
from medssr_dist.training.samples import SampleBook

# metrics.jsonl name -> OpenRLHF's name
_METRICS = {
    "reward": "rollout/reward_mean",
    "reward_std": "rollout/reward_std",
    "group_reward_std": "group_reward_std",
    "invalid_answer": "invalid_answer",
    "response_length": "rollout/response_length_mean",
    "truncated": "rollout/truncated_rate",
    "policy_loss": "policy_loss",
    "kl": "kl",
    "entropy": "entropy",
    "clip_ratio": "ppo_clip_ratio",
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
        self._waited_s = 0.0  # for examples, in all steps so far; part of a step's seconds_generate and seconds
        BasePPOTrainer.__init__(self, strategy, policy, None, None, reference, rollout.pool.handles, tokenizer)

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
        self._samples.keep(rollout_samples, global_step + 1)
        return super().train_step(rollout_samples, global_step)

    def init_checkpoint_states(self) -> dict:
        states = self._boundary.resumed_state()
        if "samples" in states:
            self.samples_generator.load_state_dict(states["samples"])
        return states

    def save_logs_and_checkpoints(self, global_step: int, logs_dict=None, client_states=None) -> None:
        row = {name: round(float(logs_dict[key]), 6) for name, key in _METRICS.items() if key in logs_dict}
        row |= self.samples_generator.metrics
        row |= {"step": global_step, "prompts": client_states["total_consumed_prompts"], "time": round(time.time(), 3)}
        row["tokens"] = int(row["response_length"] * row["samples"])
        row["seconds_wait"] = round(self.prompts_dataloader.waited_s - self._waited_s, 6)
        self._waited_s = self.prompts_dataloader.waited_s
        # In this order: the generator may be drawing prompts still.
        state = client_states | {"samples": self.samples_generator.state_dict()}
        state["data_loader_state_dict"] = self.prompts_dataloader.state_dict()
        self._boundary.passed(global_step, row, state)
