"""The part of the config about the majority vote."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, SecretStr, model_validator

from medssr_dist.config.base import BaseUrl, Section
from medssr_dist.config.label_settings import MAJORITY, RULES, Calibrate, OnlineVote


class Server(Section):
    """A running OpenAI-compatible vLLM server that takes part in the vote."""

    base_url: BaseUrl = Field(description="for example http://node7:8000/v1")
    model: str = Field("", description="the policy's name on the server; '' = the only model there")
    api_key: SecretStr | None = Field(None, description="'${VARIABLE}'; null = the server needs no key")


class Voting(Section):
    """Majority vote of the base policy (paper section 3.2)."""

    samples: int = Field(16, ge=1, description="K, answers per question")
    online: OnlineVote | None = Field(
        None, description="stage 1: the policy in training votes again on the questions that come next; null = off"
    )
    threshold: float = Field(
        0.5,
        ge=0,
        le=1,
        description="a label is kept if its confidence is at least this; 0 = keep all. With calibrate, the lowest one "
        "that is tried",
    )
    calibrate: Calibrate | None = Field(
        None, description="choose the threshold by human-labelled questions, with a guarantee; null = off"
    )
    rule: str = Field(
        MAJORITY,
        description="how votes become a label: majority; length or logprob (votes weigh as much as they are long or "
        "probable); agreement (each form of the question has one voice; needs shuffle_options or paraphrases); "
        "package.module:function = a function of your own, see docs/voting.md. All but majority need adaptive=never",
    )
    shuffle_options: bool = Field(
        False,
        description="each vote sees the options in an order of its own, which is stored with it; see docs/voting.md",
    )
    paraphrases: str = Field(
        "",
        description="JSONL file with further stems of the questions, {id: ..., stems: [...]}; the votes see all stems "
        "in turn. '' = none",
    )
    record_logprobs: bool = Field(
        False, description="store the mean token log-prob of each vote; rule=logprob does so in any case"
    )
    kept: int = Field(
        0,
        ge=0,
        description="kept labels wanted: questions are written until so many labels are kept, within "
        "synthesis.candidates and synthesis.budget, and the vote ends there. 0 = off: synthesis.accepted questions are "
        "written, whatever is kept",
    )
    confidence: Literal["requested", "valid"] = Field(
        "requested", description="denominator of the confidence: votes asked for, or valid votes"
    )
    adaptive: Literal["never", "lossless", "kept", "statistical"] = Field(
        "lossless",
        description="when a question gets no more votes. never: after all K; lossless: once neither the winner nor "
        "`kept` can change; kept: once `kept` cannot change, nor the winner of a kept label; statistical: once they "
        "would change with a probability of at most error_rate",
    )
    error_rate: float = Field(
        0.01, gt=0, lt=0.5, description="adaptive=statistical: probability that all K votes would give another label"
    )
    temperature: float = Field(1.0, gt=0, le=2, description="1.0 = the distribution that is trained")
    top_p: float = Field(1.0, gt=0, le=1, description="nucleus sampling; 1 = off")
    max_tokens: int = Field(2048, ge=1, description="answer limit, tokens")
    keep_text: bool = Field(True, description="store the text of each vote; false = only its answer and length")
    engines: int = Field(1, ge=0, description="vLLM engines; 0 = only the servers vote (evaluation then starts one)")
    max_engines: int = Field(
        0, ge=0, description="limit to which engines are added when nodes join the cluster; 0 = engines"
    )
    tensor_parallel_size: int = Field(1, ge=1, description="GPUs per engine")
    servers: list[Server] = Field(default_factory=list, description="running vLLM servers that take part")
    in_flight: int = Field(256, ge=1, description="samples in flight per engine (vLLM's max_num_seqs)")
    window: int = Field(
        262144, ge=1, description="questions in the vote after the first without a label; 14 kB of memory each"
    )
    stall_s: float = Field(
        300.0, gt=0, description="an engine that has work but generates no token for this long is replaced, seconds"
    )
    deadline_s: float = Field(
        3600.0, gt=0, description="a request that takes longer is sent to another engine, seconds"
    )
    buffer: int = Field(
        512, ge=1, description="stream: kept labels that stage 1 has not taken; at this many, voting waits"
    )
    question_buffer: int = Field(
        512, ge=1, description="stream: questions that the vote has not taken; at this many, synthesis waits"
    )

    @property
    def needs_logprobs(self) -> bool:
        """Whether the votes are stored with their mean token log-prob."""
        return self.record_logprobs or self.rule == "logprob"

    @model_validator(mode="after")
    def _refuse_unfit_rule(self) -> Voting:
        if self.rule != MAJORITY and self.adaptive != "never":
            raise ValueError(
                f"rule = {self.rule!r} needs every vote, but adaptive = {self.adaptive} ends the vote on a question by "
                "counts of votes; set adaptive=never"
            )
        if self.rule not in RULES and ":" not in self.rule:
            raise ValueError(
                f"rule = {self.rule!r} is neither {', '.join(RULES)} nor of the form package.module:function"
            )
        if self.rule not in RULES and not self.keep_text:
            raise ValueError(f"rule = {self.rule!r} is given the texts of the votes; set keep_text=true")
        if self.rule == "agreement" and not (self.shuffle_options or self.paraphrases):
            raise ValueError(
                "rule = agreement needs several forms of a question; set shuffle_options=true or paraphrases"
            )
        if self.calibrate and self.adaptive == "statistical":
            raise ValueError(
                "calibrate needs the labels of all K votes, which adaptive = statistical may miss; set "
                "adaptive=lossless"
            )
        return self

    @model_validator(mode="after")
    def _refuse_unfit(self) -> Voting:
        if self.online and self.servers:
            raise ValueError(
                "online asks the policy in training, but the servers hold another one, the base policy: "
                f"{self.servers[0].base_url}; set voting.servers=[] (the vote itself must then be finished, or use "
                "engines), or voting.online=null"
            )
        if self.online and (self.calibrate or self.needs_logprobs):
            key, reason = ("calibrate", "its certificate holds for the votes of the base policy alone")
            if not self.calibrate:
                key, reason = ("record_logprobs", "rollout engines do not return the log-probs of votes")
            raise ValueError(f"online cannot be used with voting.{key}: {reason}; leave one of the two out")
        if not self.engines and not self.servers:
            raise ValueError("engines is 0 and servers is empty, so nothing can vote; set engines=1 or name a server")
        if self.max_engines and self.max_engines < self.engines:
            raise ValueError(f"max_engines = {self.max_engines} is below engines = {self.engines}; 0 = no growth")
        return self
