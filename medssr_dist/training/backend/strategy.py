"""OpenRLHF's DeepSpeed strategy with what it lacks: the run's config, fp32, and micro-batches of any number."""

from __future__ import annotations

from pathlib import Path

import torch

from medssr_dist.config.schema import Config
from medssr_dist.config.training import Stage
from medssr_dist.training.backend import cpu_patches
from medssr_dist.training.backend.options import as_namespace, openrlhf_options

cpu_patches.apply()

from openrlhf.utils.deepspeed import DeepspeedStrategy  # noqa: E402

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def torch_dtype(name: str) -> torch.dtype:
    """OpenRLHF's `convert_to_torch_dtype`, which knows 16-bit types alone, with fp32."""
    return _DTYPES[name]


class Strategy(DeepspeedStrategy):
    """What the controller hands to every rank; pickled with the config of the run and the stage it is for.

    With our update loop, DeepSpeed does not count micro-batches: gradients add up until `optimizer_step` is called
    with `update_ends` set, whatever the number on this rank (`managed_gradient_accumulation` false).

    Attributes:
        grpo: the stage (`stage` is OpenRLHF's name for that of ZeRO).
        update_ends: whether the micro-batch that is trained is the last of its optimizer step.
    """

    def __init__(self, config: Config, stage: Stage, folder: Path, universal: bool = False):
        """`universal`: the checkpoint that is taken up is one of DeepSpeed's universal form."""
        args = as_namespace(openrlhf_options(config, stage, folder) | {"ds.use_universal_ckpt": universal})
        super().__init__(
            seed=args.train.seed,
            full_determinism=args.train.full_determinism_enable,
            max_norm=args.actor.max_norm,
            micro_train_batch_size=args.train.micro_batch_size,
            train_batch_size=args.train.batch_size,
            zero_stage=args.ds.zero_stage,
            args=args,
        )
        self.config, self.grpo = config, stage
        self.update_ends = True

    def get_ds_train_config(self, *args, **kwargs) -> dict:
        return self._counted_by_us(super().get_ds_train_config(*args, **kwargs))

    def get_ds_eval_config(self, *args, **kwargs) -> dict:
        return self._counted_by_us(super().get_ds_eval_config(*args, **kwargs))

    def _counted_by_us(self, ds_config: dict) -> dict:
        if self.config.training.batching == "openrlhf":
            return ds_config
        ds_config.pop("train_batch_size", None)
        counts = {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1}
        return ds_config | counts | {"managed_gradient_accumulation": False}

    def optimizer_step(self, *args, **kwargs) -> None:
        if self.update_ends:
            super().optimizer_step(*args, **kwargs)
