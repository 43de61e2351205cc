"""Translates the config into OpenRLHF's options, in one pure function that can be tested without OpenRLHF."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from medssr_dist.config.schema import Config
from medssr_dist.config.training import Stage
from medssr_dist.run.paths import StagePaths

# Options that are the same in every run. GRPO has no critic and no reward model. Features that we do not offer are off,
# and so are OpenRLHF's own logging and saving (see after_step.py). The names are those of OpenRLHF 0.11.2.
_FIXED = {
    "local_rank": -1,
    "actor.aux_loss_coef": 0.0,
    "actor.freeze_visual_encoder": False,
    "actor.gradient_checkpointing_reentrant": False,
    "actor.min_lr_ratio": 0.1,
    "actor.optim": "adam",
    "actor.adam.betas": (0.9, 0.95),
    "actor.adam.eps": 1e-8,
    "actor.adam.weight_decay": 0.0,
    "actor.muon.lr": 0.02,
    "actor.muon.momentum": 0.95,
    "algo.advantage.gamma": 1.0,
    "algo.advantage.lambd": 1.0,
    "algo.advantage.no_std_norm": False,
    "algo.dynamic_filtering_enable": False,
    "algo.dynamic_filtering_range": (0.0, 1.0),
    "algo.kl.horizon": 10000,
    "algo.kl.target": None,
    "ckpt.best_metric_key": "none",
    "ckpt.disable_ds": False,
    "ckpt.load_enable": True,
    "ckpt.max_mem": float("inf"),
    "ckpt.max_num": float("inf"),
    "ckpt.save_hf": False,
    "ckpt.save_steps": float("inf"),
    "critic.freezing_steps": -1,
    "data.disable_fast_tokenizer": False,
    "ds.deepcompile": False,
    "ds.enable_sleep": False,
    "ds.experts_implementation": None,
    "ds.grad_accum_dtype": None,
    "ds.load_in_4bit": False,
    "ds.lora.dropout": 0.0,
    "ds.lora.target_modules": "all-linear",
    "ds.overlap_comm": False,
    "ds.ring_attn_size": 1,
    "ds.tensor_parallel_size": 1,
    "ds.use_liger_kernel": False,
    "ds.use_universal_ckpt": False,
    "ds.zero_stage": 3,
    "eval.steps": float("inf"),
    "logger.logging_steps": float("inf"),
    "logger.tensorboard_dir": None,
    "logger.wandb.key": None,
    "reward.clip_range": (-10.0, 10.0),
    "reward.overlong_buffer_len": None,
    "reward.stop_properly_penalty_coef": None,
    "rollout.max_tokens_per_gpu": None,
    "rollout.top_p": 1.0,
    "train.async_enable": False,
    "train.colocate_all": False,
    "train.dynamic_batch_enable": False,
    "train.ema_beta": 0.992,
    "train.enable_ema": False,
    "train.max_epochs": 1,
    "train.num_episodes": 1,
    "vllm.enable_sleep": False,
    "vllm.sync_backend": "nccl",
    "vllm.sync_with_ray": False,
}
VARLEN = "medssr_varlen"  # name of our attention in transformers (update/varlen_attention.py)
# policy.dtype -> OpenRLHF's name; "fp32" is added by openrlhf.py.
_DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


def make_openrlhf_options(config: Config, stage: Stage, folder: Path) -> dict[str, Any]:
    """Return the values of OpenRLHF's options for one stage, by dotted name.

    Args:
        stage: config.training.stage1 or stage2.
        folder: the stage's folder, which will contain its checkpoints.

    Example: make_openrlhf_options(config, stage, folder)["actor.adam.lr"] == stage.learning_rate
    """
    training = config.training
    return (
        _FIXED
        | _make_algorithm_options(stage)
        | {
            "actor.adam.lr": stage.learning_rate,
            "actor.gradient_checkpointing_enable": training.gradient_checkpointing,
            "actor.lr_scheduler": stage.lr_scheduler,
            "actor.lr_warmup_ratio": stage.warmup_ratio,
            "actor.max_norm": stage.max_grad_norm,
            "actor.num_gpus_per_node": training.ranks_per_node,
            "actor.num_nodes": training.nodes,
            "ckpt.output_dir": str(StagePaths(folder).hf_partial),
            "ckpt.path": str(StagePaths(folder).checkpoints),
            "data.max_len": config.policy.max_model_len,
            "ds.adam_offload": training.offload_optimizer,
            "ds.attn_implementation": VARLEN if training.attention == "varlen" else training.attention,
            "ds.lora.alpha": training.lora_alpha,
            "ds.lora.rank": training.lora_rank,
            "ds.packing_samples": training.packing,
            "ds.param_dtype": _DTYPES[config.policy.dtype],
            "ds.zpg": training.ranks_per_node if training.hpz and training.nodes > 1 else 1,
            "ref.offload": training.offload_reference,
            "rollout.batch_size": stage.prompts_per_step,
            "rollout.max_new_tokens": stage.max_new_tokens,
            "rollout.micro_batch_size": stage.micro_batch_size,
            "rollout.n_samples_per_prompt": stage.samples_per_prompt,
            "rollout.temperature": stage.temperature,
            "rollout.vllm_generate_batch_size": stage.prompts_per_step,
            "train.batch_size": stage.sequences // stage.updates_per_rollout,
            "train.colocate_actor_ref": training.colocate_reference,
            "train.full_determinism_enable": training.deterministic,
            "train.micro_batch_size": stage.micro_batch_size,
            "train.seed": config.runtime.random_seed,
            "vllm.enable_prefix_caching": True,
            "vllm.num_engines": training.engines,
            "vllm.tensor_parallel_size": training.tensor_parallel_size,
        }
    )


def _make_algorithm_options(stage: Stage) -> dict[str, Any]:
    """Return the options of OpenRLHF's loss. Settings that OpenRLHF does not have are read only by our own loss."""
    sequences = stage.aggregation == "sequence_mean"
    return {
        "actor.dual_clip": stage.dual_clip,
        "actor.entropy_coef": stage.entropy_coef or None,
        "actor.eps_clip": stage.clip_low,
        "actor.eps_clip_low_high": (stage.clip_low, stage.clip_high),
        "actor.loss_agg_mode": "seq-mean-token-mean" if sequences else "token-mean",
        "actor.policy_loss_type": {"token": "ppo", "sequence": "gspo"}[stage.ratio],
        "algo.advantage.estimator": {"mean_only": "dr_grpo"}.get(stage.advantage, stage.advantage),
        "algo.advantage.is_correction_gating": stage.importance_gate,
        "algo.advantage.is_correction_level": {"sequence": "seq"}.get(stage.importance, stage.importance),
        "algo.advantage.is_correction_mode": stage.importance_mode,
        "algo.advantage.is_correction_threshold": [stage.importance_low, stage.importance_high],
        "algo.kl.estimator": stage.kl_estimator,
        "algo.kl.init_coef": stage.kl_coef,
        "algo.kl.unbiased_gradient": stage.kl_unbiased,
        "algo.kl.use_loss": stage.kl_in == "loss",
    }


def make_namespace(options: dict[str, Any]) -> SimpleNamespace:
    """Return the nested namespace that OpenRLHF reads (`args.actor.adam.lr`), from values by dotted name."""
    from medssr_dist.training.backend.openrlhf import hierarchize

    return hierarchize(SimpleNamespace(**options))
