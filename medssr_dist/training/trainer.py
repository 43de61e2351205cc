"""OpenRLHF's PPOTrainer fed by our prompts: its loop, its update, our data, our metrics file."""

from __future__ import annotations

import json
import time
from pathlib import Path

from medssr_dist.jsonl import JsonlLedger, write_atomic
from medssr_dist.stream import follow
from medssr_dist.training.actors import BasePPOTrainer, PlainPPOTrainer
from medssr_dist.training.checkpoints import mark_whole
from medssr_dist.training.prompts import PromptLoader
from medssr_dist.training.rollout_side import RolloutSide

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
        metrics_file: one JSON line a step; lines of steps that a restart repeats are dropped.
    """

    def __init__(
        self, strategy, policy, reference, rollout: RolloutSide, tokenizer, prompts: PromptLoader, metrics_file: Path
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
        self._metrics_file = metrics_file
        self._waited_s = 0.0  # for examples, in all steps so far; part of a step's seconds_generate and seconds
        BasePPOTrainer.__init__(self, strategy, policy, None, None, reference, rollout.pool.handles, tokenizer)

    def broadcast_to_vllm(self) -> None:
        self._rollout.sync()

    def init_checkpoint_states(self) -> dict:
        states = super().init_checkpoint_states()
        _drop_steps_after(self._metrics_file, states["global_step"])
        return states

    def save_logs_and_checkpoints(self, global_step: int, logs_dict=None, client_states=None) -> None:
        row = {name: round(float(logs_dict[key]), 6) for name, key in _METRICS.items() if key in logs_dict}
        row |= self.samples_generator.metrics
        row |= {"step": global_step, "prompts": client_states["total_consumed_prompts"], "time": round(time.time(), 3)}
        row["tokens"] = int(row["response_length"] * row["samples"])
        row["seconds_wait"] = round(self.prompts_dataloader.waited_s - self._waited_s, 6)
        self._waited_s = self.prompts_dataloader.waited_s
        with JsonlLedger(self._metrics_file) as ledger:
            ledger.append(row)
        # Last: a restart drops the rows of steps after the checkpoint, but cannot make one that is missing.
        super().save_logs_and_checkpoints(global_step, logs_dict, client_states)
        if global_step % self.args.ckpt.save_steps == 0:
            mark_whole(Path(self.args.ckpt.path), global_step)


def _drop_steps_after(metrics_file: Path, step: int) -> None:
    kept = [row for row in follow(metrics_file, ended=lambda: True) if row["step"] <= step]
    write_atomic(metrics_file, "".join(json.dumps(row) + "\n" for row in kept))
