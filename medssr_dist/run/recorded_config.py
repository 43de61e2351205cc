"""What is read back from a run's config.resolved.json, which an earlier version may have written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from medssr_dist.data.records import read_record
from medssr_dist.errors import InputError
from medssr_dist.run.paths import resolved_config


class _Recorded(BaseModel):
    """A section: the keys that are read back are checked, all others are kept as they are."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)


class RecordedStage(_Recorded):
    """Section training.stage1 or training.stage2. Example: RecordedStage(enabled=True, steps=0)"""

    enabled: bool
    steps: int


class RecordedTraining(_Recorded):
    """Section training. Example: RecordedTraining(stage1=stage, stage2=stage)"""

    stage1: RecordedStage
    stage2: RecordedStage


class RecordedSynthesis(_Recorded):
    """Section synthesis. Example: RecordedSynthesis(accepted=100)"""

    accepted: int


class RecordedVoting(_Recorded):
    """Section voting. Example: RecordedVoting(samples=16)"""

    samples: int
    keep_text: bool = True
    kept: int = 0


class RecordedEvaluation(_Recorded):
    """Section evaluation. Example: RecordedEvaluation(generations=4)"""

    generations: int


class RecordedRuntime(_Recorded):
    """Section runtime. Example: RecordedRuntime(random_seed=42)"""

    random_seed: int


class RecordedConfig(_Recorded):
    """The config that a run was last started with.

    Example: RecordedConfig(policy={"model": "..."}, voting=RecordedVoting(samples=16), ...)
    """

    policy: dict[str, Any]
    synthesis: RecordedSynthesis
    voting: RecordedVoting
    training: RecordedTraining
    evaluation: RecordedEvaluation
    runtime: RecordedRuntime


def read_recorded_config(run_folder: Path) -> RecordedConfig:
    """Read config.resolved.json of a run. Raises InputError where it is absent, damaged or no config of a run."""
    file = resolved_config(run_folder)
    if not file.exists():
        raise InputError(f"{run_folder} has no {file.name}; run one of its steps again, which writes it")
    return read_record(RecordedConfig, file)
