"""OpenRLHF's own loss in our update loop, for `medssr bench training`."""

from __future__ import annotations

from functools import partial

from openrlhf.trainer.ppo_utils.experience import Experience  # noqa: E402
from openrlhf.trainer.ray.ppo_actor import ActorPPOTrainer  # noqa: E402


class OpenRlhfLoss(ActorPPOTrainer):
    """OpenRLHF's loss in our loop: on-policy where old log-probs are missing, with metrics that can be averaged."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.actor_loss_fn = partial(_on_policy, self.actor_loss_fn)

    def training_step(self, experience: Experience, kl_ctl: float, step: int, loss_batch_info: dict) -> dict:
        """See KernelLoss.training_step. Its aggregates are shares of the optimizer step's: here, own means."""
        status = super().training_step(experience, kl_ctl, step, loss_batch_info)
        metrics, tokens = status["metrics"], max(status["num_action_tokens"], 1)
        for name in ("policy_loss", "kl", "entropy_loss"):
            if name in metrics:
                metrics[name] = (
                    metrics[name] * loss_batch_info["batch_num_tokens"] / loss_batch_info["dp_size"] / tokens
                )
        return status


def _on_policy(loss, log_probs, old_log_probs, *args, **kwargs):
    """OpenRLHF's loss, whose old log-probs are those given or, where the update is on-policy, its own detached."""
    return loss(log_probs, log_probs.detach() if old_log_probs is None else old_log_probs, *args, **kwargs)
