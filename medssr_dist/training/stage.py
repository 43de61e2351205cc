"""One GRPO stage inside a Ray actor: builds the groups and engines, fits, saves."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import ray
from ray.util.placement_group import remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from medssr_dist.config import Config, Stage
from medssr_dist.runtime.cluster import reserve
from medssr_dist.runtime.device import device_env, engine_env, engine_kwargs, on_gpu
from medssr_dist.runtime.models import load_tokenizer


@dataclass(frozen=True)
class StageJob:
    """What one stage is to do: from `model`, against `reference`, on `examples`, into `folder`."""

    config: Config
    stage: Stage
    model: Path
    reference: Path
    folder: Path
    expected_steps: int  # for the learning-rate schedule; exact unless one pass over a stream is asked


class StageRunner:
    """Ray actor, the controller of a stage (OpenRLHF's `train_ppo_ray.train`, with our parts)."""

    def run(self, job: StageJob, examples, on_taken) -> dict:
        """Train and write `folder`/hf.partial. Returns counts of the prompts.

        Args:
            examples: callable giving the Examples in order; may wait for more.
            on_taken: callable told how many examples have been taken.
        """
        from medssr_dist.training import algorithm
        from medssr_dist.training.prompts import PromptLoader
        from medssr_dist.training.strategy import Strategy
        from medssr_dist.training.trainer import StageTrainer

        config, stage = job.config, job.stage
        strategy = Strategy(config, stage, job.folder)
        tokenizer = load_tokenizer(job.model, config.policy)
        room = config.policy.max_model_len - stage.max_new_tokens
        prompts = PromptLoader(examples, tokenizer, room, stage.prompts_per_step, stage.steps, on_taken)
        policy, reference, engines, bundles = self._start(job, strategy)
        trainer = StageTrainer(strategy, policy, reference, engines, tokenizer, prompts, job.folder / "metrics.jsonl")
        trainer.fit()
        ray.get(policy.async_save_model())
        for bundle in bundles:
            remove_placement_group(bundle)
        counts = {"prompts": prompts.taken, "skipped_too_long": prompts.skipped}
        return counts | {"old_logprobs": algorithm.told(config.training, stage)}

    def _start(self, job: StageJob, strategy) -> tuple:
        """Start engines, policy and reference side by side, and wait for all of them."""
        from medssr_dist.training.actors import PolicyRank, ReferenceRank

        ranks, bundles = _rank_group(job.config, PolicyRank, None)  # first: the ranks are tied to whole nodes
        engines, engine_bundles = _start_engines(job.config, job.stage, job.model)
        if job.stage.kl_coef > 0:
            shared = bundles if job.config.training.colocate_reference else None
            reference, reference_bundles = _rank_group(job.config, ReferenceRank, shared)
        else:
            reference, reference_bundles = None, bundles
        optimizer_steps = job.expected_steps * job.stage.updates_per_rollout
        refs = ranks.async_init_model_from_pretrained(strategy, str(job.model), optimizer_steps, engines)
        if reference is not None:
            refs += reference.async_init_model_from_pretrained(strategy, str(job.reference))
        # Engines first: the policy waits in its weight-sync group for an engine that has died.
        ray.get([engine.get_num_unfinished_requests.remote() for engine in engines])
        ray.get(refs)
        return ranks, reference, engines, {engine_bundles, bundles, reference_bundles}


def _rank_group(config: Config, rank_class: type, bundles) -> tuple:
    """A RayActorGroup of ZeRO-3 ranks, on `bundles` or on new ones; returns it and its placement group."""
    from medssr_dist.training.actors import RayActorGroup

    training = config.training
    if bundles is None:
        bundles = reserve([{"GPU": 1, "CPU": 1}] * training.ranks, "the training ranks", training.ranks_per_node)
    # Policy and reference share a GPU where the reference is colocated.
    share = 0.4 if training.colocate_reference else 1
    actor = ray.remote(num_gpus=1, runtime_env={"env_vars": _rank_env(training.ranks_per_node)})(rank_class)
    return RayActorGroup(training.nodes, training.ranks_per_node, actor, pg=bundles, num_gpus_per_actor=share), bundles


def _rank_env(ranks_per_node: int) -> dict[str, str]:
    env = device_env() | {"TOKENIZERS_PARALLELISM": "false"}
    if on_gpu():
        return env
    return env | {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // ranks_per_node))}


def _start_engines(config: Config, stage: Stage, model: Path) -> tuple:
    """Rollout engines: OpenRLHF's actor around vLLM, with our arguments and our reward."""
    from medssr_dist.training.actors import RolloutEngine

    training = config.training
    size = training.tensor_parallel_size
    bundles = reserve([{"GPU": size, "CPU": 1}] * training.engines, "the rollout engines")
    kwargs = engine_kwargs(model, config.policy, config.runtime, size) | {
        "worker_extension_cls": _worker_extension(),
        "agent_func_path": str(Path(__file__).with_name("agent.py")),
        "num_gpus": 1,
    }
    if stage.importance != "off":
        kwargs["logprobs_mode"] = "processed_logprobs"  # of the distribution that was sampled from
    env = engine_env(config.runtime, max(1, (os.cpu_count() or 1) // training.engines))
    actor = ray.remote(RolloutEngine)
    engines = [
        actor.options(
            num_gpus=size,
            num_cpus=1,
            scheduling_strategy=PlacementGroupSchedulingStrategy(bundles, index),
            runtime_env={"env_vars": env},
        ).remote(**(kwargs | {"seed": kwargs["seed"] + index}))
        for index in range(training.engines)
    ]
    return engines, bundles


def _worker_extension() -> str:
    if on_gpu():
        return "openrlhf.trainer.ray.vllm_worker_wrap.WorkerWrap"
    return "medssr_dist.training.platform.GlooWorkerExtension"
