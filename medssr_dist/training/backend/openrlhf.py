"""Every class of OpenRLHF that training uses, in a form that can be subclassed."""

from __future__ import annotations

import ray
from openrlhf.trainer.ppo_trainer import PPOTrainer  # noqa: E402


def plain_class(actor_class: ray.actor.ActorClass) -> type:
    """The class that `@ray.remote` was applied to."""
    return actor_class.__ray_metadata__.modified_class.__bases__[0]


PlainPPOTrainer = plain_class(PPOTrainer)
