"""The controller of a GRPO stage, a Ray actor: it starts ranks and engines, runs the loop, and exports the policy."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import ray
from ray.util.placement_group import PlacementGroup, remove_placement_group

from medssr_dist.config.schema import Config
from medssr_dist.runtime.cluster import reserve_bundles
from medssr_dist.runtime.device import build_device_env, count_threads, on_gpu
from medssr_dist.runtime.logs import set_up_logging
from medssr_dist.runtime.models import load_tokenizer, make_prompt_renderer
from medssr_dist.training.deadline import StopSign
from medssr_dist.training.rollout.examples import Example, PromptLoader
from medssr_dist.training.rollout.revoter import Revoter, make_revoter
from medssr_dist.training.rollout.validator import Validator, make_validation_plan
from medssr_dist.training.rollout.workers import RolloutWorkers
from medssr_dist.training.stage_job import StageCounts, StageJob
from medssr_dist.training.stall_watch import HeartbeatBoard

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from medssr_dist.training.after_step import AfterStep
    from medssr_dist.training.backend.openrlhf import RayActorGroup
    from medssr_dist.training.backend.strategy import Strategy

_log = logging.getLogger(__name__)
# examples(start, watch) yields (place, Example) from place `start` on, and calls `watch` while it waits for more
Examples = Callable[..., Iterable[tuple[int, Example]]]


@dataclass(frozen=True)
class Processes:
    """The Ray actors of a stage and the placement groups that hold their resources; reference is None without a KL."""

    policy: RayActorGroup
    reference: RayActorGroup | None
    rollout: RolloutWorkers
    bundles: frozenset[PlacementGroup]


class StageActor:
    """Ray actor: the controller of a stage."""

    def run(
        self, job: StageJob, examples: Examples, on_taken: Callable[[int], None], board: HeartbeatBoard
    ) -> StageCounts:
        """Train, and write `folder`/hf.partial.

        Args:
            examples: see Examples.
            on_taken: called with the number of examples taken so far.
            board: receives the heartbeats of all processes of the stage.

        Raises:
            Stopped: the stage was asked to stop or its end time is near; all finished steps are saved.
            Diverged: training has produced NaN or an infinity.
        """
        from medssr_dist.training.after_step import AfterStep
        from medssr_dist.training.stage_watch import StageWatch
        from medssr_dist.training.update.grpo_terms import describe_old_logprobs

        set_up_logging()  # to the stderr of this actor, which Ray writes to the run's logs
        config, stage = job.config, job.stage
        stop = StopSign(job.paths.stop_request, job.end, job.checkpoint.seconds if job.checkpoint else 0.0)
        strategy = self.make_strategy(job)
        tokenizer = load_tokenizer(job.model, config.policy)
        room = config.policy.max_model_len - stage.max_new_tokens
        watched = partial(examples, watch=partial(stop.check, before_step=False))
        renderer = make_prompt_renderer(tokenizer, config.policy)
        prompts = PromptLoader(watched, renderer, room, on_taken)
        plan = make_validation_plan(job, renderer)
        processes = self.start_processes(job, strategy, board)
        watch = StageWatch(job)
        after_step = AfterStep(job, processes.policy, stop, watch)
        validator = Validator(plan, processes.rollout.engines, watch.results, watch.add_result) if plan else None
        old_logprobs = describe_old_logprobs(config.training, stage)
        _log.info("log-probs before the update: %s", old_logprobs)
        revoter = make_revoter(job, prompts, renderer, processes.rollout)
        self.run_loop(job, strategy, processes, prompts, tokenizer, after_step, validator, revoter)
        published = self.export(after_step)
        for bundle in processes.bundles:
            remove_placement_group(bundle)
        return StageCounts(
            prompts.taken, prompts.skipped, old_logprobs, published_step=published, ended_by=watch.ended_by
        )

    def run_loop(
        self,
        job: StageJob,
        strategy: Strategy,
        processes: Processes,
        prompts: PromptLoader,
        tokenizer: PreTrainedTokenizerBase,
        after_step: AfterStep,
        validator: Validator | None,
        revoter: Revoter | None,
    ) -> None:
        """Run the GRPO loop to its end."""
        from medssr_dist.training.after_step import SampleLog
        from medssr_dist.training.loop import LoopParts, run_grpo
        from medssr_dist.training.update.experience import ExperienceMaker

        config, stage = job.config, job.stage
        parts = LoopParts(
            stage=stage,
            sampler=processes.rollout.make_sampler(prompts, job.votes),
            experience=ExperienceMaker(
                config, stage, processes.policy, processes.reference, pad_token=tokenizer.pad_token_id
            ),
            policy=processes.policy,
            engines=processes.rollout,
            after_step=after_step,
            sample_log=SampleLog(job.paths.samples, tokenizer, config.training.keep_samples),
            validator=validator,
            revoter=revoter,
        )
        run_grpo(parts)

    def export(self, after_step: AfterStep) -> int | None:
        """Write the policy that the stage publishes; return the step after which it was so, None if none is written."""
        return after_step.export_published()

    def start_processes(self, job: StageJob, strategy: Strategy, board: HeartbeatBoard) -> Processes:
        """Start engines, policy and reference in parallel, and wait for all of them; colocated engines start first."""
        policy_class, reference_class = self.rank_classes()
        policy, bundles = start_ranks(
            job.config, policy_class, None
        )  # first, because each node must hold `ranks_per_node` ranks
        rollout = self.make_workers(job, strategy, board, policy, bundles)
        rollout.make_room()
        reference, reference_bundles = None, bundles
        if job.stage.kl_coef > 0:
            shared = bundles if job.config.training.colocate_reference else None
            reference, reference_bundles = start_ranks(job.config, reference_class, shared)
        pending = self.load_policy(job, strategy, policy, rollout, board)
        if reference is not None:
            pending += reference.async_init_model_from_pretrained(strategy, str(job.reference))
            pending += reference.async_run_method("report_to", board)
        rollout.wait_ready(pending)
        return Processes(policy, reference, rollout, frozenset({rollout.bundles, bundles, reference_bundles}))

    def make_workers(
        self,
        job: StageJob,
        strategy: Strategy,
        board: HeartbeatBoard,
        policy: RayActorGroup,
        bundles: PlacementGroup,
    ) -> RolloutWorkers:
        """Start the rollout engines, and set up the weight sync from `policy`, whose ranks are on `bundles`."""
        return RolloutWorkers(job.config, job.stage, job.model, board, policy, bundles)

    def load_policy(
        self, job: StageJob, strategy: Strategy, policy: RayActorGroup, rollout: RolloutWorkers, board: HeartbeatBoard
    ) -> list[ray.ObjectRef]:
        """Make the ranks load the policy; return the Ray references to wait for."""
        optimizer_steps = job.expected_steps * job.stage.updates_per_rollout
        pending = policy.async_init_model_from_pretrained(strategy, str(job.model), optimizer_steps)
        return pending + policy.async_run_method("report_to", board)

    def rank_classes(self) -> tuple[type, type]:
        """Return the class of the policy's ranks and that of the reference's ranks."""
        from medssr_dist.training.ranks import PolicyRank, ReferenceRank

        return PolicyRank, ReferenceRank

    def make_strategy(self, job: StageJob) -> Strategy:
        """Make the strategy with the stage's options; convert the checkpoint if the number of ranks has changed."""
        from medssr_dist.training.backend.strategy import Strategy
        from medssr_dist.training.weights.rank_state import convert_to_ranks

        if job.checkpoint is None:
            return Strategy(job.config, job.stage, job.folder)
        universal = convert_to_ranks(job.paths.checkpoints, job.checkpoint, job.config.training.ranks)
        return Strategy(job.config, job.stage, job.folder, universal)


def start_ranks(
    config: Config, rank_class: type, bundles: PlacementGroup | None
) -> tuple[RayActorGroup, PlacementGroup]:
    """Start a group of ZeRO-3 ranks on `bundles`, or on new ones if it is None; return the group and its bundles."""
    from medssr_dist.training.backend.openrlhf import RayActorGroup

    training = config.training
    if bundles is None:
        bundles = reserve_bundles(
            [{"GPU": 1, "CPU": 1}] * training.ranks, "the training ranks", training.ranks_per_node
        )
    share = 0.4 if training.colocate_reference else 1  # of a GPU, for the policy and for a reference on the same GPUs
    actor = ray.remote(num_gpus=1, runtime_env={"env_vars": _rank_env(training.ranks_per_node)})(rank_class)
    return RayActorGroup(training.nodes, training.ranks_per_node, actor, pg=bundles, num_gpus_per_actor=share), bundles


def _rank_env(ranks_per_node: int) -> dict[str, str]:
    """Return the environment of a rank. Without OMP_NUM_THREADS Ray gives it one thread, also for an offloaded Adam."""
    threads = {"OMP_NUM_THREADS": str(count_threads(ranks_per_node)), "TOKENIZERS_PARALLELISM": "false"}
    if not on_gpu():
        threads["GOMP_SPINCOUNT"] = "0"  # waiting threads sleep: the engines need the cores
    return build_device_env() | threads
