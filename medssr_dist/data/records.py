"""The records that pass from step to step: Question -> Vote -> Label. Immutable, with a schema version.

The origin of a training example can be traced back: Label.question holds Question.provenance (prompt hash, seed
questions, entity, passages, model, random seed, commit), and Label.question.id selects the votes on that question.
"""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from medssr_dist.data.jsonl import read_json
from medssr_dist.errors import InputError

LETTERS = "ABCDEFGHIJ"
RecordType = TypeVar("RecordType")


def hash_content(value: Any, length: int = 16) -> str:
    """Return the first `length` hex digits of the SHA-256 of `value` as canonical JSON (sorted keys, no spaces)."""
    canonical = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8", "replace")).hexdigest()[:length]


class Record(BaseModel):
    """Base class of all records: immutable, with a schema version; unknown fields are an error, numbers are finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    schema_version: Literal[1] = 1


class Provenance(Record):
    """The origin of a synthetic question.

    Example: Provenance(index=7, prompt_hash="9f..", seed_ids=("a1", "b2"), rho=0.31, entity="Alkaptonuria",
    entity_id="OMIM:203500", passage_ids=("OMIM:203500",), teacher="gpt-x", random_seed=42, commit="0c1d2e3")
    """

    index: int = Field(
        ge=0, description="number of the request in the run; its random draws depend on (random_seed, index)"
    )
    prompt_hash: str
    seed_ids: tuple[str, ...]
    rho: float = Field(description="uniform draw; knowledge is injected if rho < alpha")
    entity: str | None = None
    entity_id: str | None = None
    passage_ids: tuple[str, ...] = ()
    topic: str = Field("", description="topic of the seed pair; '' if the pair was drawn uniformly")
    teacher: str = Field(description="model name sent to the API")
    answered_by: str = Field("", description="model name in the server's reply")
    permutation: tuple[int, ...] = Field(
        (), description="option i of the question is option permutation[i] of the reply"
    )
    random_seed: int
    commit: str


class Question(Record):
    """A multiple-choice question. `id` is the hash of stem and options.

    `truth` comes from a person or an ontology, never from a chat API.

    Example: Question.make("Which vitamin prevents scurvy?", ["A", "C"], source="demo", truth="B")
    """

    id: str
    stem: str
    options: dict[str, str] = Field(
        description="letter -> text; letters A, B, C... without a gap; texts distinct if synthetic"
    )
    source: str = Field(description="'synthetic', or the name of the data set")
    source_id: str = Field("", description="the id in that data set, '' if it has none")
    truth: str | None = Field(None, description="human or ontology answer letter; None if unknown")
    rare: bool = Field(False, description="the question is about a rare disease; `rare_by` says who says so")
    rare_disease: str | None = Field(None, description="rare disease that the question names, as in the rare list")
    rare_by: Literal["source", "column", "auto"] | None = Field(
        None,
        description="what `rare` comes from: 'source' = the data set as a whole, 'column' = a column of the data set, "
        "'auto' = the names of the rare list, sought in stem and right option; None = synthesis, or nobody has looked",
    )
    topic: str = Field("", description="subject or specialty as the data set gives it, '' if it gives none")
    provenance: Provenance | None = None

    @classmethod
    def make(cls, stem: str, options: list[str], **fields: Any) -> Question:
        """Build a question from its option texts in order; letters and id follow from them.

        Raises:
            InputError: fewer than 2 or more than 10 options.
        """
        if not 2 <= len(options) <= len(LETTERS):
            raise InputError(f"a question needs 2-{len(LETTERS)} options, got {len(options)}: {stem[:80]!r}")
        lettered = {LETTERS[i]: text for i, text in enumerate(options)}
        return cls(id=hash_content([stem, lettered]), stem=stem, options=lettered, **fields)

    @model_validator(mode="after")
    def _check(self) -> Question:
        letters = list(self.options)
        if not 2 <= len(letters) <= len(LETTERS) or letters != list(LETTERS[: len(letters)]):
            raise ValueError(f"options must be 2-{len(LETTERS)} consecutive letters from A, got {letters}")
        distinct = {text.strip().casefold() for text in self.options.values()}
        if self.source == "synthetic" and len(distinct) != len(letters):  # benchmarks have such items
            raise ValueError(f"options are not distinct: {list(self.options.values())}")
        if not self.stem.strip() or not all(text.strip() for text in self.options.values()):
            raise ValueError("stem and options must not be empty")
        if self.truth is not None and self.truth not in self.options:
            raise ValueError(f"truth {self.truth!r} is not one of the options {letters}")
        return self


class Rejected(Record):
    """A reply of the chat API that was not accepted as a question.

    Example: Rejected(index=7, reason="not_json", detail="no JSON object", reply="Sorry, I cannot help with that.")
    """

    index: int
    reason: str = Field(description="short name of the reason; the summary counts them")
    detail: str
    reply: str


class VoteKey(NamedTuple):
    """The fields of a Vote that identify it.

    Example: VoteKey(question_id="ab..", policy="3f..", sampling="77..", seed=3)
    """

    question_id: str
    policy: str
    sampling: str
    seed: int


class Vote(Record):
    """One sampled answer. At most one vote is stored for each key, even after a crash.

    Example: Vote(question_id="ab..", policy="3f..", sampling="77..", seed=3, answer="B",
    method="statement", text="The answer is (B).", tokens=7, truncated=False)
    """

    question_id: str
    policy: str = Field(description="fingerprint of the policy model")
    sampling: str = Field(description="hash of the sampling parameters and the prompt format")
    seed: int = Field(description="seed of the sample, 0..K-1")
    answer: str | None = Field(description="extracted letter, None if invalid")
    method: str | None = Field(description="form in which the answer was found, see data.answers; None if invalid")
    text: str
    tokens: int = Field(description="generated tokens")
    truncated: bool = Field(description="the answer reached the token limit")
    order: str = Field(
        "",
        description="letters of the question's options in the order in which the policy saw them, for example 'CABD'; "
        "`text` names the letters that it saw, `answer` is the question's own. '' = in the question's order",
    )
    paraphrase: int = Field(0, description="number of the stem that the policy saw; 0 = the question's own")
    logprob: float | None = Field(
        None, description="mean log-prob of the generated tokens, at temperature 1; None if it was not recorded"
    )
    token_ids: tuple[int, ...] | None = Field(
        None, description="the generated tokens; None if the vote cannot be a rollout (training.stage1.first_rollouts)"
    )

    @property
    def key(self) -> VoteKey:
        """What identifies the vote."""
        return VoteKey(self.question_id, self.policy, self.sampling, self.seed)


class WeightedVote(NamedTuple):
    """A vote that is a rollout of stage 1, and the weight of its advantage.

    Example: WeightedVote(vote=Vote(...), weight=1.0)

    Attributes:
        weight: probability that the question would have the same kept label without this vote.
    """

    vote: Vote
    weight: float


class Label(Record):
    """The result of the vote on one question (paper section 3.2: self-consistency pseudo-label).

    Example: the 8 votes BBBBBCC- ('-' is an answer without a letter) give answer "B", counts {"B": 5, "C": 2},
    requested 8, taken 8, valid 7, confidence_requested (5/8, 5/8), confidence_valid (5/7, 5/7). Adaptive voting may
    stop after BBBBB: taken 5, confidence_requested (5/8, 1), confidence_valid (5/8, 1).
    """

    question: Question
    outcome: Literal["labeled", "tie", "all_invalid", "rejected", "quarantined"] = Field(
        description="rejected: voting stopped before a winner was known, because none could reach the threshold any "
        "more (voting.adaptive=kept); quarantined: given up, see `reason`"
    )
    answer: str | None = Field(description="majority letter; None unless outcome is 'labeled'")
    counts: dict[str, int] = Field(description="letter -> number of votes")
    requested: int = Field(description="K, the votes asked for")
    taken: int = Field(description="votes taken; fewer than requested if the rest could not change the result")
    valid: int = Field(description="votes with an answer, among those taken")
    truncated: int = Field(description="votes that reached the token limit, among those taken")
    tokens: int = Field(description="tokens generated in the votes taken")
    confidence_requested: tuple[float, float] = Field(
        description="votes for the winner / requested: (least, most) possible"
    )
    confidence_valid: tuple[float, float] = Field(
        description="votes for the winner / valid: (least, most) possible; 0 if none is valid"
    )
    kept: bool = Field(description="confidence reaches voting.threshold: stage 1 trains on the label")
    reason: str = Field("", description="why the question is quarantined")
    policy: str
    sampling: str
    rule: str = Field("majority", description="how the votes became the label (voting.rule)")


def parse_record(kind: type[RecordType], row: Any, where: str) -> RecordType:
    """Validate a JSON value as a record of type `kind`.

    Args:
        kind: a pydantic model, a dataclass, or another type that pydantic can check.
        where: the place of the row in error messages, for example "questions.jsonl line 7".

    Raises:
        InputError: the row is not such a record; the message names place, field and reason.
    """
    adapter: TypeAdapter[RecordType] = _find_adapter(cast(Any, kind))
    try:
        return adapter.validate_python(row)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        field = ".".join(map(str, first["loc"])) or kind.__name__
        raise InputError(f"{where}: {field}: {first['msg']}") from None
    except RecursionError:
        raise InputError(f"{where} is nested too deep; repair or replace it") from None


def read_record(kind: type[RecordType], file: Path) -> RecordType:
    """Read a JSON file as a record of type `kind`. Raises InputError where it is not one, naming file and field."""
    return parse_record(kind, read_json(file), str(file))


@lru_cache(maxsize=256)
def _find_adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
