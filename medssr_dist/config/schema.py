"""The only configuration tree. Every field states its meaning, unit and sentinel.

The paper gives no value for alpha, top_k, K votes, threshold, learning rate, batch, group size or
KL coefficient; the defaults here are ours, each with its reason. Loading is in `config_io.py`.
Validators only refuse; none rewrites a value.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field, SecretStr, model_validator

from medssr_dist.config.base import Section, Source
from medssr_dist.config.synthesis import Knowledge, Synthesis
from medssr_dist.config.training import Training
from medssr_dist.run.paths import STAGES


class Policy(Section):
    """The model that votes and is trained."""

    model: str = Field(description="model directory, Hugging Face id in the local cache, or embedded:smollm2-135m")
    dtype: Literal["bfloat16", "float16", "float32"] = Field(
        "bfloat16", description="weights in vLLM and the training forward"
    )
    trust_remote_code: bool = Field(False, description="allow code shipped with the model to run")
    max_model_len: int = Field(4096, ge=64, description="prompt + answer, tokens")


class Server(Section):
    """A running OpenAI-compatible vLLM server that takes part in the vote."""

    base_url: str = Field(pattern="^https?://", description="as http://node7:8000/v1")
    model: str = Field("", description="name it serves the policy under; '' = the one model that it serves")
    api_key: SecretStr | None = Field(None, description="'${VARIABLE}'; none if it asks for none")


class Voting(Section):
    """Majority vote of the base policy (paper section 3.2)."""

    samples: int = Field(16, ge=1, description="K answers a question")
    threshold: float = Field(0.5, ge=0, le=1, description="labels with confidence >= this are kept; 0 = keep all")
    confidence: Literal["requested", "valid"] = Field("requested", description="denominator the threshold applies to")
    adaptive: Literal["never", "lossless", "kept", "statistical"] = Field(
        "lossless",
        description="never: all K votes; lossless: none once neither winner nor keep can change; kept: none once "
        "neither a kept winner nor keep can; statistical: none once they change with a chance of error_rate at most",
    )
    error_rate: float = Field(0.01, gt=0, lt=0.5, description="of adaptive=statistical alone: chance of another label")
    temperature: float = Field(1.0, gt=0, le=2, description="1.0: the distribution that is trained")
    top_p: float = Field(1.0, gt=0, le=1, description="nucleus sampling; 1 = off")
    max_tokens: int = Field(2048, ge=1, description="answer limit, tokens")
    keep_text: bool = Field(True, description="keep the text of every vote for audit; false: answer and length only")
    engines: int = Field(1, ge=0, description="vLLM engines; 0 = only the servers vote (evaluation starts one)")
    max_engines: int = Field(0, ge=0, description="engines it may grow to as nodes join the cluster; 0 = engines")
    tensor_parallel_size: int = Field(1, ge=1, description="GPUs an engine")
    servers: list[Server] = Field(default_factory=list, description="running vLLM servers that take part")
    in_flight: int = Field(256, ge=1, description="samples an engine works on at once (vLLM's max_num_seqs)")
    window: int = Field(262144, ge=1, description="questions voted on beyond the first without a label, 14 kB each")
    stall_s: float = Field(300.0, gt=0, description="an engine with work and without a token for so long is replaced")
    deadline_s: float = Field(3600.0, gt=0, description="a request without its end after so long is asked elsewhere")
    buffer: int = Field(512, ge=1, description="kept labels the trainer may lag behind before voting waits")
    question_buffer: int = Field(512, ge=1, description="questions the vote may lag behind before synthesis waits")

    @model_validator(mode="after")
    def _check(self) -> Voting:
        if not self.engines and not self.servers:
            raise ValueError("engines is 0 and servers is empty: nothing can vote; set engines=1 or name a server")
        if self.max_engines and self.max_engines < self.engines:
            raise ValueError(f"max_engines = {self.max_engines} is below engines = {self.engines}; 0 = no growth")
        return self


class Evaluation(Section):
    """The paper's protocol: n generations, a second pass for answers with none, mean and deviation."""

    benchmarks: list[Source] = Field(default_factory=list, description="evaluation files")
    generations: int = Field(4, ge=1, description="answers a question (paper: 4)")
    temperature: float = Field(0.6, ge=0, le=2, description="paper: 0.6")
    top_p: float = Field(0.95, gt=0, le=1, description="paper: 0.95")
    top_k: int = Field(20, ge=0, description="paper: 20; 0 = off")
    max_tokens: int = Field(2048, ge=1, description="paper: 2048")
    policies: list[Literal["base", "stage1", "stage2"]] = Field(
        default_factory=lambda: ["base", *STAGES], description="those that the run has are compared"
    )

    @model_validator(mode="after")
    def _check(self) -> Evaluation:
        if self.temperature == 0 and self.generations > 1:
            raise ValueError(f"temperature 0 gives {self.generations} equal generations; set generations=1")
        return self


class Runtime(Section):
    """Where and how the steps run."""

    mode: Literal["stream", "sequential"] = Field(
        "sequential", description="stream: stage 1 trains while voting goes on; sequential: each step has all GPUs"
    )
    random_seed: int = Field(42, ge=0, description="of draws, vignettes, votes, shuffles and training")
    gpu_memory_utilization: float = Field(0.85, gt=0, le=1, description="vLLM's share of a GPU; not used on CPU")
    cpu_kv_cache_gib: int = Field(1, ge=1, description="KV cache of an engine on CPU, GiB; not used on GPU")
    deadline: datetime | None = Field(
        None, description="training saves and stops before it, as at $MEDSSR_DEADLINE; without a zone, local time"
    )
    enforce_eager: bool = Field(False, description="no CUDA graphs or torch.compile in vLLM (always so on CPU)")


class Config(Section):
    """The whole run. Names follow the steps: synthesize, vote, train, evaluate."""

    policy: Policy
    knowledge: Knowledge = Field(default_factory=Knowledge)
    synthesis: Synthesis
    voting: Voting = Field(default_factory=Voting)
    training: Training = Field(default_factory=Training)
    evaluation: Evaluation = Field(default_factory=Evaluation)
    runtime: Runtime = Field(default_factory=Runtime)

    def without_secrets(self) -> Config:
        """The same config without API keys, for processes that do not need them."""
        endpoints = [endpoint.model_copy(update={"api_key": None}) for endpoint in self.synthesis.endpoints]
        servers = [server.model_copy(update={"api_key": None}) for server in self.voting.servers]
        return self.model_copy(
            update={
                "synthesis": self.synthesis.model_copy(update={"endpoints": endpoints}),
                "voting": self.voting.model_copy(update={"servers": servers}),
            }
        )

    @model_validator(mode="after")
    def _dtype_trains(self) -> Config:
        training = self.training
        trained = training.stage1.enabled or training.stage2.enabled
        if self.policy.dtype == "float32" and trained and training.attention == "flash_attention_2":
            raise ValueError(
                "policy.dtype = float32 is not trained with attention=flash_attention_2, which computes in 16 bits; "
                "set training.attention=sdpa"
            )
        return self

    @model_validator(mode="after")
    def _micro_batches_hold_a_sequence(self) -> Config:
        for name in STAGES:
            tokens = getattr(self.training, name).micro_batch_tokens
            if 0 < tokens < self.policy.max_model_len:
                raise ValueError(
                    f"training.{name}.micro_batch_tokens = {tokens} does not hold a sequence of policy.max_model_len = "
                    f"{self.policy.max_model_len} tokens"
                )
        return self

    @model_validator(mode="after")
    def _lengths_fit(self) -> Config:
        limits = {
            "voting.max_tokens": self.voting.max_tokens,
            "training.stage1.max_new_tokens": self.training.stage1.max_new_tokens,
            "training.stage2.max_new_tokens": self.training.stage2.max_new_tokens,
            "evaluation.max_tokens": self.evaluation.max_tokens,
        }
        for name, value in limits.items():
            if value >= self.policy.max_model_len:
                raise ValueError(
                    f"{name} = {value} leaves no room for a prompt within policy.max_model_len = "
                    f"{self.policy.max_model_len}"
                )
        return self
