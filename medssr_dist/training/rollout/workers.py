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
    from ray.util.placement_group import PlacementGroup

    from medssr_dist.config.schema import Config
    from medssr_dist.config.training import Stage
    from medssr_dist.training.backend.openrlhf import RayActorGroup
    from medssr_dist.training.rollout.examples import PromptLoader
    from medssr_dist.training.vote_access import VoteSource
    from medssr_dist.training.weights.sync import SyncSettings


_KEEP_WEIGHTS, _DROP_WEIGHTS = 1, 2  # vLLM's levels of sleep
_ENGINE_SHARE = 0.2  # of a rank's GPU in Ray's books; rank and reference have 0.4 each


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

    def __init__(
        self,
        config: Config,
        stage: Stage,
        model: Path,
        board: HeartbeatBoard,
        ranks: RayActorGroup,
        rank_bundles: PlacementGroup,
    ):
        """
        Args:
            rank_bundles: those of the ranks; colocated engines share them.
        """
        self._config, self._stage, self._board, self._ranks = config, stage, board, ranks
        self._takes_turns = config.training.placement == "colocated"
        self._sync = self.make_sync(ranks)
        starter = EngineStarter(config, board, self.engine_options(model), rank_bundles if self._takes_turns else None)
        self.bundles = starter.bundles
        self.engines = RolloutEngines(starter.start, config.training.engines, self._send_meanwhile)
        self.sampler: Sampler | None = None
        self._hold_teacher = False

    def engine_options(self, model: Path) -> dict[str, Any]:
        """Return vLLM's arguments, which are the same for all engines."""
        from medssr_dist.training.weights.gloo_transfer import BACKEND, IPC_BACKEND, NCCL_BACKEND

        on_gpus = IPC_BACKEND if self._takes_turns else NCCL_BACKEND
        backend = {"backend": on_gpus if on_gpu() else BACKEND}
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
            self._takes_turns,
        )
        return RankSync(ranks, settings)

    def make_sampler(self, prompts: PromptLoader, votes: VoteSource | None = None) -> Sampler:
        """Make the sampler of the stage. `votes`: its first rollouts; None = there are none."""
        plan, sampling = make_batch_plan(self._config, self._stage), make_sampling(self._config, self._stage)
        report = Heartbeat(self._board, "controller").beat
        choice = make_prompt_choice(self._config, self._stage, votes)
        self.sampler = Sampler(plan, sampling, prompts, self.engines, report, choice)
        return self.sampler

    def make_room(self) -> None:
        """Let colocated engines, once they are ready, sleep while the ranks load; they keep their weights."""
        if self._takes_turns:
            self.engines.wait_ready()
            self.engines.call_all("sleep", _KEEP_WEIGHTS)

    def wait_ready(self, loading: list[ray.ObjectRef]) -> None:
        """Wait for the engines and for the ranks, which are `loading`; colocated engines then have the GPUs."""
        if not self._takes_turns:
            self.engines.wait_ready()  # first, so that the error of an engine that fails to start is raised at once
        ray.get(loading)
        if self._takes_turns:
            ray.get(self._ranks.async_run_method("offload_states"))
            self.engines.call_all("wake_up")

    def begin_training(self) -> None:
        """Give the GPUs of colocated engines to the ranks; the engines lose their weights."""
        if self._takes_turns:
            self.engines.call_all("sleep", _DROP_WEIGHTS)
            ray.get(self._ranks.async_run_method("reload_states"))

    def sync_weights(self, compare_all: bool = False) -> None:
        """Send the policy's weights to all engines; colocated ones then have the GPUs until `begin_training`.

        Args:
            compare_all: compare the checksums of all weights, whatever `training.verify_sync` says.
        """
        if self._takes_turns:
            ray.get(self._ranks.async_run_method("offload_states"))
            self.engines.call_all("wake_up", ["weights"])
        with self.sampler.new_weights() as version:
            self.engines.update_all(lambda engines: self._sync.send(engines, version, compare_all=compare_all))
        if self._takes_turns:
            self.engines.call_all("wake_up", ["kv_cache"])

    def _send_meanwhile(self, engines: dict[str, ray.actor.ActorHandle]) -> bool:
        """Send the current weights to restarted engines, unless a step is trained; return whether they were sent."""
        if not self.sampler.ranks_free.acquire(blocking=False):
            return False
        try:
            self._sync.send(engines, self.sampler.returned, teacher=self._hold_teacher)
        finally:
            self.sampler.ranks_free.release()
        return True

    @contextmanager
    def holding_teacher(self) -> Iterator[None]:
        """Let all engines hold the teacher's weights (`voting.online.teacher`), and the policy's again afterwards.

        Meanwhile no sample for the training is drawn.
        """
        version = self.sampler.returned
        with self.sampler.held():
            self._hold_teacher = True
            try:
                self.engines.update_all(lambda engines: self._sync.send(engines, version, teacher=True))
                yield
            finally:
                self._hold_teacher = False
            self.engines.update_all(lambda engines: self._sync.send(engines, version))


def make_batch_plan(config: Config, stage: Stage) -> BatchPlan:
    """Return how the batches of the stage are made.

    With over-draw, the surplus of a batch becomes a step older before it is trained on. Colocated engines sleep while
    the ranks train, so they are never ahead.
    """
    training = config.training
    return BatchPlan(
        stage.prompts_per_step,
        stage.steps,
        stage.drop_zero_variance,
        0 if training.placement == "colocated" else training.max_policy_lag - training.over_draw,
        training.over_draw,
        training.max_policy_lag,
        interrupts=not training.deterministic,
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
        shared: bundles of the ranks, for colocated engines; None = the engines have bundles of their own.

    Attributes:
        bundles: placement group of all engines.
    """

    def __init__(self, config: Config, board: HeartbeatBoard, options: dict[str, Any], shared: PlacementGroup | None):
        from medssr_dist.training.rollout.rollout_engine import RolloutEngine

        training = config.training
        self._board, self._options, self._gpus = board, options, training.tensor_parallel_size
        self._reward = training.reward
        own = [{"GPU": self._gpus, "CPU": 1}] * training.engines
        self.bundles = shared or reserve_bundles(own, "the rollout engines")
        self._gpu_share, self._cpu_share = (_ENGINE_SHARE, _ENGINE_SHARE) if shared else (self._gpus, 1)
        self._env = build_engine_env(config.runtime, count_threads(training.engines))
        self._env["GOMP_SPINCOUNT"] = "0"  # waiting threads sleep: the ranks that send weights need the cores
        self._actor = ray.remote(RolloutEngine)

    def start(self, index: int) -> ray.actor.ActorHandle:
        """Start engine number `index` and return its actor, before the engine is ready."""
        actor = self._actor.options(
            num_gpus=self._gpu_share,
            num_cpus=self._cpu_share,
            scheduling_strategy=PlacementGroupSchedulingStrategy(self.bundles, index),
            runtime_env={"env_vars": self._env},
        )
        own = {"name": engine_name(index), "seed": self._options["seed"] + index, "num_gpus": 1, "board": self._board}
        return actor.remote(**(self._options | own), reward=self._reward)
