"""The rollout workers of a stage: their engines, the weights that they get and the sampler that they serve."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from medssr_dist.inference.vllm_args import build_engine_env, build_engine_kwargs
from medssr_dist.runtime.cluster import reserve_bundles
from medssr_dist.runtime.device import on_gpu
from medssr_dist.training.rollout.engines import RolloutEngines, engine_name
from medssr_dist.training.rollout.groups import Sampling
from medssr_dist.training.rollout.sampler import BatchPlan, Sampler
from medssr_dist.training.stall_watch import Heartbeat, HeartbeatBoard

if TYPE_CHECKING:
    from medssr_dist.config.schema import Config
    from medssr_dist.config.training import Stage
    from medssr_dist.training.backend.openrlhf import RayActorGroup
    from medssr_dist.training.rollout.examples import PromptLoader
    from medssr_dist.training.weights.sync import SyncSettings


class RankSync:
    """The controller's end of the weight sync: the ranks send to the engines that it names."""

    def __init__(self, ranks: RayActorGroup, settings: SyncSettings):
        self._ranks, self._settings = ranks, settings
        self._connected: dict[str, ray.actor.ActorHandle] = {}

    def send(self, engines: dict[str, ray.actor.ActorHandle], version: int) -> None:
        """Send the policy's current weights, as `version`. Raises SyncError, which names who is missing."""
        if engines != self._connected:
            self._connected = {}  # in case connecting fails
            self._all("connect_engines", engines, self._settings)
            self._connected = engines
        self._all("send_weights", version)

    def _all(self, method: str, *args: object) -> None:
        pending = self._ranks.async_run_method(method, *args)
        while pending:
            done, pending = ray.wait(pending)
            ray.get(done)  # raise the first failure: the other ranks may wait for the one that failed


class RolloutWorkers:
    """Starts the rollout engines, sends them the weights of `ranks`, and makes the sampler that uses them.

    Attributes:
        engines: the engines, restarted when they die.
        sampler: set by `make_sampler`.
        bundles: placement group of the engines.
    """

    def __init__(self, config: Config, stage: Stage, model: Path, board: HeartbeatBoard, ranks: RayActorGroup):
        self._config, self._stage, self._board = config, stage, board
        self._sync = self.make_sync(ranks)
        start, self.bundles = engine_starter(config, stage, board, self.engine_options(model))
        self.engines = RolloutEngines(start, config.training.engines, self._admit)
        self.sampler: Sampler | None = None

    def engine_options(self, model: Path) -> dict[str, Any]:
        """Return vLLM's arguments for one engine."""
        training = self._config.training
        options = build_engine_kwargs(model, self._config.policy, self._config.runtime, training.tensor_parallel_size)
        options["weight_transfer_config"] = {"backend": "nccl" if on_gpu() else "gloo"}
        if self._stage.importance != "off":
            options["logprobs_mode"] = "processed_logprobs"  # of the distribution that was sampled from
        return options

    def make_sync(self, ranks: RayActorGroup) -> RankSync:
        """Set up the weight sync from `ranks`."""
        from medssr_dist.training.weights.sync import SyncSettings

        training = self._config.training
        settings = SyncSettings(training.sync_bucket_mb * 2**20, training.sync_timeout_s, training.tensor_parallel_size)
        return RankSync(ranks, settings)

    def make_sampler(self, prompts: PromptLoader, tokenizer) -> Sampler:
        """Make the sampler of the stage."""
        plan, sampling = plan_batches(self._config, self._stage)
        report = Heartbeat(self._board, "controller").beat
        self.sampler = Sampler(plan, sampling, prompts, tokenizer, self.engines, report)
        return self.sampler

    def sync_weights(self) -> None:
        """Send all engines the policy's weights, once no sample is being drawn with the weights before."""
        self.sampler.finish()
        self.engines.revive()
        self._sync.send(self.engines.named(), self.sampler.given)

    def _admit(self, engines: dict[str, ray.actor.ActorHandle]) -> None:
        with self.sampler.ranks_free:
            self._sync.send(engines, self.sampler.given)


def plan_batches(config: Config, stage: Stage) -> tuple[BatchPlan, Sampling]:
    """Return how batches of the stage are made, and how they are sampled."""
    plan = BatchPlan(stage.prompts_per_step, stage.steps, stage.drop_zero_variance, config.training.async_rollout)
    return plan, Sampling(
        n=stage.samples_per_prompt,
        temperature=stage.temperature,
        top_p=stage.top_p,
        max_tokens=stage.max_new_tokens,
        logprobs=stage.importance != "off",
        random_seed=config.runtime.random_seed,
    )


def engine_starter(
    config: Config, stage: Stage, board: HeartbeatBoard, options: dict[str, Any]
) -> tuple[Callable[[int], ray.actor.ActorHandle], PlacementGroup]:
    """Return a function that starts engine number i in its place, and the placement group of all engines.

    Args:
        options: vLLM's arguments, the same for all engines.
    """
    from medssr_dist.training.rollout.rollout_engine import RolloutEngine

    training = config.training
    size = training.tensor_parallel_size
    bundles = reserve_bundles([{"GPU": size, "CPU": 1}] * training.engines, "the rollout engines")
    env = build_engine_env(config.runtime, max(1, (os.cpu_count() or 1) // training.engines))
    env["GOMP_SPINCOUNT"] = "0"  # its threads wait asleep: the ranks that send weights need the cores
    actor = ray.remote(RolloutEngine)

    def start(index: int) -> ray.actor.ActorHandle:
        place = PlacementGroupSchedulingStrategy(bundles, index)
        actor_options = {
            "num_gpus": size,
            "num_cpus": 1,
            "scheduling_strategy": place,
            "runtime_env": {"env_vars": env},
        }
        own = {"name": engine_name(index), "seed": options["seed"] + index, "num_gpus": 1, "board": board}
        return actor.options(**actor_options).remote(**(options | own))

    return start, bundles
