"""The knowledge and synthesis sections of the config (paper section 3.1)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, SecretStr, model_validator

from medssr_dist.config.base import DataSource, Section, Source


class Knowledge(Section):
    """Rare-disease entities, the passages about them, and their retrieval (paper section 3.1)."""

    corpus: Source = Field(
        DataSource(path="hpo:passages"),
        description="passages: hpo:passages (one per disease from HPO), a JSONL file with id,title,content, or a "
        "folder of such files (MedRAG's chunk/)",
    )
    encoder: Literal["minilm", "medcpt"] = Field("medcpt", description="minilm is embedded; medcpt is the paper's")
    medcpt_query: str = Field("ncbi/MedCPT-Query-Encoder", description="directory or Hugging Face id")
    medcpt_article: str = Field("ncbi/MedCPT-Article-Encoder", description="directory or Hugging Face id")
    top_k: int = Field(3, ge=1, description="passages injected; 3 keeps the prompt near 2.5 KB (ours)")
    entities: int = Field(0, ge=0, description="use the first N rare diseases of the seeded shuffle; 0 = all")
    batch_size: int = Field(64, ge=1, description="passages encoded at once")
    shard_size: int = Field(100_000, ge=1, description="passages a shard: the unit of encoding and of resuming")
    workers: int = Field(0, ge=0, description="Ray workers that encode shards; 0 = in this process, without Ray")
    index: Literal["flat", "sharded_flat", "ivfpq"] = Field(
        "flat",
        description="flat and sharded_flat are exact (all vectors in memory; a shard at a time); ivfpq is "
        "compressed, its candidates ranked again exactly",
    )
    ivf_lists: int = Field(0, ge=0, description="ivfpq: inverted lists; 0 = 4 x sqrt(passages)")
    ivf_probes: int = Field(32, ge=1, description="ivfpq: lists searched a query")
    pq_bytes: int = Field(64, ge=1, description="ivfpq: bytes a vector; divides the encoder's dimension")
    candidates: int = Field(100, ge=1, description="ivfpq: candidates ranked again exactly; at least top_k")
    reranker: str | None = Field(
        None, description="cross-encoder, directory or id, e.g. ncbi/MedCPT-Cross-Encoder; null = none"
    )
    rerank_depth: int = Field(20, ge=1, description="passages the cross-encoder ranks again; at least top_k")

    @model_validator(mode="after")
    def _check(self) -> Knowledge:
        if self.index == "ivfpq" and self.candidates < self.top_k:
            raise ValueError(f"candidates = {self.candidates} is below top_k = {self.top_k}")
        if self.reranker and self.rerank_depth < self.top_k:
            raise ValueError(f"rerank_depth = {self.rerank_depth} is below top_k = {self.top_k}")
        return self


class Endpoint(Section):
    """An OpenAI-compatible chat endpoint, and what it allows."""

    base_url: str = Field(description="e.g. https://host/v1; offline-teacher = start ours on loopback")
    model: str = Field(description="model name sent to the API")
    api_key: SecretStr | None = Field(None, description="${ENV_VAR}, or file:PATH of mode 0600; null = no key is sent")
    concurrency: int = Field(64, ge=1, description="requests in flight at most; how many are is found by trying")
    requests_per_minute: int = Field(0, ge=0, description="the account's limit; 0 = none known")
    tokens_per_minute: int = Field(0, ge=0, description="the account's limit, prompt and reply; 0 = none known")
    json_schema: bool = Field(False, description="ask for the form by response_format; the server must support it")


class Retry(Section):
    """Deadlines of a try, and how long failures are borne."""

    connect_s: float = Field(10.0, gt=0, description="to connect, seconds")
    first_byte_s: float = Field(120.0, gt=0, description="from the request to the first byte of the reply, seconds")
    whole_s: float = Field(180.0, gt=0, description="the whole try, seconds")
    tries: int = Field(6, ge=1, description="tries a request that fails in a way of its own; then it is given up")
    patience_s: float = Field(600.0, ge=0, description="end the run when no endpoint has answered for so long")
    hedge_after_s: float = Field(0.0, ge=0, description="ask a second time after so long; may pay twice; 0 = never")


class Price(Section):
    """What a model costs, US dollars a million tokens."""

    prompt: float = Field(ge=0, description="of the prompt")
    completion: float = Field(ge=0, description="of the reply")


class Budget(Section):
    """What may be spent; reserved before a request is sent, so that it is never exceeded."""

    usd: float = Field(0.0, ge=0, description="money at the prices of synthesis.prices; 0 = no limit")
    tokens: int = Field(0, ge=0, description="prompt and reply tokens; 0 = no limit")


class Checks(Section):
    """Which questions are refused, beside those that have no form. A check is off at false or 0."""

    min_words: int = Field(5, ge=0, description="shortest stem, words")
    max_words: int = Field(300, ge=0, description="longest stem, words")
    entity_given_away: bool = Field(True, description="the entity is an option and named in the stem")
    missing_figure: bool = Field(True, description="refers to a figure, image or table that is not there")
    all_or_none: bool = Field(True, description="an option is 'all of the above', 'none of the above' or the like")
    negative_lead_in: bool = Field(True, description="asks which option is NOT or EXCEPT")
    longest_option: float = Field(
        0.0, ge=0, description="an option is N times as long as the next; 2.5 is a start. Off: no key is known"
    )
    repeated_key_word: bool = Field(
        False, description="a rare word of the stem stands in one option only. Off: it also flags sound questions"
    )
    grounding: int = Field(
        2, ge=0, description="a rare question takes at least N content words from the passages, not in its seeds"
    )
    near_duplicate: float = Field(
        0.8, ge=0, le=1, description="MinHash Jaccard of word 5-grams with an accepted, seed or benchmark question"
    )
    decontamination: float = Field(
        0.5, ge=0, le=1, description="share of the 8-grams that one benchmark item holds; short items: equal text"
    )


class Synthesis(Section):
    """Question synthesis: two seeds, and with probability alpha an entity with passages."""

    accepted: int = Field(ge=1, description="accepted questions wanted")
    candidates: int = Field(0, ge=0, description="requests at most; 0 = 2 x accepted + 10")
    alpha: float = Field(0.5, ge=0, le=1, description="share of requests with knowledge injected: rho < alpha")
    seeds: list[Source] = Field(min_length=1, description="data sets of seed questions; none may be evaluation items")
    seed_pairs: Literal["uniform", "topic"] = Field(
        "uniform", description="topic: both seeds of one topic, drawn by its number of seeds; the seeds must have one"
    )
    entity_choice: Literal["uniform", "coverage"] = Field(
        "uniform", description="coverage: weight 1 / (1 + times drawn so far)"
    )
    transport: Literal["chat", "batch"] = Field("chat", description="batch: file up, poll, file down; half the price")
    batch_size: int = Field(10_000, ge=1, description="requests a batch file (batch transport)")
    poll_s: float = Field(30.0, gt=0, description="seconds between two looks at a batch (batch transport)")
    endpoints: list[Endpoint] = Field(min_length=1, description="chat APIs that write the questions, used side by side")
    temperature: float = Field(1.0, ge=0, le=2)
    max_tokens: int = Field(1024, ge=1, description="reply limit, tokens")
    retry: Retry = Field(default_factory=Retry)
    prices: dict[str, Price] = Field(default_factory=dict, description="model -> price; needed for budget.usd")
    budget: Budget = Field(default_factory=Budget)
    max_reject_share: float = Field(0.9, gt=0, le=1, description="end the run when more of the last 200 are refused")
    checks: Checks = Field(default_factory=Checks)
    review_sample: int = Field(50, ge=0, description="accepted questions in the physician's review sheet")

    @property
    def most_candidates(self) -> int:
        """The cap on requests."""
        return self.candidates or 2 * self.accepted + 10

    @property
    def models(self) -> list[str]:
        """The models asked, sorted."""
        return sorted({endpoint.model for endpoint in self.endpoints})

    @model_validator(mode="after")
    def _check(self) -> Synthesis:
        if self.most_candidates < self.accepted:
            raise ValueError(f"candidates = {self.candidates} is below accepted = {self.accepted}")
        unpriced = [model for model in self.models if model not in self.prices]
        if self.budget.usd and unpriced:
            raise ValueError(f"budget.usd needs the price of {unpriced[0]!r}; add it to synthesis.prices")
        return self
