"""A stage 2 with single pieces, or all of it, in OpenRLHF's own form; one run of `medssr bench training`.

    python -m medssr_dist.bench.training.stock_stage --run-dir RUN --pieces weight_sync training.stage2.steps=4

Pieces: `trainer` (OpenRLHF's loop with all that belongs to it), or some of `rollout`, `weight_sync` and `loss` in our
loop. Nothing is exported; the run directory holds metrics.jsonl alone.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import ray

from medssr_dist.config.load import load_config
from medssr_dist.config.schema import Config
from medssr_dist.readers import read_all
from medssr_dist.runtime.cluster import ray_cluster
from medssr_dist.runtime.models import resolve_model
from medssr_dist.training.rollout.workers import RolloutWorkers
from medssr_dist.training.stage_actor import Processes, StageActor
from medssr_dist.training.stage_job import StageJob
from medssr_dist.training.train_stage import start_stage2

PIECES = ("trainer", "rollout", "weight_sync", "loss")
DEMO = Path(__file__).parents[3] / "configs" / "demo_cpu.yaml"


class StockWorkers(RolloutWorkers):
    """Our engines, with OpenRLHF's sample generator or weight sync."""

    pieces: frozenset[str]

    def engine_options(self, model: Path) -> dict[str, Any]:
        from medssr_dist.bench.training.stock_sync import worker_extension

        options = super().engine_options(model)
        if {"weight_sync", "trainer"} & self.pieces:
            options.pop("weight_transfer_config")
            options["worker_extension_cls"] = worker_extension()
        if {"rollout", "trainer"} & self.pieces:
            options["agent_func_path"] = str(Path(__file__).with_name("stock_agent.py"))
        return options
