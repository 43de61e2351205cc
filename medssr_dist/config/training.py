"""Config of the two training stages, of the rollout and of the weight sync (paper sections 3.3 and 3.4)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from medssr_dist.config.base import Section, Source
from medssr_dist.config.objective import Objective
from medssr_dist.run.paths import STAGES

# Keys of earlier versions, with what to do about them.
REMOVED_KEYS = dict.fromkeys(
    ("rollout", "weight_sync", "logprob"),
    "was removed: training has this project's own path alone (`medssr bench training` compares it with OpenRLHF's); "
    "take the key out",
)


class RolloutOptions(Section):
    """How samples come from the engines, and weights to them."""

    async_rollout: bool = Field(
        False, description="sample the next step's batch while this step trains: one step off-policy"
    )
    sync_bucket_mb: int = Field(256, ge=1, description="MiB gathered and sent at once; a larger weight is sent alone")
    sync_timeout_s: float = Field(600.0, gt=0, description="a rank or engine missing for this long ends the run")
    stall_s: float = Field(
        1800.0, gt=0, description="a stage without progress for this long ends; must exceed the time of a checkpoint"
    )


class Stage(Objective):
    """One GRPO stage (the paper's sections 3.3 and 3.4)."""

    enabled: bool = Field(True, description="false leaves the stage out")
    steps: int = Field(0, ge=0, description="optimizer steps; 0 = one pass over the data")
    prompts_per_step: int = Field(64, ge=1, description="questions a step")
    samples_per_prompt: int = Field(8, ge=2, description="group size G")
    micro_batch_size: int = Field(1, ge=1, description="sequences a rank holds in one forward, at most")
    micro_batch_tokens: int = Field(
        0, ge=0, description="tokens a rank holds in one forward, in place of micro_batch_size; needs packing; 0 = off"
    )
    learning_rate: float = Field(1e-6, gt=0, description="AdamW, after warm-up")
    lr_scheduler: Literal["constant_with_warmup", "cosine_with_min_lr", "linear"] = Field(
        "constant_with_warmup", description="over the stage's steps; min_lr is 0.1 of the rate"
    )
    warmup_ratio: float = Field(0.03, ge=0, le=1, description="share of the steps; > 0 makes the first step's rate 0")
    max_grad_norm: float = Field(1.0, ge=0, description="0 = no clipping")
    temperature: float = Field(1.0, gt=0, le=2, description="rollout temperature")
    top_p: float = Field(1.0, gt=0, le=1, description="nucleus sampling; 1 = off")
    max_new_tokens: int = Field(2048, ge=1, description="rollout limit, tokens")
    drop_zero_variance: bool = Field(
        True, description="replace groups whose rewards are all equal by groups of the next prompts"
    )
    save_steps: int = Field(10, ge=1, description="checkpoint every N steps")
    keep_checkpoints: int = Field(1, ge=1, description="newest complete checkpoints kept, beside the best by reward")
    export_steps: int = Field(0, ge=0, description="a Hugging Face checkpoint every N steps; 0 = the final one alone")

    @property
    def sequences(self) -> int:
        """Samples of a step."""
        return self.prompts_per_step * self.samples_per_prompt


class Stage2(Stage):
    """Supervised stage: the same algorithm on human-annotated questions."""

    data: list[Source] = Field(default_factory=list, description="human-annotated questions with answers")
    mix_pseudo_labels: bool = Field(False, description="add the kept pseudo-labels: the single-stage-mix ablation")
    reference: Literal["base", "stage1"] = Field("base", description="policy that the KL is measured against")


class Training(RolloutOptions):
    """OpenRLHF with DeepSpeed ZeRO-3 and vLLM rollout engines."""

    nodes: int = Field(1, ge=1, description="nodes with training ranks")
    ranks_per_node: int = Field(8, ge=1, description="ZeRO-3 ranks a node (GPUs; on CPU, processes)")
    engines: int = Field(1, ge=1, description="vLLM rollout engines")
    tensor_parallel_size: int = Field(1, ge=1, description="GPUs a rollout engine")
    colocate_reference: bool = Field(True, description="reference model shares the ranks' GPUs")
    gradient_checkpointing: bool = Field(False, description="recompute activations in the backward pass")
    offload_optimizer: bool = Field(False, description="keep optimizer state in host memory")
    offload_reference: bool = Field(False, description="keep the reference model's weights in host memory")
    lora_rank: int = Field(0, ge=0, description="train adapters of this rank on all linear layers; 0 = all weights")
    lora_alpha: int = Field(32, ge=1, description="adapters are scaled by lora_alpha / lora_rank")
    attention: Literal["flash_attention_2", "sdpa", "eager"] = Field("flash_attention_2", description="sdpa on CPU")
    packing: bool = Field(False, description="sequences laid end to end without padding")
    share_prompts: bool = Field(
        False, description="the answers to a question in one row with its prompt, computed once; needs attention=sdpa"
    )
    deterministic: bool = Field(False, description="slower kernels that give the same numbers in every run")
    trackers: list[Literal["tensorboard", "wandb", "mlflow"]] = Field(
        ["tensorboard"], description="they follow metrics.jsonl; keys are in the environment"
    )
    tracker_project: str = Field("medssr_dist", min_length=1, description="W&B project, MLflow experiment")
    keep_samples: int = Field(4, ge=0, description="rollouts of each step kept for reading in samples.jsonl; 0 = none")
    batching: Literal["balanced", "fixed"] = Field(
        "balanced",
        description="balanced: micro-batches of similar lengths, ranks with equal work; fixed: in the order of samples",
    )
    old_logprobs: Literal["auto", "always"] = Field(
        "auto",
        description="auto: where the update is exactly on-policy, those of the training forward; always: by a pass of "
        "their own, as OpenRLHF",
    )
    peak_tflops: float = Field(
        0.0, ge=0, description="of one GPU in the training's dtype, for the MFU; 0 = by the GPU's name, where known"
    )
    stage1: Stage = Field(default_factory=Stage)
    stage2: Stage2 = Field(default_factory=Stage2)

    @property
    def uses_pseudo_labels(self) -> bool:
        """Whether any stage trains on pseudo-labels, so that synthesis and vote are needed."""
        return self.stage1.enabled or (self.stage2.enabled and self.stage2.mix_pseudo_labels)

    @property
    def ranks(self) -> int:
        """ZeRO-3 ranks on all nodes."""
        return self.nodes * self.ranks_per_node

    @model_validator(mode="after")
    def _stages_can_roll_out(self) -> Training:
        for name in STAGES:
            stage = getattr(self, name)
            if stage.enabled and stage.importance == "off" and self.async_rollout:
                raise ValueError(
                    f"{name}: async_rollout trains on samples of older weights; set training.{name}.importance=token"
                )
        return self

    @model_validator(mode="after")
    def _steps_divide(self) -> Training:
        for name in STAGES:
            stage = getattr(self, name)
            if not stage.enabled:
                continue
            parts = self.ranks * stage.updates_per_rollout
            if stage.sequences < parts:
                raise ValueError(
                    f"{name}: prompts_per_step x samples_per_prompt = {stage.sequences} is fewer than ranks x "
                    f"updates_per_rollout = {self.ranks} x {stage.updates_per_rollout}"
                )
        return self

    @model_validator(mode="after")
    def _paths_can(self) -> Training:
        for name in STAGES:
            stage = getattr(self, name)
            if not stage.enabled:
                continue
            if stage.micro_batch_tokens and (self.batching != "balanced" or not self.packing):
                raise ValueError(
                    f"{name}: micro_batch_tokens needs batching=balanced and packing=true, not batching="
                    f"{self.batching} and packing={str(self.packing).lower()}"
                )
            if self.share_prompts and stage.micro_batch_size % stage.samples_per_prompt:
                raise ValueError(
                    f"{name}: share_prompts needs whole groups in a micro-batch: micro_batch_size = "
                    f"{stage.micro_batch_size} is not a multiple of samples_per_prompt = {stage.samples_per_prompt}"
                )
        return self

    @model_validator(mode="after")
    def _prompts_can_be_shared(self) -> Training:
        needs = {"attention": "sdpa", "batching": "balanced", "packing": False}
        wrong = [name for name, value in needs.items() if getattr(self, name) != value]
        if self.share_prompts and wrong:
            wanted = ", ".join(f"{name}={str(needs[name]).lower()}" for name in wrong)
            raise ValueError(f"share_prompts needs {wanted}; or set training.share_prompts=false")
        return self

    @model_validator(mode="after")
    def _check(self) -> Training:
        if self.stage2.enabled and not self.stage2.data and not self.stage2.mix_pseudo_labels:
            raise ValueError("stage2.data is empty; name a data set, or set training.stage2.enabled=false")
        if self.stage2.enabled and self.stage2.reference == "stage1" and not self.stage1.enabled:
            raise ValueError("stage2.reference is 'stage1', but stage1.enabled is false; use reference: base")
        return self
