"""Every class and function of OpenRLHF that training uses; nothing else imports OpenRLHF.

Importing this module applies the CPU patches first, in every process, so it is the only way in.
"""

from __future__ import annotations

import ray

from medssr_dist.training.backend import cpu_patches

cpu_patches.apply()

from openrlhf.trainer.ppo_trainer import PPOTrainer  # noqa: E402


def plain_class(actor_class: ray.actor.ActorClass) -> type:
    """The class that `@ray.remote` was applied to."""
    return actor_class.__ray_metadata__.modified_class.__bases__[0]


PlainPPOTrainer = plain_class(PPOTrainer)
