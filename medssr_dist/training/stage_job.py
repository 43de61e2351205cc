"""What one GRPO stage is to do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medssr_dist.config.schema import Config
from medssr_dist.config.training import Stage
from medssr_dist.run.paths import StagePaths
from medssr_dist.training.weights.checkpoints import Checkpoint


@dataclass(frozen=True)
class StageJob:
    """One stage: from `model`, against `reference`, on `data`, into `folder`."""

    name: str  # stage1 or stage2
    config: Config  # without secrets
    stage: Stage
    model: Path
    reference: Path
    folder: Path
    data: str  # what it trains on, in a sentence of the model card
    expected_steps: int  # for the learning-rate schedule; exact unless one pass over a stream is asked
    checkpoint: Checkpoint | None  # that it goes on from
    end: float | None  # when it will be ended from outside, seconds since the epoch

    @property
    def paths(self) -> StagePaths:
        """The files in `folder`."""
        return StagePaths(self.folder)
