"""The rollout side of a stage: its engines, the weights that they are given and the samples that they give."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from medssr_dist.inference.vllm_args import build_engine_env, build_engine_kwargs
from medssr_dist.runtime.cluster import reserve_bundles
from medssr_dist.runtime.device import on_gpu
from medssr_dist.training.rollout.engines import EnginePool, engine_name
from medssr_dist.training.rollout.groups import Sampling
from medssr_dist.training.rollout.sampler import BatchPlan, Rollout
from medssr_dist.training.stall_watch import Beats, Board

if TYPE_CHECKING:
    from medssr_dist.bench.training.stock_rollout import StockRollout
    from medssr_dist.config.schema import Config
    from medssr_dist.config.training import Stage
    from medssr_dist.training.ranks import RayActorGroup
    from medssr_dist.training.rollout.examples import PromptLoader
    from medssr_dist.training.weights.sync import SyncSettings


class RankSync:
    """The controller's end of the weight sync: the ranks send, to the engines that it names."""

    def __init__(self, ranks: RayActorGroup, settings: SyncSettings):
        self._ranks, self._settings = ranks, settings
        self._connected: dict[str, ray.actor.ActorHandle] = {}

    def send(self, engines: dict[str, ray.actor.ActorHandle], version: int) -> None:
        """The policy's weights as they are now, as `version`. Raises SyncError naming who is missing."""
        if engines != self._connected:
            self._connected = {}  # for a connection that fails
            self._all("connect_engines", engines, self._settings)
            self._connected = engines
        self._all("send_weights", version)

    def _all(self, method: str, *args) -> None:
        pending = self._ranks.async_run_method(method, *args)
        while pending:
            done, pending = ray.wait(pending)
            ray.get(done)  # the first that fails tells: the others may wait for it


class RolloutSide:
    """Engines started, filled with the weights of `ranks`, and asked for samples.

    Attributes:
        generator: what OpenRLHF's loop asks for samples, once `generate_with` has made it.
        bundles: placement group of the engines.
    """

    def __init__(self, config: Config, stage: Stage, model: Path, board: Board, ranks: RayActorGroup):
        from medssr_dist.training.weights.sync import SyncSettings

        training = config.training
        self._config, self._stage, self._ranks, self._board = config, stage, ranks, board
        settings = SyncSettings(training.sync_bucket_mb * 2**20, training.sync_timeout_s, training.tensor_parallel_size)
        self._sync = RankSync(ranks, settings) if training.weight_sync == "packed" else None
        start, self.bundles = engine_starter(config, stage, model, board)
        self.pool = EnginePool(start, training.engines, self._admit if self._sync else None)
        self.generator: Rollout | StockRollout | None = None

    def generate_with(self, prompts: PromptLoader, tokenizer, strategy) -> None:
        """Make the generator that `training.rollout` names."""
        if self._config.training.rollout == "grouped":
            plan, sampling = _plan(self._config, self._stage)
            tell = Beats(self._board, "controller").beat
            self.generator = Rollout(plan, sampling, prompts, tokenizer, self.pool, tell)
        else:
            from medssr_dist.bench.training.stock_rollout import StockRollout

            self.generator = StockRollout(strategy, prompts, None, tokenizer, self.pool.handles)

    def sync(self) -> None:
        """Give all engines the policy's weights, once no sample is being drawn with those before."""
        self.generator.finish()
        if self._sync:
            self.pool.revive()
            self._sync.send(self.pool.named(), self.generator.given)
        else:
            ray.get(self._ranks.async_run_method("broadcast_to_vllm"))
            ray.get([engine.stamp.remote(self.generator.given) for engine in self.pool.handles])

    def _admit(self, engines: dict[str, ray.actor.ActorHandle]) -> None:
        with self.generator.ranks_free:
            self._sync.send(engines, self.generator.given)


def _plan(config: Config, stage: Stage) -> tuple[BatchPlan, Sampling]:
    """What a batch is made of, and how it is sampled."""
    plan = BatchPlan(stage.prompts_per_step, stage.steps, stage.drop_zero_variance, config.training.async_rollout)
    return plan, Sampling(
        n=stage.samples_per_prompt,
        temperature=stage.temperature,
        top_p=stage.top_p,
        max_tokens=stage.max_new_tokens,
        logprobs=stage.importance != "off",
        random_seed=config.runtime.random_seed,
    )


def engine_starter(config: Config, stage: Stage, model: Path, board: Board) -> tuple[Callable, object]:
    """(function that starts engine number i anew in its place, placement group of all engines)."""
    from medssr_dist.training.rollout.rollout_engine import RolloutEngine

    training = config.training
    size = training.tensor_parallel_size
    bundles = reserve_bundles([{"GPU": size, "CPU": 1}] * training.engines, "the rollout engines")
    kwargs = build_engine_kwargs(model, config.policy, config.runtime, size) | _sync_kwargs(training.weight_sync)
    kwargs |= {"num_gpus": 1, "board": board}
    if training.rollout == "openrlhf":
        kwargs["agent_func_path"] = str(Path(__file__).with_name("agent.py"))
    if stage.importance != "off":
        kwargs["logprobs_mode"] = "processed_logprobs"  # of the distribution that was drawn from
    env = build_engine_env(config.runtime, max(1, (os.cpu_count() or 1) // training.engines))
    env["GOMP_SPINCOUNT"] = "0"  # its threads wait asleep: the ranks that send weights need the cores it would spin on
    actor = ray.remote(RolloutEngine)

    def start(index: int) -> ray.actor.ActorHandle:
        place = PlacementGroupSchedulingStrategy(bundles, index)
        options = {"num_gpus": size, "num_cpus": 1, "scheduling_strategy": place, "runtime_env": {"env_vars": env}}
        own = {"name": engine_name(index), "seed": kwargs["seed"] + index}
        return actor.options(**options).remote(**(kwargs | own))

    return start, bundles


def _sync_kwargs(weight_sync: str) -> dict:
    """vLLM's arguments for its end of the weight sync."""
    if weight_sync == "packed":
        return {"weight_transfer_config": {"backend": "nccl" if on_gpu() else "gloo"}}
    if on_gpu():
        return {"worker_extension_cls": "openrlhf.trainer.ray.vllm_worker_wrap.WorkerWrap"}
    return {"worker_extension_cls": "medssr_dist.bench.training.stock_sync.GlooWorkerExtension"}
