"""The config of a run, by sections. Each key has its meaning, its unit and its special values (0 = off, for example).

The paper gives no value for alpha, top_k, the number of votes K, the threshold, learning rate, batch size, group size
and KL coefficient; their defaults here are ours. `config/load.py` reads a config from a file. Validators refuse values
that do not fit together; none changes a value.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from medssr_dist.config.base import Section, Source
from medssr_dist.config.label_settings import MAJORITY
from medssr_dist.config.synthesis import Endpoint, Knowledge, Synthesis
from medssr_dist.config.training import Training
from medssr_dist.config.voting import Voting
from medssr_dist.data.prompt_forms import PromptForm, load_prompt_form
from medssr_dist.data.prompt_renderer import RESERVED_KWARGS
from medssr_dist.run.paths import STAGES


def _read_prompt(value: Any) -> Any:
    return load_prompt_form(value) if isinstance(value, str) else value


class Policy(Section):
    """The model that is trained; untrained, it also takes the votes."""

    model: str = Field(
        description="model directory, Hugging Face id in the local cache, embedded:smollm2-135m or embedded:medssr-mini"
    )
    revision: str = Field("", description="commit of the Hugging Face id; '' = the one in the local cache")
    prompt: Annotated[PromptForm, BeforeValidator(_read_prompt)] = Field(
        default_factory=lambda: load_prompt_form("reason"),
        description="wording of the prompt in vote, rollout and evaluation: reason (step by step, then one option), "
        "direct (the option alone; for tiny models), base (a text to continue; for base models), or a YAML file",
    )
    system_prompt: str = Field("", description="text of the system turn; '' = that of the prompt, if it has one")
    chat_template_kwargs: dict[str, bool | int | float | str] = Field(
        default_factory=dict, description="arguments of the model's chat template, e.g. {enable_thinking: false}"
    )
    dtype: Literal["bfloat16", "float16", "float32"] = Field(
        "bfloat16", description="of the weights in vLLM and in training's forward pass"
    )
    trust_remote_code: bool = Field(False, description="allow the code that comes with a model to run")
    max_model_len: int = Field(4096, ge=64, description="prompt and answer together, tokens")

    @model_validator(mode="after")
    def _refuse_unfit_prompt(self) -> Policy:
        if reserved := sorted(RESERVED_KWARGS & self.chat_template_kwargs.keys()):
            raise ValueError(f"chat_template_kwargs: {reserved[0]} is set by the program itself; remove it")
        if self.prompt.form == "completion" and (self.system_prompt or self.chat_template_kwargs):
            raise ValueError(
                f"prompt {self.prompt.name} is a completion, which uses no chat template; remove system_prompt and "
                "chat_template_kwargs, or use a prompt of form chat"
            )
        return self


class Evaluation(Section):
    """The paper's protocol: n answers per question, a second pass for replies without an answer, mean and deviation."""

    benchmarks: list[Source] = Field(
        default_factory=list,
        description="evaluation files; `paper`, or an item `{set: paper}`, stands for configs/benchmarks/paper.yaml",
    )
    generations: int = Field(4, ge=1, description="answers per question (paper: 4)")
    temperature: float = Field(0.6, ge=0, le=2, description="paper: 0.6")
    top_p: float = Field(0.95, gt=0, le=1, description="paper: 0.95")
    top_k: int = Field(20, ge=0, description="paper: 20; 0 = off")
    max_tokens: int = Field(2048, ge=1, description="paper: 2048")
    track_samples: int = Field(
        0,
        ge=0,
        description="questions of the table that training.trackers get in addition to the scores: id, right letter, "
        "letters of each policy, no texts; 0 = no table",
    )
    protocol: Literal["ours", "paper"] = Field(
        "ours",
        description="whose scores tables and plots show; scores.json has both, from the same answers. ours: the reader "
        "of answers that vote and reward use, sample deviation; paper: the authors' reading rule and rounding",
    )
    policies: list[Literal["base", "stage1", "stage2"]] = Field(
        ["base", "stage1", "stage2"],
        description="policies to compare; those that the run does not have are left out",
    )

    @model_validator(mode="after")
    def _refuse_equal_generations(self) -> Evaluation:
        if self.temperature == 0 and self.generations > 1:
            raise ValueError(f"temperature 0 gives {self.generations} equal generations; set generations=1")
        return self


class Runtime(Section):
    """Where and how the steps run."""

    mode: Literal["stream", "sequential"] = Field(
        "sequential",
        description="stream: synthesis, vote and stage 1 run at the same time; sequential: one step after the other, "
        "each on all GPUs",
    )
    device: Literal["auto", "gpu", "cpu"] = Field(
        "auto",
        description="gpu: a dry run plans for GPUs wherever it is made, and a run that finds none ends instead of "
        "using the CPU; cpu: no GPU is used; auto: GPUs where they are visible",
    )
    random_seed: int = Field(42, ge=0, lt=2**31, description="seed of draws, vignettes, votes, shuffles and training")
    gpu_memory_utilization: float = Field(
        0.85, gt=0, le=1, description="vLLM's share of a GPU's memory; not used on CPU"
    )
    cpu_kv_cache_gib: int = Field(1, ge=1, description="KV cache of an engine on CPU, GiB; not used on GPUs")
    deadline: datetime | None = Field(
        None,
        description="time before which training saves and stops, like $MEDSSR_DEADLINE; local time if it names no zone",
    )
    enforce_eager: bool = Field(False, description="no CUDA graphs and no torch.compile in vLLM; on CPU, always so")


class Config(Section):
    """The config of a run. The sections follow its steps: synthesize, vote, train, evaluate."""

    policy: Policy
    knowledge: Knowledge = Field(default_factory=Knowledge)
    synthesis: Synthesis
    voting: Voting = Field(default_factory=Voting)
    training: Training = Field(default_factory=Training)
    evaluation: Evaluation = Field(default_factory=Evaluation)
    runtime: Runtime = Field(default_factory=Runtime)

    def without_secrets(self) -> Config:
        """Return the config without its API keys, for processes that do not need them."""
        synthesis: dict[str, Any] = {"endpoints": _without_keys(self.synthesis.endpoints)}
        if judge := self.synthesis.judge:
            synthesis["judge"] = judge.model_copy(update={"endpoints": _without_keys(judge.endpoints)})
        servers = [server.model_copy(update={"api_key": None}) for server in self.voting.servers]
        return self.model_copy(
            update={
                "synthesis": self.synthesis.model_copy(update=synthesis),
                "voting": self.voting.model_copy(update={"servers": servers}),
            }
        )

    @model_validator(mode="after")
    def _refuse_untrainable_dtype(self) -> Config:
        training = self.training
        trained = training.stage1.enabled or training.stage2.enabled
        if self.policy.dtype == "float32" and trained and training.attention == "flash_attention_2":
            raise ValueError(
                "policy.dtype = float32 cannot be trained with attention=flash_attention_2, which computes in 16 bits; "
                "set training.attention=varlen"
            )
        return self

    @model_validator(mode="after")
    def _refuse_paraphrases_in_stream(self) -> Config:
        if self.voting.paraphrases and self.runtime.mode == "stream":
            raise ValueError(
                "voting.paraphrases are of questions that exist, but runtime.mode = stream votes as they come; "
                "set runtime.mode=sequential, and write the file between `medssr synthesize` and `medssr vote`"
            )
        return self

    @model_validator(mode="after")
    def _refuse_more_kept_than_requests(self) -> Config:
        kept, most = self.voting.kept, self.synthesis.most_candidates
        if kept > most:
            where = "" if self.synthesis.candidates else " (2 x synthesis.accepted + 10)"
            raise ValueError(
                f"voting.kept = {kept} is above the limit of requests, synthesis.candidates = {most}{where}; raise "
                "synthesis.candidates, or lower voting.kept"
            )
        return self

    @model_validator(mode="after")
    def _refuse_votes_unlike_rollouts(self) -> Config:
        stage, voting = self.training.stage1, self.voting
        if not (stage.enabled and stage.first_rollouts == "votes"):
            return self
        for key, value, wanted in (
            ("temperature", voting.temperature, stage.temperature),
            ("top_p", voting.top_p, 1.0),
            ("max_tokens", voting.max_tokens, stage.max_new_tokens),
            ("keep_text", voting.keep_text, True),
        ):
            if value != wanted:
                raise ValueError(
                    f"training.stage1.first_rollouts = votes needs votes that are sampled as rollouts are: "
                    f"voting.{key} = {value} is not {wanted}; set voting.{key}={str(wanted).lower()}, or "
                    "training.stage1.first_rollouts=engines"
                )
        others = {
            "online": "the votes of the base policy have not elected the labels that it gives",
            "calibrate": "the weights of votes follow from voting.threshold",
            "shuffle_options": "stage 1 asks with the question's own order",
            "paraphrases": "stage 1 asks with the question's own stem",
        }
        for key, reason in others.items():
            if getattr(voting, key):
                raise ValueError(
                    f"training.stage1.first_rollouts = votes cannot be used with voting.{key}: {reason}; leave "
                    f"voting.{key} out, or set training.stage1.first_rollouts=engines"
                )
        if voting.rule != MAJORITY:
            raise ValueError(
                f"training.stage1.first_rollouts = votes needs majority labels, not voting.rule = {voting.rule}: the "
                "weights of votes follow from their counts; set training.stage1.first_rollouts=engines"
            )
        if voting.samples < stage.samples_per_prompt:
            raise ValueError(
                f"voting.samples = {voting.samples} is fewer than training.stage1.samples_per_prompt = "
                f"{stage.samples_per_prompt}, but first_rollouts = votes takes groups of votes; raise voting.samples"
            )
        return self

    @model_validator(mode="after")
    def _refuse_teacher_with_hpz(self) -> Config:
        online = self.voting.online
        if online and online.teacher is not None and self.training.hpz:
            raise ValueError(
                f"voting.online.teacher = {online.teacher:g} puts other weights into the ranks' shards, but "
                "training.hpz has second copies of them; set training.hpz=false, or voting.online.teacher=null"
            )
        return self

    @model_validator(mode="after")
    def _refuse_equal_validations(self) -> Config:
        validation = self.training.validation
        if validation and validation.generations > 1 and self.evaluation.temperature == 0:
            raise ValueError(
                f"evaluation.temperature = 0 gives {validation.generations} equal generations; set "
                "training.validate.generations=1"
            )
        return self

    @model_validator(mode="after")
    def _refuse_small_micro_batches(self) -> Config:
        for name in STAGES:
            tokens = getattr(self.training, name).micro_batch_tokens
            if 0 < tokens < self.policy.max_model_len:
                raise ValueError(
                    f"training.{name}.micro_batch_tokens = {tokens} does not hold a sequence of policy.max_model_len = "
                    f"{self.policy.max_model_len} tokens"
                )
        return self

    @model_validator(mode="after")
    def _refuse_long_answers(self) -> Config:
        limits = {
            "voting.max_tokens": self.voting.max_tokens,
            "training.stage1.max_new_tokens": self.training.stage1.max_new_tokens,
            "training.stage2.max_new_tokens": self.training.stage2.max_new_tokens,
            "evaluation.max_tokens": self.evaluation.max_tokens,
        }
        for name, value in limits.items():
            if value >= self.policy.max_model_len:
                raise ValueError(
                    f"{name} = {value} leaves no room for a prompt in policy.max_model_len = "
                    f"{self.policy.max_model_len}"
                )
        return self


def _without_keys(endpoints: list[Endpoint]) -> list[Endpoint]:
    return [endpoint.model_copy(update={"api_key": None}) for endpoint in endpoints]
