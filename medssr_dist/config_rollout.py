"""Config of the rollout and of the weight sync: the part of `training` that stands between ranks and engines."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from medssr_dist.config_base import Section


class RolloutOptions(Section):
    """How samples come from the engines, and weights to them."""

    rollout: Literal["grouped", "openrlhf"] = Field(
        "grouped", description="one request a prompt, with seeds, on engines that are restarted | OpenRLHF's generator"
    )
    async_rollout: bool = Field(
        False, description="sample the next step's batch beside this step's training: one step off policy"
    )
    weight_sync: Literal["packed", "openrlhf"] = Field(
        "packed", description="buckets over vLLM's weight-transfer API | OpenRLHF's broadcast of each parameter"
    )
    sync_bucket_mb: int = Field(
        256, ge=1, description="packed: MiB gathered and sent at once; above it a weight goes alone"
    )
    sync_timeout_s: float = Field(600.0, gt=0, description="packed: a rank or engine missing for so long ends the run")
    stall_s: float = Field(
        1800.0, gt=0, description="a stage in which nothing moves for so long ends; more than a checkpoint takes"
    )

    @model_validator(mode="after")
    def _rollout_can(self) -> RolloutOptions:
        if self.async_rollout and self.rollout == "openrlhf":
            raise ValueError("async_rollout needs rollout=grouped, not rollout=openrlhf")
        return self
