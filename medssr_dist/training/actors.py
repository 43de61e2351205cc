"""All that we use of OpenRLHF, in a form that can be subclassed and placed by us.

OpenRLHF wraps its classes with `@ray.remote`; the plain class is the base of Ray's wrapper.
Importing this module applies the CPU platform first, in every Ray worker: import OpenRLHF from here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import ray

from medssr_dist.training import platform

platform.apply()

from openrlhf.trainer.ppo_trainer import BasePPOTrainer, PPOTrainer  # noqa: E402
from openrlhf.trainer.ppo_utils.samples_generator import SamplesGenerator  # noqa: E402
from openrlhf.trainer.ray import launcher, ppo_actor  # noqa: E402
from openrlhf.trainer.ray.launcher import RayActorGroup  # noqa: E402
from openrlhf.trainer.ray.vllm_engine import RolloutRayActor  # noqa: E402
from openrlhf.utils import get_strategy  # noqa: E402

__all__ = [
    "BasePPOTrainer", "KernelPolicyRank", "KernelReferenceRank", "PlainPPOTrainer", "PolicyRank", "RayActorGroup",
    "ReferenceRank", "RolloutEngine", "SamplesGenerator", "get_strategy",
]  # fmt: skip


def plain_class(actor_class: ray.actor.ActorClass) -> type:
    """The class that `@ray.remote` was applied to."""
    return actor_class.__ray_metadata__.modified_class.__bases__[0]


@contextmanager
def _built_from(module: ModuleType, **classes: type) -> Iterator[None]:
    """Within, what `module` builds by these names is of these classes."""
    own = {name: getattr(module, name) for name in classes}
    vars(module).update(classes)
    try:
        yield
    finally:
        vars(module).update(own)


class PolicyRank(plain_class(ppo_actor.PolicyModelActor)):
    """One ZeRO-3 rank of the policy, all OpenRLHF's own."""


class ReferenceRank(plain_class(launcher.ReferenceModelActor)):
    """One ZeRO-3 rank of the reference policy, all OpenRLHF's own."""


class KernelPolicyRank(PolicyRank):
    """One ZeRO-3 rank of the policy, with log-probs and loss by the kernels."""

    def init_model_from_pretrained(self, *args, **kwargs):
        from medssr_dist.training.policy import KernelActor, KernelTrainer

        with _built_from(ppo_actor, Actor=KernelActor, ActorPPOTrainer=KernelTrainer):
            super().init_model_from_pretrained(*args, **kwargs)


class KernelReferenceRank(ReferenceRank):
    """One ZeRO-3 rank of the reference policy, with log-probs by the kernels."""

    def init_model_from_pretrained(self, *args, **kwargs):
        from medssr_dist.training.policy import KernelActor

        with _built_from(launcher, Actor=KernelActor):
            super().init_model_from_pretrained(*args, **kwargs)


class RolloutEngine(plain_class(RolloutRayActor)):
    """One vLLM rollout engine."""


PlainPPOTrainer = plain_class(PPOTrainer)
