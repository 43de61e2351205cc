"""One GRPO stage inside a Ray actor: builds the groups and engines, fits, saves."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

import ray
from ray.util.placement_group import remove_placement_group

from medssr_dist.config.schema import Config
from medssr_dist.runtime.cluster import reserve_bundles
from medssr_dist.runtime.device import build_device_env, on_gpu
from medssr_dist.runtime.models import load_tokenizer
from medssr_dist.training.deadline import StopSign
from medssr_dist.training.rollout.workers import RolloutSide
from medssr_dist.training.stage_job import StageJob
from medssr_dist.training.stall_watch import Board

if TYPE_CHECKING:
    from medssr_dist.training.backend.strategy import Strategy


class StageRunner:
    """Ray actor, the controller of a stage (OpenRLHF's `train_ppo_ray.train`, with our parts)."""

    def run(self, job: StageJob, examples, on_taken, board: Board) -> dict:
        """Train and write `folder`/hf.partial. Returns counts of the prompts.

        Args:
            examples: callable giving the Examples in order from a place; may wait for more, and calls its `watch`
                meanwhile.
            on_taken: callable told how many examples have been taken.
            board: told what every part of the stage does.
        Raises:
            Stopped: the stage was asked to stop or its end time is near; all finished steps are saved.
        """
        from medssr_dist.training.after_step import Boundary, SampleBook
        from medssr_dist.training.loop import StageTrainer
        from medssr_dist.training.rollout.examples import PromptLoader
        from medssr_dist.training.update import algorithm

        config, stage = job.config, job.stage
        stop = StopSign(job.paths.stop_request, job.end, job.checkpoint.seconds if job.checkpoint else 0.0)
        strategy = _strategy(job)
        tokenizer = load_tokenizer(job.model, config.policy)
        room = config.policy.max_model_len - stage.max_new_tokens
        watched = partial(examples, watch=partial(stop.check, before_step=False))
        grouped = config.training.rollout == "grouped"  # it counts the steps itself
        steps = 0 if grouped else stage.steps
        prompts = PromptLoader(watched, tokenizer, room, stage.prompts_per_step, steps, on_taken)
        policy, reference, rollout, bundles = self._start(job, strategy, board)
        rollout.generate_with(prompts, tokenizer, strategy)
        boundary = Boundary(job, policy, stop)
        samples = SampleBook(job.paths.samples, tokenizer, config.training.keep_samples)
        StageTrainer(strategy, policy, reference, rollout, tokenizer, prompts, boundary, samples).fit()
        boundary.export(job.paths.hf_partial)
        for bundle in bundles:
            remove_placement_group(bundle)
        counts = {"prompts": prompts.taken, "skipped_too_long": prompts.skipped}
        return counts | {"old_logprobs": algorithm.told(config.training, stage)}

    def _start(self, job: StageJob, strategy, board: Board) -> tuple:
        """Start engines, policy and reference side by side, and wait for all of them."""
        from medssr_dist.training.ranks import PolicyRank, ReferenceRank

        ranks, bundles = _rank_group(job.config, PolicyRank, None)  # first: the ranks are tied to whole nodes
        rollout = RolloutSide(job.config, job.stage, job.model, board, ranks)
        if job.stage.kl_coef > 0:
            shared = bundles if job.config.training.colocate_reference else None
            reference, reference_bundles = _rank_group(job.config, ReferenceRank, shared)
        else:
            reference, reference_bundles = None, bundles
        engines = rollout.pool.handles if job.config.training.weight_sync == "openrlhf" else None
        optimizer_steps = job.expected_steps * job.stage.updates_per_rollout
        refs = ranks.async_init_model_from_pretrained(strategy, str(job.model), optimizer_steps, engines)
        refs += ranks.async_run_method("watch", board)
        if reference is not None:
            refs += reference.async_init_model_from_pretrained(strategy, str(job.reference))
            refs += reference.async_run_method("watch", board)
        rollout.pool.wait_ready()  # first: the policy waits in its weight-sync group for an engine that has died
        ray.get(refs)
        return ranks, reference, rollout, {rollout.bundles, bundles, reference_bundles}


def _strategy(job: StageJob) -> Strategy:
    """OpenRLHF's strategy with the stage's options, and the checkpoint made ready for its number of ranks."""
    from medssr_dist.training.backend.strategy import Strategy
    from medssr_dist.training.weights.rank_state import fit_to_ranks

    if job.checkpoint is None:
        return Strategy(job.config, job.stage, job.folder)
    universal = fit_to_ranks(job.paths.checkpoints, job.checkpoint, job.config.training.ranks)
    return Strategy(job.config, job.stage, job.folder, universal)


def _rank_group(config: Config, rank_class: type, bundles) -> tuple:
    """A RayActorGroup of ZeRO-3 ranks, on `bundles` or on new ones; returns it and its placement group."""
    from medssr_dist.training.ranks import RayActorGroup

    training = config.training
    if bundles is None:
        bundles = reserve_bundles(
            [{"GPU": 1, "CPU": 1}] * training.ranks, "the training ranks", training.ranks_per_node
        )
    # Policy and reference share a GPU where the reference is colocated.
    share = 0.4 if training.colocate_reference else 1
    actor = ray.remote(num_gpus=1, runtime_env={"env_vars": _rank_env(training.ranks_per_node)})(rank_class)
    return RayActorGroup(training.nodes, training.ranks_per_node, actor, pg=bundles, num_gpus_per_actor=share), bundles


def _rank_env(ranks_per_node: int) -> dict[str, str]:
    env = build_device_env() | {"TOKENIZERS_PARALLELISM": "false"}
    if on_gpu():
        return env
    return env | {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // ranks_per_node))}
