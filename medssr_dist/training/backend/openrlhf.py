"""All that training uses of OpenRLHF. This module imports it, and everything else imports this module.

Training builds on OpenRLHF's actors, DeepSpeed strategy and checkpoint code, but not on its PPO trainer (see
`loop.py`). Importing this module first applies the CPU patches: without them OpenRLHF cannot be imported on a machine
without GPU. The patch made here is needed on GPU too:

- `openrlhf.utils.utils.convert_to_torch_dtype` (0.11.2) knows only 16-bit types; `policy.dtype: float32` needs fp32.
"""

from __future__ import annotations

import ray
import torch

from medssr_dist.training.backend import cpu_patches

cpu_patches.apply()

from openrlhf.models import Actor  # noqa: E402
from openrlhf.models.utils import compute_approx_kl  # noqa: E402
from openrlhf.trainer.ppo_utils.experience import Experience  # noqa: E402
from openrlhf.trainer.ray.launcher import RayActorGroup, ReferenceModelActor  # noqa: E402
from openrlhf.trainer.ray.ppo_actor import PolicyModelActor  # noqa: E402
from openrlhf.trainer.ray.vllm_engine import RolloutRayActor  # noqa: E402
from openrlhf.utils import get_tokenizer, utils  # noqa: E402
from openrlhf.utils.config import hierarchize  # noqa: E402
from openrlhf.utils.deepspeed import DeepspeedStrategy  # noqa: E402
from openrlhf.utils.utils import zero_pad_sequences  # noqa: E402

__all__ = [
    "Actor",
    "DeepspeedStrategy",
    "Experience",
    "PolicyActor",
    "RayActorGroup",
    "ReferenceActor",
    "RolloutActor",
    "compute_approx_kl",
    "get_plain_class",
    "get_tokenizer",
    "hierarchize",
    "zero_pad_sequences",
]

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def get_plain_class(actor_class: ray.actor.ActorClass) -> type:
    """Return the class that `@ray.remote` was applied to; unlike Ray's wrapper, it can be subclassed."""
    return actor_class.__ray_metadata__.modified_class.__bases__[0]


PolicyActor = get_plain_class(PolicyModelActor)
ReferenceActor = get_plain_class(ReferenceModelActor)
RolloutActor = get_plain_class(RolloutRayActor)

utils.convert_to_torch_dtype = _DTYPES.__getitem__
