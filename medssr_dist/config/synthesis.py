"""The knowledge and synthesis sections of the config (paper section 3.1)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, SecretStr, model_validator

from medssr_dist.config.base import Section, Source, SplitSource, check_base_url

HPO_PASSAGES, MINI_PASSAGES = "hpo:passages", "hpo:mini-passages"
_FILE_NAME = re.compile(r"\.(jsonl?|ndjson|csv|tsv|parquet|arrow|feather)(\.(gz|zst|xz|bz2))?$", re.IGNORECASE)
_API_VERSION = re.compile(r"\?api-version=[\w.-]{1,40}$")


class CorpusColumns(Section):
    """The columns of a corpus, where they are not recognised."""

    id: str = Field("", description="column of the passage's id; '' = recognised by its name")
    title: str = Field("", description="column of the title; '' = recognised, or none")
    content: str = Field("", description="column of the passage's text; '' = recognised")


class CorpusSource(SplitSource):
    """A corpus of passages. A string in its place is a path, or a name such as textbooks or hpo."""

    path: str = Field(
        "",
        description="file (JSONL with id, title and content as in MedRAG; CSV, TSV, Parquet, Arrow; also .gz, .zst, "
        ".xz, .bz2), folder of such files (MedRAG's chunk/), Hugging Face id (owner/name, or "
        "hf://datasets/OWNER/NAME[@REVISION][/FILE]); "
        "hpo:passages = the passages written from HPO, hpo:mini-passages = those about the mini policy's diseases; "
        "'' = the folder NAME/chunk in knowledge.corpora_root",
    )
    name: str = Field(
        "",
        pattern="^[^:]*$",
        description="short name without ':', in the ids of its passages; '' = the name of the file or folder",
    )
    share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the top_k passages that is reserved for this corpus, rounded down; the other passages "
        "are the best of all corpora",
    )
    columns: CorpusColumns | None = Field(
        None, description="which column is what, e.g. {content: text, id: key}; null = recognised by their names"
    )
    limit: int = Field(0, ge=0, description="take the first N passages, of hpo the first N diseases; 0 = all")

    @model_validator(mode="after")
    def _refuse_unfit(self) -> CorpusSource:
        keys = ("split", "subset", "revision", "columns")
        if self.path.startswith("hpo:") and (given := [key for key in keys if getattr(self, key)]):
            raise ValueError(f"{given[0]} has no meaning for the embedded corpus {self.path!r}; remove it")
        return self


def _read_corpus_source(value: Any) -> Any:
    """Return the fields of a corpus that is given as a text or as another section, with its name."""
    if isinstance(value, BaseModel):
        value = value.model_dump()
    if isinstance(value, str):
        is_path = "/" in value or value.startswith("hpo:") or bool(_FILE_NAME.search(value))
        value = {"path": value} if is_path else {"name": value}
    if not isinstance(value, dict):
        return value
    fields = dict(value)
    if fields.get("name") == "hpo" and not fields.get("path"):
        fields["path"] = HPO_PASSAGES
    if isinstance(fields.get("path"), str) and not fields.get("name"):
        fields["name"] = _name_corpus(fields["path"])
    return fields


def _name_corpus(path: str) -> str:
    if path.startswith("hpo:"):
        return "hpo"
    folder = Path(path)
    if folder.name == "chunk":
        return folder.parent.name
    return _FILE_NAME.sub("", folder.name) if _FILE_NAME.search(folder.name) else folder.stem


class Knowledge(Section):
    """Rare diseases (the entities), the passages about them, and retrieval (paper section 3.1).

    `corpus: X`, of earlier versions, is short for `corpora: [X]`.
    """

    corpora: list[Annotated[CorpusSource, BeforeValidator(_read_corpus_source)]] = Field(
        [CorpusSource(path=HPO_PASSAGES, name="hpo")],
        min_length=1,
        description="the passages: hpo (several per rare disease, from HPO), files, folders, Hugging Face ids, or "
        "the names of folders in corpora_root: [pubmed, statpearls, textbooks, wikipedia, hpo]",
    )
    corpora_root: str = Field(
        "",
        description="folder of the corpora that are given by name alone, each in NAME/chunk/*.jsonl, as in MedRAG",
    )
    entities_file: str = Field(
        "",
        description="your own list of diseases to write questions about, instead of Orphanet's: .jsonl, .csv or .tsv "
        "with name, id (optional) and synonyms (optional; in .csv and .tsv separated by |); "
        "hpo:mini-rare, hpo:mini-common = the mini policy's diseases; '' = Orphanet's list",
    )
    must_name_entity: bool = Field(
        True,
        description="use only passages that name the disease or a synonym, in title or text; a disease that no passage "
        "names gets no questions. False: use the nearest passages, and warn how many do not name it",
    )
    search_depth: int = Field(
        50, ge=1, description="nearest passages of each corpus that are searched for the disease's name; at least top_k"
    )
    encoder: Literal["minilm", "medcpt"] = Field(
        "medcpt", description="minilm comes with the package; medcpt is the paper's"
    )
    medcpt_query: str = Field("ncbi/MedCPT-Query-Encoder", description="directory or Hugging Face id")
    medcpt_article: str = Field("ncbi/MedCPT-Article-Encoder", description="directory or Hugging Face id")
    top_k: int = Field(3, ge=1, description="passages in a prompt; with 3, a prompt has about 3.8 KB")
    entities: int = Field(0, ge=0, description="use the first N rare diseases in a seeded random order; 0 = all")
    batch_size: int = Field(64, ge=1, description="passages encoded at once")
    shard_size: int = Field(
        100_000, ge=1, description="passages per shard; encoding resumes after the last complete shard"
    )
    workers: int = Field(0, ge=0, description="Ray workers that encode shards; 0 = encode in this process, without Ray")
    index: Literal["flat", "sharded_flat", "ivfpq"] = Field(
        "flat",
        description="flat: exact search, all vectors in memory; sharded_flat: exact search, one shard in memory at a "
        "time; ivfpq: compressed index, whose candidates are ranked again exactly",
    )
    ivf_lists: int = Field(0, ge=0, description="ivfpq: inverted lists; 0 = 4 x sqrt(passages)")
    ivf_probes: int = Field(32, ge=1, description="ivfpq: lists searched per query")
    pq_bytes: int = Field(64, ge=1, description="ivfpq: bytes per vector; a divisor of the encoder's dimension")
    candidates: int = Field(100, ge=1, description="ivfpq: candidates ranked again exactly; at least top_k")
    reranker: str | None = Field(
        None, description="cross-encoder: directory or id, e.g. ncbi/MedCPT-Cross-Encoder; null = none"
    )
    rerank_depth: int = Field(20, ge=1, description="passages that the cross-encoder ranks again; at least top_k")

    @model_validator(mode="before")
    @classmethod
    def _read_one_corpus(cls, tree: Any) -> Any:
        if not isinstance(tree, dict) or "corpus" not in tree:
            return tree
        if "corpora" in tree:
            raise ValueError("corpus and corpora are both set; write all corpora in corpora")
        return {key: value for key, value in tree.items() if key != "corpus"} | {"corpora": [tree["corpus"]]}

    @model_validator(mode="after")
    def _refuse_unfit(self) -> Knowledge:
        names = [corpus.name for corpus in self.corpora]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two corpora have the name {repeated[0]!r}; give them different names")
        if without := [corpus.name for corpus in self.corpora if not (corpus.path or self.corpora_root)]:
            raise ValueError(f"the corpus {without[0]!r} has no path; give it one, or set corpora_root")
        if sum(corpus.share for corpus in self.corpora) > 1 + 1e-9:
            raise ValueError("the shares of the corpora add up to more than 1; lower them")
        if self.search_depth < self.top_k:
            raise ValueError(f"search_depth = {self.search_depth} is below top_k = {self.top_k}")
        if self.index == "ivfpq" and self.candidates < self.top_k:
            raise ValueError(f"candidates = {self.candidates} is below top_k = {self.top_k}")
        if self.reranker and self.rerank_depth < self.top_k:
            raise ValueError(f"rerank_depth = {self.rerank_depth} is below top_k = {self.top_k}")
        return self


def join_corpus_keys(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return dotted settings with `knowledge.corpora` in place of the keys of the one corpus of earlier versions.

    Example: {"knowledge.corpus.path": "hpo:passages", "knowledge.corpus.limit": 5, ...} becomes
    {"knowledge.corpora": [{"path": "hpo:passages", "name": "hpo", "limit": 5, "share": 0.0}], ...}
    """
    prefix = "knowledge.corpus."
    corpus = {key.removeprefix(prefix): value for key, value in settings.items() if key.startswith(prefix)}
    if not corpus:
        return dict(settings)
    corpora = Knowledge.model_validate({"corpus": corpus}).model_dump(mode="json")["corpora"]
    others = {key: value for key, value in settings.items() if not key.startswith(prefix)}
    return others | {"knowledge.corpora": corpora}


def _check_chat_url(text: str) -> str:
    """Return the address of a chat API; Azure's `?api-version=` is the one query that it may have."""
    if text == "offline-teacher":
        return text
    check_base_url(_API_VERSION.sub("", text))
    return text


class Endpoint(Section):
    """An OpenAI-compatible chat endpoint and its limits."""

    base_url: Annotated[str, AfterValidator(_check_chat_url)] = Field(
        description="e.g. https://host/v1, or https://host/openai/deployments/NAME?api-version=2024-10-21; "
        "offline-teacher = start the offline stand-in"
    )
    model: str = Field(description="model name sent to the API")
    api_key: SecretStr | None = Field(None, description="${ENV_VAR}, or file:PATH of mode 0600; null = send no key")
    api_key_header: str = Field(
        "Authorization",
        pattern="^[A-Za-z0-9-]+$",
        description="header that carries the key; Authorization = with the word Bearer, any other = the key alone, as "
        "api-key for Azure",
    )
    concurrency: int = Field(64, ge=1, description="limit of requests in flight; their number adapts to the endpoint")
    requests_per_minute: int = Field(0, ge=0, description="rate limit of the account; 0 = not known")
    tokens_per_minute: int = Field(0, ge=0, description="rate limit of the account, prompt and reply; 0 = not known")
    json_schema: bool = Field(False, description="send the JSON schema as response_format; the server must support it")


class Retry(Section):
    """Time limits of a try, and when failures end a request or the run."""

    connect_s: float = Field(10.0, gt=0, description="limit for connecting, seconds")
    first_byte_s: float = Field(
        120.0, gt=0, description="limit from the request to the first byte of the reply, seconds"
    )
    whole_s: float = Field(180.0, gt=0, description="limit for the whole try, seconds")
    tries: int = Field(6, ge=1, description="tries of a request whose own content makes it fail; then it is given up")
    patience_s: float = Field(600.0, ge=0, description="end the run if no endpoint has answered for this long, seconds")
    hedge_after_s: float = Field(
        0.0, ge=0, description="send a straggler a second time after this long, seconds; both may be paid; 0 = never"
    )


class Price(Section):
    """The price of a model, US dollars per million tokens."""

    prompt: float = Field(ge=0, description="of prompt tokens")
    completion: float = Field(ge=0, description="of reply tokens")


class Budget(Section):
    """The limit of spending. The cost of a request is reserved before it is sent, so the limit is never exceeded."""

    usd: float = Field(0.0, ge=0, description="US dollars at the prices of synthesis.prices; 0 = no limit")
    tokens: int = Field(0, ge=0, description="tokens, prompt and reply; 0 = no limit")


class Checks(Section):
    """Checks of a question. A reply in the wrong format is always refused. A check is off at false or 0."""

    min_words: int = Field(5, ge=0, description="shortest stem, words")
    max_words: int = Field(300, ge=0, description="longest stem, words")
    entity_given_away: bool = Field(True, description="refuse if the entity is an option and the stem names it")
    missing_figure: bool = Field(
        True, description="refuse if the stem refers to a figure or image, or to a table or results that it lacks"
    )
    all_or_none: bool = Field(True, description="refuse options such as 'all of the above' and 'none of the above'")
    negative_lead_in: bool = Field(
        True, description="refuse questions for the option that is NOT true, or for all EXCEPT"
    )
    longest_option: float = Field(
        0.0,
        ge=0,
        description="refuse if the longest option is N times as long as the next; try 2.5. Off by default, because "
        "which option is correct is not known",
    )
    repeated_key_word: bool = Field(
        False,
        description="refuse if a rare word of the stem occurs in exactly one option. Off by default, because it also "
        "refuses sound questions",
    )
    grounding: int = Field(
        2,
        ge=0,
        description="refuse a rare-disease question that takes fewer than N content words from its passages, not "
        "counting the words of its seeds",
    )
    near_duplicate: float = Field(
        0.8,
        ge=0,
        le=1,
        description="refuse at this MinHash Jaccard similarity (word 5-grams) to an accepted, seed or benchmark "
        "question",
    )
    decontamination: float = Field(
        0.5,
        ge=0,
        le=1,
        description="refuse if one benchmark item contains this share of the word 8-grams; short items: if the text is "
        "equal",
    )


class Judge(Section):
    """A second request about each question that passed the checks: a model scores it from 1 to 5. Always in chat mode.

    Its cost counts against the budget. Limits of endpoints count for questions and verdicts separately.
    """

    endpoints: list[Endpoint] = Field(
        default_factory=list, description="chat APIs that judge; [] = those of synthesis.endpoints"
    )
    temperature: float = Field(0.0, ge=0, le=2, description="sampling temperature of the verdicts; 0 = greedy")
    max_tokens: int = Field(512, ge=1, description="limit of a verdict, tokens; a reasoning model needs thousands")
    reasoning: int = Field(
        3, ge=0, le=5, description="least score: how much reasoning the answer needs; 0 = only count"
    )
    answerability: int = Field(3, ge=0, le=5, description="least score: exactly one option is right; 0 = only count")
    plausibility: int = Field(3, ge=0, le=5, description="least score: wrong options are plausible; 0 = only count")
    not_judged: Literal["keep", "refuse"] = Field(
        "keep", description="what becomes of a question whose verdict cannot be read or was given up; both are counted"
    )


class Synthesis(Section):
    """Question synthesis: a prompt has two seed questions and, with probability alpha, an entity and its passages."""

    accepted: int = Field(
        ge=1,
        le=100_000_000,
        description="questions to write; with voting.kept: the questions assumed to be needed, before the share of "
        "kept labels is measured",
    )
    candidates: int = Field(0, ge=0, le=1_000_000_000, description="limit of requests; 0 = 2 x accepted + 10")
    alpha: float = Field(
        0.5, ge=0, le=1, description="share of requests whose prompt holds an entity and passages (rho < alpha)"
    )
    seeds: list[Source] = Field(min_length=1, description="data sets of seed questions, without evaluation items")
    seed_pairs: Literal["uniform", "topic"] = Field(
        "uniform",
        description="topic: both seeds have the same topic, drawn in proportion to its number of seeds; each seed must "
        "have a topic",
    )
    entity_choice: Literal["uniform", "coverage"] = Field(
        "uniform", description="coverage: draw with weight 1 / (1 + times drawn so far)"
    )
    prompt_file: str | None = Field(
        None,
        description="YAML file with the text of the prompt (system, common, rare); null = the one that comes with the "
        "package, medssr_dist/synthesis/question_prompt.yaml, whose head explains the form",
    )
    transport: Literal["chat", "batch"] = Field(
        "chat", description="batch: upload files of requests, wait, download; half the price"
    )
    batch_size: int = Field(10_000, ge=1, description="batch: requests per file")
    poll_s: float = Field(30.0, gt=0, description="batch: seconds between two polls")
    endpoints: list[Endpoint] = Field(min_length=1, description="chat APIs that write the questions, used in parallel")
    temperature: float = Field(1.0, ge=0, le=2, description="sampling temperature of the questions; 0 = greedy")
    max_tokens: int = Field(
        1024, ge=1, description="limit of a reply with its thoughts, tokens; a reply that reaches it is no question"
    )
    retry: Retry = Field(default_factory=Retry)
    prices: dict[str, Price] = Field(default_factory=dict, description="model -> price; budget.usd needs them")
    budget: Budget = Field(default_factory=Budget)
    max_reject_share: float = Field(
        0.9, gt=0, le=1, description="end the run if a larger share of the last 200 replies is refused"
    )
    checks: Checks = Field(default_factory=Checks)
    judge: Judge | None = Field(None, description="a model that scores each question; null = no judge")
    review_sample: int = Field(50, ge=0, description="questions in the review sheet for a physician")

    @property
    def most_candidates(self) -> int:
        """The limit of requests."""
        return self.candidates or 2 * self.accepted + 10

    @property
    def models(self) -> list[str]:
        """The models of the endpoints, sorted."""
        return sorted({endpoint.model for endpoint in self.endpoints})

    @property
    def judge_endpoints(self) -> list[Endpoint]:
        """The endpoints of the judge; [] without a judge."""
        return (self.judge.endpoints or self.endpoints) if self.judge else []

    @property
    def judge_models(self) -> list[str]:
        """The models of the judge's endpoints, sorted."""
        return sorted({endpoint.model for endpoint in self.judge_endpoints})

    @model_validator(mode="after")
    def _refuse_unfit(self) -> Synthesis:
        if self.most_candidates < self.accepted:
            raise ValueError(f"candidates = {self.candidates} is below accepted = {self.accepted}")
        unpriced = [model for model in [*self.models, *self.judge_models] if model not in self.prices]
        if self.budget.usd and unpriced:
            raise ValueError(f"budget.usd needs the price of {unpriced[0]!r}; add it to synthesis.prices")
        return self
