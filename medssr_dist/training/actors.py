"""All that we use of OpenRLHF, in a form that can be subclassed and placed by us.

OpenRLHF wraps its classes with `@ray.remote`; the plain class is the base of Ray's wrapper.
Importing this module applies the CPU platform first, in every Ray worker: import OpenRLHF from here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import ray

from medssr_dist.config import Training
from medssr_dist.training import platform

platform.apply()

from openrlhf.trainer.ppo_trainer import BasePPOTrainer, PPOTrainer  # noqa: E402
from openrlhf.trainer.ppo_utils.samples_generator import SamplesGenerator  # noqa: E402
from openrlhf.trainer.ray import launcher, ppo_actor  # noqa: E402
from openrlhf.trainer.ray.launcher import RayActorGroup  # noqa: E402
from openrlhf.trainer.ray.vllm_engine import RolloutRayActor  # noqa: E402
from openrlhf.utils import utils  # noqa: E402
from openrlhf.utils.logging_utils import init_logger  # noqa: E402

from medssr_dist.training.lora import save_merged  # noqa: E402
from medssr_dist.training.strategy import Strategy, torch_dtype  # noqa: E402

__all__ = [
    "BasePPOTrainer", "PlainPPOTrainer", "PolicyRank", "RayActorGroup", "ReferenceRank", "RolloutEngine",
    "SamplesGenerator", "init_logger",
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


def _parts(training: Training) -> dict[str, type]:
    """What a rank's model and trainer are made of, by OpenRLHF's names for it."""
    from medssr_dist.training.policy import KernelActor, trainer_class

    actor = {"Actor": KernelActor} if training.logprob == "kernels" else {}
    return actor | {"ActorPPOTrainer": trainer_class(training)}


class PolicyRank(plain_class(ppo_actor.PolicyModelActor)):
    """One ZeRO-3 rank of the policy: OpenRLHF's, with the loss and the loop that the config chooses."""

    def init_model_from_pretrained(self, strategy: Strategy, *args, **kwargs):
        parts = _parts(strategy.config.training)
        with _built_from(ppo_actor, **parts), _built_from(utils, convert_to_torch_dtype=torch_dtype):
            super().init_model_from_pretrained(strategy, *args, **kwargs)

    def take(self, updates: list) -> None:
        """See PlannedUpdate.take."""
        self.trainer.take(updates)

    def save_model(self):
        """Write the whole model as a Hugging Face checkpoint; adapters merged."""
        if not self.strategy.config.training.lora_rank:
            return super().save_model()
        model = self.strategy._unwrap_model(self.actor)
        return save_merged(model, self.tokenizer, Path(self.strategy.args.ckpt.output_dir), self.strategy.is_rank_0())


class ReferenceRank(plain_class(launcher.ReferenceModelActor)):
    """One ZeRO-3 rank of the reference policy, whose log-probs are computed as the policy's are."""

    def init_model_from_pretrained(self, strategy: Strategy, *args, **kwargs):
        actor = {name: part for name, part in _parts(strategy.config.training).items() if name == "Actor"}
        with _built_from(launcher, **actor), _built_from(utils, convert_to_torch_dtype=torch_dtype):
            super().init_model_from_pretrained(strategy, *args, **kwargs)


class RolloutEngine(plain_class(RolloutRayActor)):
    """One vLLM rollout engine."""


PlainPPOTrainer = plain_class(PPOTrainer)
