"""The training section of the config: the two stages, the rollout and the weight sync (paper sections 3.3, 3.4)."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field, model_validator

from medssr_dist.config.base import Section, Source
from medssr_dist.config.objective import Objective
from medssr_dist.config.stage_checks import Guard, Validate

ANSWER_REWARD = "answer"  # value of `training.reward`


class RolloutOptions(Section):
    """How the rollout engines generate samples and receive new weights."""

    over_draw: bool = Field(
        False,
        description="draw as many prompts at once as a step needs by the share of groups with equal rewards so far; "
        "surplus groups are kept for the next step; false = draw a further prompt whenever such a group has arrived",
    )
    max_policy_lag: int = Field(
        0,
        ge=0,
        le=8,
        description="no token that is trained on comes from weights more than this many steps older than the policy. "
        "From 1 on the engines sample ahead while the ranks train; new weights interrupt running samples, which "
        "continue with them. 0 = each step is sampled by the policy that it trains",
    )
    rollout_dtype: Literal["policy", "fp8"] = Field(
        "policy",
        description="weights of the rollout engines. policy: in policy.dtype; fp8: in 8 bits, for GPUs from compute "
        "capability 8.9 on; needs an importance correction",
    )
    max_num_seqs: int = Field(
        0,
        ge=0,
        description="samples that a rollout engine computes at the same time; 0 = by the GPU's memory: 512 from 70 GB "
        "on, 256 from 35 GB on, else 128; on CPU vLLM's default",
    )
    max_num_batched_tokens: int = Field(
        0,
        ge=0,
        description="limit of the tokens that a rollout engine computes in one forward pass; 0 = by the GPU's memory: "
        "16,384 from 70 GB on, 8,192 from 35 GB on, else 4,096; not used on CPU",
    )
    sync_bucket_mb: int = Field(
        256, ge=1, description="MiB of weights gathered and sent together; a larger weight is sent alone"
    )
    sync_timeout_s: float = Field(
        600.0, gt=0, description="the run ends if a rank or an engine does not take part for this long, seconds"
    )
    verify_sync: bool = Field(
        False,
        description="after each sync, compare the checksums of all weights on both sides; false = of four random ones",
    )
    stall_s: float = Field(
        1800.0,
        gt=0,
        description="the stage ends if nothing moves for this long, seconds; longer than writing a checkpoint takes",
    )


class Stage(Objective):
    """A GRPO stage: the objective, the batch, the optimizer, the rollout and the checkpoints."""

    enabled: bool = Field(True, description="false = leave the stage out")
    steps: int = Field(0, ge=0, description="optimizer steps; 0 = one pass over the data")
    prompts_per_step: int = Field(64, ge=1, description="questions per step")
    samples_per_prompt: int = Field(8, ge=2, description="group size G")
    micro_batch_size: int = Field(1, ge=1, description="limit of sequences per rank in one forward pass")
    micro_batch_tokens: int = Field(
        0,
        ge=0,
        description="limit of tokens per rank in one forward pass, in place of micro_batch_size; needs packing; "
        "0 = off",
    )
    learning_rate: float = Field(1e-6, gt=0, description="learning rate of AdamW after warm-up")
    lr_scheduler: Literal["constant_with_warmup", "cosine_with_min_lr", "linear"] = Field(
        "constant_with_warmup", description="schedule over the steps of the stage; min_lr is 0.1 of learning_rate"
    )
    warmup_ratio: float = Field(
        0.03, ge=0, le=1, description="warm-up, share of the steps; if > 0, the first step has learning rate 0"
    )
    max_grad_norm: float = Field(1.0, ge=0, description="clip the gradient norm to this; 0 = no clipping")
    temperature: float = Field(
        1.0, gt=0, le=2, description="sampling temperature of the rollout; the log-probs that are trained have it too"
    )
    max_new_tokens: int = Field(2048, ge=1, description="limit of a rollout, tokens")
    drop_zero_variance: bool = Field(
        True, description="drop groups whose rewards are all equal, and sample groups of the next prompts instead"
    )
    save_steps: int = Field(
        0,
        ge=0,
        description="write a checkpoint every N steps; 0 = by its size: every 10 steps; above 40 GB less often, so "
        "that a step writes 4 GB on average, but at least every 50 steps",
    )
    keep_checkpoints: int = Field(
        1,
        ge=1,
        description="keep the N newest complete checkpoints, and the best one: by training.validate if there is one, "
        "else by reward",
    )
    export_steps: int = Field(0, ge=0, description="export a Hugging Face model every N steps; 0 = only at the end")

    @property
    def sequences(self) -> int:
        """Samples per step."""
        return self.prompts_per_step * self.samples_per_prompt


class Stage1(Stage):
    """The self-supervised stage, on pseudo-labels (paper section 3.3)."""

    first_rollouts: Literal["engines", "votes"] = Field(
        "engines",
        description="votes: the votes with the first samples_per_prompt seeds of a question are its group, as long as "
        "the policy is at most max_policy_lag steps past the one that voted; engines: every group is sampled anew",
    )
    flat_limit: float = Field(
        1.0,
        gt=0,
        le=1,
        description="pass over a question if all rewards of its group would be equal with a higher probability than "
        "this, by its votes; 0.09 = at most 1.1 prompts are drawn for each one trained on. 1 = take all",
    )


class Stage2(Stage):
    """The supervised stage: the same algorithm on human-annotated questions (paper section 3.4)."""

    data: list[Source] = Field(default_factory=list, description="human-annotated questions with answers")
    mix_pseudo_labels: bool = Field(
        False, description="also train on the kept pseudo-labels (ablation single_stage_mix)"
    )
    reference: Literal["base", "stage1"] = Field("base", description="reference model of the KL")


class Training(RolloutOptions):
    """Training with DeepSpeed ZeRO-3 and vLLM rollout engines, on OpenRLHF's actors (paper sections 3.3, 3.4)."""

    # `validate` is a method of BaseModel, so the section has another name in Python.
    model_config = ConfigDict(serialize_by_alias=True)

    nodes: int = Field(1, ge=1, description="nodes with training ranks")
    scale_batch: Literal["none", "linear", "sqrt"] = Field(
        "none",
        description="whether a Slurm job on more nodes than `nodes` takes larger steps: prompts_per_step and the "
        "learning rate grow with the number of nodes, or with its square root; it then resumes on as many nodes only",
    )
    ranks_per_node: int = Field(8, ge=1, description="ZeRO-3 ranks per node: GPUs, or processes on CPU")
    placement: Literal["auto", "split", "colocated"] = Field(
        "auto",
        description="split: the rollout engines have GPUs of their own; colocated: each shares the GPU of a rank, and "
        "they take turns; auto: colocated on GPUs if the job has too few for split, and the predicted memory suffices",
    )
    engine_memory: float = Field(
        0.7,
        gt=0,
        lt=1,
        description="share of a GPU's memory for a colocated rollout engine while it samples; "
        "runtime.gpu_memory_utilization is that of all other engines",
    )
    engines: int = Field(1, ge=1, description="vLLM rollout engines; as many as ranks if they are colocated")
    tensor_parallel_size: int = Field(1, ge=1, description="GPUs per rollout engine")
    colocate_reference: bool = Field(True, description="the reference model shares the GPUs of the ranks")
    gradient_checkpointing: bool = Field(False, description="recompute activations in the backward pass")
    offload_optimizer: bool = Field(False, description="keep the optimizer state in host memory")
    offload_reference: bool = Field(False, description="keep the reference model's weights in host memory")
    hpz: bool = Field(
        False,
        description="keep a copy of the weights on each node, in shards (ZeRO++'s hpZ): the backward pass then gathers "
        "them within the node; takes memory (2 bytes x parameters / ranks_per_node); no effect on one node",
    )
    lora_rank: int = Field(0, ge=0, description="train adapters of this rank on all linear layers; 0 = all weights")
    lora_alpha: int = Field(32, ge=1, description="the adapters are scaled by lora_alpha / lora_rank")
    attention: Literal["varlen", "flash_attention_2", "sdpa", "eager"] = Field(
        "varlen",
        description="attention of the trained model. varlen: torch's flash attention for packed sequences on GPU, "
        "torch's dense attention elsewhere; flash_attention_2: needs the package flash-attn; sdpa, eager: dense",
    )
    packing: bool = Field(False, description="concatenate sequences instead of padding them")
    share_prompts: bool = Field(
        False,
        description="put all answers to a question in one row with its prompt, which is then computed once; needs "
        "attention=sdpa",
    )
    deterministic: bool = Field(False, description="use slower kernels that give the same numbers in every run")
    trackers: list[Literal["tensorboard", "wandb", "mlflow"]] = Field(
        ["tensorboard"], description="where metrics are shown; API keys come from the environment"
    )
    tracker_project: str = Field(
        "medssr_dist", min_length=1, description="name of the W&B project and the MLflow experiment"
    )
    keep_samples: int = Field(4, ge=0, description="rollouts per step to write to samples.jsonl; 0 = none")
    batching: Literal["balanced", "fixed"] = Field(
        "balanced",
        description="balanced: similar lengths in a micro-batch, and equal work for the ranks; fixed: samples in their "
        "order",
    )
    old_logprobs: Literal["auto", "always"] = Field(
        "auto",
        description="log-probs before the update. auto: if the update is exactly on-policy, those of the training "
        "forward pass; always: computed in a separate pass, as in OpenRLHF",
    )
    reward: str = Field(
        ANSWER_REWARD,
        description="answer: 1 if the extracted answer equals the label, else 0 (paper section 3.3); "
        "package.module:function = a function of your own, see docs/training.md",
    )
    peak_tflops: float = Field(
        0.0, ge=0, description="peak TFLOP/s of a GPU in the training dtype, for MFU; 0 = look it up by the GPU's name"
    )
    validation: Validate | None = Field(
        None,
        alias="validate",
        description="held-out validation in both stages; it chooses the policy that a stage publishes. null = off: the "
        "last one is published",
    )
    guard: Guard | None = Field(None, description="collapse guard of stage 1; null = off")
    stage1: Stage1 = Field(default_factory=Stage1)
    stage2: Stage2 = Field(default_factory=Stage2)

    @property
    def uses_pseudo_labels(self) -> bool:
        """Whether a stage trains on pseudo-labels; otherwise synthesis and vote are not needed."""
        return self.stage1.enabled or (self.stage2.enabled and self.stage2.mix_pseudo_labels)

    def find_guard(self, stage: str) -> Guard | None:
        """Return the collapse guard of "stage1" or "stage2"; stage 2 has none."""
        return self.guard if stage == "stage1" else None

    @property
    def ranks(self) -> int:
        """Number of ZeRO-3 ranks on all nodes."""
        return self.nodes * self.ranks_per_node

    def find_unfit_for_turns(self) -> str:
        """Return why the engines cannot be colocated, with what to do; "" if they can."""
        if self.tensor_parallel_size > 1:
            return f"tensor_parallel_size = {self.tensor_parallel_size} is not 1; set training.tensor_parallel_size=1"
        if self.engines != self.ranks:
            return f"engines = {self.engines}, and {self.ranks} ranks have one each; set training.engines={self.ranks}"
        if not self.colocate_reference:
            return "the reference must share the GPUs too; set training.colocate_reference=true"
        if self.max_policy_lag > self.over_draw and self.stage1.first_rollouts != "votes":
            return (
                f"no engine samples while the ranks train, so max_policy_lag = {self.max_policy_lag} has no effect; "
                f"set training.max_policy_lag={int(self.over_draw)}"
            )
        return ""

    def _enabled_stages(self) -> dict[str, Stage]:
        stages: dict[str, Stage] = {"stage1": self.stage1, "stage2": self.stage2}
        return {name: stage for name, stage in stages.items() if stage.enabled}

    @model_validator(mode="after")
    def _refuse_uncorrected_off_policy(self) -> Training:
        for name, stage in self._enabled_stages().items():
            if stage.importance == "off" and self.max_policy_lag:
                raise ValueError(
                    f"{name}: max_policy_lag = {self.max_policy_lag} trains on samples of older weights; set "
                    f"training.{name}.importance=token, or training.max_policy_lag=0"
                )
        return self

    @model_validator(mode="after")
    def _refuse_unfit_placement(self) -> Training:
        if self.placement == "colocated" and (reason := self.find_unfit_for_turns()):
            raise ValueError(f"placement=colocated: {reason}, or training.placement=split")
        return self

    @model_validator(mode="after")
    def _refuse_unfit_over_draw(self) -> Training:
        if self.over_draw and not self.max_policy_lag:
            raise ValueError(
                "over_draw trains on surplus groups a step later, and max_policy_lag = 0 allows none; set "
                "training.max_policy_lag=1 or more, or training.over_draw=false"
            )
        for name, stage in self._enabled_stages().items():
            if self.over_draw and not stage.drop_zero_variance:
                raise ValueError(
                    f"{name}: over_draw replaces groups with equal rewards, but drop_zero_variance=false trains on "
                    f"them; set training.over_draw=false, or training.{name}.drop_zero_variance=true"
                )
        return self

    @model_validator(mode="after")
    def _refuse_uncorrected_fp8(self) -> Training:
        for name, stage in self._enabled_stages().items():
            if stage.importance == "off" and self.rollout_dtype == "fp8":
                raise ValueError(
                    f"{name}: rollout_dtype=fp8 samples from another policy than the trained one; set "
                    f"training.{name}.importance=token, or training.rollout_dtype=policy"
                )
        return self

    @model_validator(mode="after")
    def _refuse_votes_without_log_probs(self) -> Training:
        stage = self.stage1
        if not (stage.enabled and stage.first_rollouts == "votes"):
            return self
        if not stage.kl_coef:
            raise ValueError(
                "stage1: first_rollouts=votes takes the log-probs of votes from the reference model, and kl_coef = 0 "
                "loads none; set training.stage1.kl_coef, or training.stage1.first_rollouts=engines"
            )
        return self

    @model_validator(mode="after")
    def _refuse_idle_ranks(self) -> Training:
        for name, stage in self._enabled_stages().items():
            if stage.sequences < self.ranks * stage.updates_per_rollout:
                raise ValueError(
                    f"{name}: prompts_per_step x samples_per_prompt = {stage.sequences} is fewer than ranks x "
                    f"updates_per_rollout = {self.ranks} x {stage.updates_per_rollout}"
                )
        return self

    @model_validator(mode="after")
    def _refuse_unfit_micro_batches(self) -> Training:
        for name, stage in self._enabled_stages().items():
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
    def _refuse_unfit_share_prompts(self) -> Training:
        needs = {"attention": "sdpa", "batching": "balanced", "packing": False}
        wrong = [name for name, value in needs.items() if getattr(self, name) != value]
        if self.share_prompts and wrong:
            wanted = ", ".join(f"{name}={str(needs[name]).lower()}" for name in wrong)
            raise ValueError(f"share_prompts needs {wanted}; or set training.share_prompts=false")
        return self

    @model_validator(mode="after")
    def _refuse_blind_guard(self) -> Training:
        if self.guard and not self.guard.watches_rollouts and not self.validation:
            raise ValueError(
                "guard has no signal to watch: of its limits only validation_fall is on, and training.validate is off; "
                "set training.validate, or another limit"
            )
        return self

    @model_validator(mode="after")
    def _refuse_unfit_stage2(self) -> Training:
        if self.stage2.enabled and not self.stage2.data and not self.stage2.mix_pseudo_labels:
            raise ValueError("stage2.data is empty; name a data set, or set training.stage2.enabled=false")
        if self.stage2.enabled and self.stage2.reference == "stage1" and not self.stage1.enabled:
            raise ValueError("stage2.reference is 'stage1', but stage1.enabled is false; use reference: base")
        return self
