"""All that we use of OpenRLHF, in a form that can be subclassed and placed by us.

OpenRLHF wraps its classes with `@ray.remote`; the plain class is the base of Ray's wrapper.
Importing this module applies the CPU platform first, in every Ray worker: import OpenRLHF from here.
"""

from __future__ import annotations

import ray

from medssr_dist.training import platform

platform.apply()

from openrlhf.trainer.ppo_trainer import BasePPOTrainer, PPOTrainer  # noqa: E402
from openrlhf.trainer.ppo_utils.samples_generator import SamplesGenerator  # noqa: E402
from openrlhf.trainer.ray.launcher import RayActorGroup, ReferenceModelActor  # noqa: E402
from openrlhf.trainer.ray.ppo_actor import PolicyModelActor  # noqa: E402
from openrlhf.trainer.ray.vllm_engine import RolloutRayActor  # noqa: E402
from openrlhf.utils import get_strategy  # noqa: E402

__all__ = [
    "BasePPOTrainer", "PlainPPOTrainer", "PolicyRank", "RayActorGroup", "ReferenceRank", "RolloutEngine",
    "SamplesGenerator", "get_strategy",
]  # fmt: skip


def plain_class(actor_class: ray.actor.ActorClass) -> type:
    """The class that `@ray.remote` was applied to."""
    return actor_class.__ray_metadata__.modified_class.__bases__[0]


class PolicyRank(plain_class(PolicyModelActor)):
    """One ZeRO-3 rank of the policy."""


class ReferenceRank(plain_class(ReferenceModelActor)):
    """One ZeRO-3 rank of the reference policy."""


class RolloutEngine(plain_class(RolloutRayActor)):
    """One vLLM rollout engine."""


PlainPPOTrainer = plain_class(PPOTrainer)
