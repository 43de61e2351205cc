"""The rollout workers of a stage: engines, the sync of their weights, and the sampler that uses them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from medssr_dist.config.training import Stage1
from medssr_dist.inference.vllm_args import build_engine_env, build_rollout_kwargs
from medssr_dist.runtime.cluster import reserve_bundles
from medssr_dist.runtime.device import count_threads, on_gpu
from medssr_dist.training.rollout.engines import RolloutEngines, engine_name
from medssr_dist.training.rollout.first_rollouts import PromptChoice
from medssr_dist.training.rollout.groups import Sampling
from medssr_dist.training.rollout.reward import load_reward
from medssr_dist.training.rollout.sampler import BatchPlan, Sampler
from medssr_dist.training.stall_watch import Heartbeat, HeartbeatBoard

if TYPE_CHECKING:
    from medssr_dist.config.schema import Config
    from medssr_dist.config.training import Stage
    from medssr_dist.training.backend.openrlhf import RayActorGroup
    from medssr_dist.training.rollout.examples import PromptLoader
    from medssr_dist.training.vote_access import VoteSource
    from medssr_dist.training.weights.sync import SyncSettings


class RankSync:
    """The controller's end of the weight sync: it makes the ranks send their weights to engines."""

    def __init__(self, ranks: RayActorGroup, settings: SyncSettings):
        self._ranks, self._settings = ranks, settings
        self._connected: dict[str, ray.actor.ActorHandle] = {}

    def send(
        self,
        engines: dict[str, ray.actor.ActorHandle],
        version: int,
        *,
        teacher: bool = False,
        compare_all: bool = False,
    ) -> None:
        """Send the policy's current weights, as version number `version`, to these engines, by name.

        Args:
            teacher: send the weights of its teacher.
            compare_all: compare the checksums of all weights, whatever `training.verify_sync` says.

        Raises:
            SyncError: a rank or an engine did not take part; the message names it.
        """
        if engines != self._connected:
            self._connected = {}  # if connecting fails, the next call connects again
            self._all("connect_engines", engines, self._settings)
            self._connected = engines
        self._all("send_teacher" if teacher else "send_weights", version, compare_all)

    def _all(self, method: str, *args: object) -> None:
        pending = self._ranks.async_run_method(method, *args)
        while pending:
            done, pending = ray.wait(pending)
            ray.get(done)  # raise the first failure: the other ranks may wait for the one that failed


class RolloutWorkers:
    """Starts the rollout engines, sends them the weights of `ranks`, and makes the sampler that uses them.

    Attributes:
        engines: the engines; they are restarted when they die.
        sampler: set by `make_sampler`.
        bundles: placement group of the engines.
    """

    def __init__(self, config: Config, stage: Stage, model: Path, board: HeartbeatBoard, ranks: RayActorGroup):
        self._config, self._stage, self._board = config, stage, board
        self._sync = self.make_sync(ranks)
        starter = EngineStarter(config, board, self.engine_options(model))
        self.bundles = starter.bundles
        self.engines = RolloutEngines(starter.start, config.training.engines, self._send_meanwhile)
        self.sampler: Sampler | None = None
        self._hold_teacher = False

    def engine_options(self, model: Path) -> dict[str, Any]:
        """Return vLLM's arguments, which are the same for all engines."""
        backend = {"backend": "medssr_nccl" if on_gpu() else "gloo"}
        return build_rollout_kwargs(model, self._config) | {"weight_transfer_config": backend}

    def make_sync(self, ranks: RayActorGroup) -> RankSync:
        """Set up the weight sync from `ranks`."""
        from medssr_dist.training.weights.sync import SyncSettings

        training = self._config.training
        settings = SyncSettings(
            training.sync_bucket_mb * 2**20,
            training.sync_timeout_s,
            training.tensor_parallel_size,
            training.verify_sync,
        )
        return RankSync(ranks, settings)

    def make_sampler(self, prompts: PromptLoader, votes: VoteSource | None = None) -> Sampler:
        """Make the sampler of the stage. `votes`: its first rollouts; None = there are none."""
        plan, sampling = make_batch_plan(self._config, self._stage), make_sampling(self._config, self._stage)
        report = Heartbeat(self._board, "controller").beat
        choice = make_prompt_choice(self._config, self._stage, votes)
        self.sampler = Sampler(plan, sampling, prompts, self.engines, report, choice)
        return self.sampler

    def sync_weights(self, compare_all: bool = False) -> None:
        """Send the policy's weights to all engines, after no sample is being drawn with the previous weights.

        Args:
            compare_all: compare the checksums of all weights, whatever `training.verify_sync` says.
        """
        self.sampler.finish_batch()
        self.engines.restart_dead()
        self._sync.send(self.engines.by_name, self.sampler.returned, compare_all=compare_all)

    def _send_meanwhile(self, engines: dict[str, ray.actor.ActorHandle]) -> None:
        """Send the current weights to restarted engines, while no step is trained."""
        with self.sampler.ranks_free:
            self._sync.send(engines, self.sampler.returned, teacher=self._hold_teacher)

    @contextmanager
    def holding_teacher(self) -> Iterator[None]:
        """Let all engines hold the teacher's weights (`voting.online.teacher`), and the policy's again afterwards."""
        self._hold_teacher = True
        try:
            self._sync.send(self.engines.by_name, self.sampler.returned, teacher=True)
            yield
        finally:
            self._hold_teacher = False
        self.engines.restart_dead()
        self._sync.send(self.engines.by_name, self.sampler.returned)


def make_batch_plan(config: Config, stage: Stage) -> BatchPlan:
    """Return how the batches of the stage are made."""
    training = config.training
    return BatchPlan(
        stage.prompts_per_step,
        stage.steps,
        stage.drop_zero_variance,
        training.async_rollout,
        training.over_draw,
        training.max_policy_lag,
    )


def make_prompt_choice(config: Config, stage: Stage, votes: VoteSource | None) -> PromptChoice | None:
    """Return how the stage uses the votes on its questions; None if it does not."""
    limit = stage.flat_limit if isinstance(stage, Stage1) else 1.0
    if votes is None and limit == 1:
        return None
    reward = load_reward(config.training.reward)
    return PromptChoice(stage.samples_per_prompt, limit, votes, reward, config.training.max_policy_lag)


def make_sampling(config: Config, stage: Stage) -> Sampling:
    """Return how the stage samples: from the whole distribution, because its log-probs are what is trained."""
    return Sampling(
        n=stage.samples_per_prompt,
        temperature=stage.temperature,
        top_p=1.0,
        max_tokens=stage.max_new_tokens,
        logprobs=True,
        random_seed=config.runtime.random_seed,
        stop=config.policy.prompt.stop,
    )


class EngineStarter:
    """Starts rollout engines, each in its own bundle of a placement group.

    Args:
        board: receives the engines' heartbeats.
        options: vLLM's arguments, the same for all engines.

    Attributes:
        bundles: placement group of all engines.
    """

    def __init__(self, config: Config, board: HeartbeatBoard, options: dict[str, Any]):
        from medssr_dist.training.rollout.rollout_engine import RolloutEngine

        training = config.training
        self._board, self._options, self._gpus = board, options, training.tensor_parallel_size
        self._reward = training.reward
        self.bundles = reserve_bundles([{"GPU": self._gpus, "CPU": 1}] * training.engines, "the rollout engines")
        self._env = build_engine_env(config.runtime, count_threads(training.engines))
        self._env["GOMP_SPINCOUNT"] = "0"  # waiting threads sleep: the ranks that send weights need the cores
        self._actor = ray.remote(RolloutEngine)

    def start(self, index: int) -> ray.actor.ActorHandle:
        """Start engine number `index` and return its actor, before the engine is ready."""
        actor = self._actor.options(
            num_gpus=self._gpus,
            num_cpus=1,
            scheduling_strategy=PlacementGroupSchedulingStrategy(self.bundles, index),
            runtime_env={"env_vars": self._env},
        )
        own = {"name": engine_name(index), "seed": self._options["seed"] + index, "num_gpus": 1, "board": self._board}
        return actor.remote(**(self._options | own), reward=self._reward)
