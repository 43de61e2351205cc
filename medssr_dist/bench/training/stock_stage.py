"""Stage 2 with some parts, or all parts, replaced by OpenRLHF's own; one run of `medssr bench training`.

    python -m medssr_dist.bench.training.stock_stage --run-dir RUN --pieces weight_sync --set training.stage2.steps=4

Parts: `trainer` (OpenRLHF's loop with everything that it uses), or some of `rollout`, `weight_sync` and `loss` in our
loop. Nothing is exported; the run directory contains only metrics.jsonl and logs.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from medssr_dist.config.load import load_config
from medssr_dist.config.schema import Config
from medssr_dist.readers import read_all
from medssr_dist.run.paths import RunPaths
from medssr_dist.runtime.cluster import open_ray_cluster
from medssr_dist.runtime.device import build_device_env
from medssr_dist.runtime.models import load_tokenizer, resolve_model
from medssr_dist.training.rollout.examples import PromptLoader
from medssr_dist.training.rollout.workers import RolloutWorkers
from medssr_dist.training.stage_actor import Processes, StageActor
from medssr_dist.training.stage_job import StageJob
from medssr_dist.training.stall_watch import HeartbeatBoard, start_board
from medssr_dist.training.train_stage import ignore_taken, plan_stage2

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

    from medssr_dist.training.after_step import AfterStep
    from medssr_dist.training.backend.openrlhf import RayActorGroup
    from medssr_dist.training.backend.strategy import Strategy
    from medssr_dist.training.rollout.revoter import Revoter
    from medssr_dist.training.rollout.validator import Validator
    from medssr_dist.training.vote_access import VoteSource

PIECES = ("trainer", "rollout", "weight_sync", "loss")
DEMO = Path(__file__).parents[3] / "configs" / "smollm2_cpu.yaml"


class StockWorkers(RolloutWorkers):
    """Our rollout workers with OpenRLHF's sample generator or weight sync."""

    def __init__(
        self,
        job: StageJob,
        strategy: Strategy,
        board: HeartbeatBoard,
        ranks: RayActorGroup,
        bundles: PlacementGroup,
        pieces: frozenset[str],
    ):
        self._pieces, self._strategy, self._model = pieces, strategy, job.model
        super().__init__(job.config, job.stage, job.model, board, ranks, bundles)

    def engine_options(self, model: Path) -> dict[str, Any]:
        from medssr_dist.bench.training.stock_sync import find_worker_extension

        options = super().engine_options(model)
        if {"weight_sync", "trainer"} & self._pieces:
            options.pop("weight_transfer_config")
            options["worker_extension_cls"] = find_worker_extension()
        if {"rollout", "trainer"} & self._pieces:
            options["agent_func_path"] = str(Path(__file__).with_name("stock_agent.py"))
        return options

    def make_sampler(self, prompts: PromptLoader, votes: VoteSource | None = None) -> Any:
        if "rollout" not in self._pieces:
            return super().make_sampler(prompts, votes)
        from medssr_dist.bench.training.stock_rollout import StockPrompts, StockSampler

        stock_prompts, tokenizer = StockPrompts(prompts, self._stage), load_tokenizer(self._model, self._config.policy)
        self.sampler = StockSampler(self._strategy, stock_prompts, tokenizer, self.engines.handles, prompts)
        return self.sampler

    def sync_weights(self, compare_all: bool = False) -> None:
        if "weight_sync" not in self._pieces:
            super().sync_weights(compare_all)
            return
        with self.sampler.new_weights() as version:
            ray.get(self._ranks.async_run_method("broadcast_to_vllm"))
            self.engines.call_all("set_version", version)


class StockStage(StageActor):
    """Ray actor: a stage with some parts replaced by OpenRLHF's own."""

    def __init__(self, pieces: frozenset[str]):
        self._pieces = pieces

    def make_workers(
        self,
        job: StageJob,
        strategy: Strategy,
        board: HeartbeatBoard,
        policy: RayActorGroup,
        bundles: PlacementGroup,
    ) -> StockWorkers:
        return StockWorkers(job, strategy, board, policy, bundles, self._pieces)

    def rank_classes(self) -> tuple[type, type]:
        from medssr_dist.bench.training import stock_loss, stock_sync, stock_trainer

        policy, reference = super().rank_classes()
        if "trainer" in self._pieces:
            return stock_trainer.StockPolicyRank, stock_trainer.StockReferenceRank
        if "loss" in self._pieces:
            return stock_loss.StockLossRank, reference
        return (stock_sync.StockSyncRank if "weight_sync" in self._pieces else policy), reference

    def load_policy(
        self, job: StageJob, strategy: Strategy, policy: RayActorGroup, rollout: StockWorkers, board: HeartbeatBoard
    ) -> list[ray.ObjectRef]:
        if not {"weight_sync", "trainer"} & self._pieces:
            return super().load_policy(job, strategy, policy, rollout, board)
        steps = job.expected_steps * job.stage.updates_per_rollout
        pending = policy.async_init_model_from_pretrained(strategy, str(job.model), steps, rollout.engines.handles)
        return pending + policy.async_run_method("report_to", board)

    def make_strategy(self, job: StageJob) -> Strategy:
        from medssr_dist.bench.training.stock_trainer import StockStrategy

        stock = "trainer" in self._pieces
        return StockStrategy(job.config, job.stage, job.folder) if stock else super().make_strategy(job)

    def run_loop(
        self,
        job: StageJob,
        strategy: Strategy,
        processes: Processes,
        prompts: PromptLoader,
        tokenizer: Any,
        after_step: AfterStep,
        validator: Validator | None,
        revoter: Revoter | None,
    ) -> None:
        if "trainer" not in self._pieces:
            super().run_loop(job, strategy, processes, prompts, tokenizer, after_step, validator, revoter)
            return
        from medssr_dist.bench.training.stock_trainer import StockTrainer

        engines = processes.rollout.engines.handles
        StockTrainer(job, strategy, processes.policy, processes.reference, engines, prompts, tokenizer).fit()

    def export(self, after_step: AfterStep) -> None:
        """Export nothing, because only times are measured."""


def run_stage(config: Config, run_dir: Path, pieces: frozenset[str]) -> None:
    """Train stage 2 of `config` in `run_dir`, with these parts replaced by OpenRLHF's own."""
    model, paths = resolve_model(config.policy), RunPaths(run_dir)
    folder = paths.stage("stage2").folder
    folder.mkdir(parents=True)
    questions = read_all(config.training.stage2.data, config.runtime.random_seed)
    plan = plan_stage2(config, model, model, questions, paths.voting.labels, folder)
    with open_ray_cluster(config, paths.logs):
        actor = ray.remote(num_cpus=1, runtime_env={"env_vars": build_device_env()})(StockStage).remote(pieces)
        ray.get(actor.run.remote(plan.job, plan.examples, ignore_taken, start_board()))


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m medssr_dist.bench.training.stock_stage",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--run-dir", type=Path, required=True, help="a new folder for metrics.jsonl and logs")
    parser.add_argument("--config", type=Path, default=DEMO, help="default: the demo's")
    parser.add_argument("--pieces", nargs="*", choices=PIECES, default=[], help="parts that OpenRLHF's own replace")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of the config")
    args = parser.parse_args()
    run_stage(load_config(args.config, args.set), args.run_dir, frozenset(args.pieces))
    return 0


if __name__ == "__main__":
    sys.exit(main())
