"""OpenRLHF's DeepSpeed strategy with the run's config; an optimizer step has any number of micro-batches."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from medssr_dist.config.schema import Config
from medssr_dist.config.training import Stage, Stage1
from medssr_dist.runtime.device import on_gpu
from medssr_dist.training.backend.openrlhf import DeepspeedStrategy
from medssr_dist.training.backend.options import make_namespace, make_openrlhf_options
from medssr_dist.training.group_store import join_ranks, make_group_secret


class Strategy(DeepspeedStrategy):
    """How ranks train; the controller pickles it and sends it to every rank.

    DeepSpeed does not count micro-batches here (`managed_gradient_accumulation` is false): gradients are summed until
    `optimizer_step` is called while `update_ends` is true.

    Attributes:
        config: config of the run.
        grpo: config of the stage (OpenRLHF uses the name `stage` for ZeRO's stage).
        update_ends: whether the current micro-batch is the last of its optimizer step.
    """

    def __init__(
        self, config: Config, stage: Stage, folder: Path, universal: bool = False, group_secret: str | None = None
    ):
        """
        Args:
            folder: the stage's folder.
            universal: whether the checkpoint to resume from has DeepSpeed's universal form.
            group_secret: the secret of the ranks' process groups; None: a new one.
        """
        args = make_namespace(make_openrlhf_options(config, stage, folder) | {"ds.use_universal_ckpt": universal})
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
        self._group_secret = group_secret or make_group_secret()

    @property
    def teacher_decay(self) -> float | None:
        """`voting.online.teacher` in the stage that votes again; None in the others."""
        online = self.config.voting.online
        return online.teacher if online and isinstance(self.grpo, Stage1) else None

    def setup_distributed(self, timeout: timedelta = timedelta(minutes=60)) -> None:
        """Join the group of the ranks through a store that is closed to strangers, then set up DeepSpeed in it.

        Raises:
            StrangerError: a member of the group is none of our ranks.
        """
        if not torch.distributed.is_initialized():
            join_ranks(self._group_secret, "nccl" if on_gpu() else "gloo", timeout)
        super().setup_distributed(timeout)

    def make_optimizer_settings(self, optimizer_steps: int) -> dict[str, Any]:
        """Return the settings of optimizer and learning-rate schedule for `prepare`.

        Args:
            optimizer_steps: length of the schedule, in optimizer steps.
        """
        actor = self.args.actor
        return {
            "optim": actor.optim,
            "muon": vars(actor.muon),
            "adam": vars(actor.adam),
            "lr_scheduler": actor.lr_scheduler,
            "lr_warmup_ratio": actor.lr_warmup_ratio,
            "min_lr_ratio": actor.min_lr_ratio,
            "max_norm": actor.max_norm,
            "scheduler_steps": optimizer_steps,
        }

    def get_ds_train_config(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return DeepSpeed's settings, with torch's fused AdamW: DeepSpeed would have to compile its own."""
        ds_config = self._without_counting(super().get_ds_train_config(*args, **kwargs))
        if ds_config.get("optimizer"):
            ds_config["optimizer"]["params"] |= {"torch_adam": True, "fused": True}
        return ds_config

    def get_ds_eval_config(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return self._without_counting(super().get_ds_eval_config(*args, **kwargs))

    def _without_counting(self, ds_config: dict[str, Any]) -> dict[str, Any]:
        ds_config.pop("train_batch_size", None)
        counts = {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1}
        return ds_config | counts | {"managed_gradient_accumulation": False}

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        if self.update_ends:
            super().optimizer_step(*args, **kwargs)
