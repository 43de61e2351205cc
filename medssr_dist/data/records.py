"""Records that cross steps: Question -> Vote -> Label. Frozen, versioned, identified by content.

From a training example one walks back: Label.question -> Question.provenance (prompt hash, seeds,
entity, passages, models, seeds, commit), and Label.question.id -> the Vote lines of that question.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from medssr_dist.errors import InputError

LETTERS = "ABCDEFGHIJ"


def content_hash(value: Any, length: int = 16) -> str:
    """Hex SHA-256 prefix of `value` as canonical JSON."""
    canonical = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8", "replace")).hexdigest()[:length]


class Record(BaseModel):
    """Base of all records: immutable, unknown fields refused, schema version carried."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    schema_version: Literal[1] = 1


class Provenance(Record):
    """Where a synthetic question comes from.

    Example: Provenance(index=7, prompt_hash="9f..", seed_ids=("a1", "b2"), rho=0.31, entity="Alkaptonuria",
    entity_id="OMIM:203500", passage_ids=("OMIM:203500",), teacher="gpt-x", random_seed=42, commit="0c1d2e3")
    """

    index: int = Field(description="request index in the run; draws are by (random_seed, index)")
    prompt_hash: str
    seed_ids: tuple[str, ...]
    rho: float = Field(description="the draw compared with alpha")
    entity: str | None = None
    entity_id: str | None = None
    passage_ids: tuple[str, ...] = ()
    topic: str = Field("", description="topic that the seed pair was drawn by; '' if drawn uniformly")
    teacher: str = Field(description="model name sent to the API")
    answered_by: str = Field("", description="model that the server says answered")
    permutation: tuple[int, ...] = Field((), description="place i shows the reply's option permutation[i]")
    random_seed: int
    commit: str


class Question(Record):
    """A multiple-choice question. `id` is the hash of stem and options; `truth` is never bought.

    Example: Question.make("Which vitamin prevents scurvy?", ["A", "C"], source="demo", truth="B")
    """

    id: str
    stem: str
    options: dict[str, str] = Field(description="letter -> text; A, B, C... without a gap; distinct if synthetic")
    source: str = Field(description="'synthetic', or the name of the data set")
    source_id: str = Field("", description="the id in that data set, '' if it has none")
    truth: str | None = Field(None, description="human or ontology answer letter; None if unknown")
    rare: bool = False
    topic: str = Field("", description="subject or specialty as the data set gives it, '' if it gives none")
    provenance: Provenance | None = None

    @classmethod
    def make(cls, stem: str, options: list[str], **fields: Any) -> Question:
        """Build a question from option texts in order; letters and id are derived."""
        if not 2 <= len(options) <= len(LETTERS):
            raise InputError(f"a question needs 2-{len(LETTERS)} options, got {len(options)}: {stem[:80]!r}")
        lettered = {LETTERS[i]: text for i, text in enumerate(options)}
        return cls(id=content_hash([stem, lettered]), stem=stem, options=lettered, **fields)

    @model_validator(mode="after")
    def _check(self) -> Question:
        letters = list(self.options)
        if not 2 <= len(letters) <= len(LETTERS) or letters != list(LETTERS[: len(letters)]):
            raise ValueError(f"options must be 2-{len(LETTERS)} consecutive letters from A, got {letters}")
        distinct = {text.strip().casefold() for text in self.options.values()}
        if self.source == "synthetic" and len(distinct) != len(letters):  # published benchmarks have such items
            raise ValueError(f"options are not distinct: {list(self.options.values())}")
        if not self.stem.strip() or not all(text.strip() for text in self.options.values()):
            raise ValueError("stem and options must not be empty")
        if self.truth is not None and self.truth not in self.options:
            raise ValueError(f"truth {self.truth!r} is not one of the options {letters}")
        return self


class Rejected(Record):
    """A reply that did not become a question, with the reason and the paid-for text."""

    index: int
    reason: str = Field(description="short machine-readable reason, counted in the summary")
    detail: str
    reply: str


class Vote(Record):
    """One sampled answer. Its key (question, policy, sampling, seed) exists once, whatever crashed.

    Example: Vote(question_id="ab..", policy="3f..", sampling="77..", seed=3, answer="B",
    method="statement", text="The answer is (B).", tokens=7, truncated=False)
    """

    question_id: str
    policy: str = Field(description="fingerprint of the policy model")
    sampling: str = Field(description="hash of the sampling parameters and the prompt form")
    seed: int = Field(description="per-sample seed, 0..K-1")
    answer: str | None = Field(description="extracted letter, None if invalid")
    method: str | None
    text: str
    tokens: int = Field(description="generated tokens")
    truncated: bool = Field(description="hit the token limit")

    @property
    def key(self) -> tuple[str, str, str, int]:
        return self.question_id, self.policy, self.sampling, self.seed


class Label(Record):
    """The outcome of the vote on one question (paper section 3.2: self-consistency pseudo-label).

    Example: 8 votes BBBBBCC- give answer "B", counts {"B": 5, "C": 2}, requested 8, taken 8, valid 7,
    confidence_requested (5/8, 5/8), confidence_valid (5/7, 5/7). Adaptive voting may stop at BBBBB: taken 5,
    confidence_requested (5/8, 1), confidence_valid (5/8, 1).
    """

    question: Question
    outcome: Literal["labeled", "tie", "all_invalid", "rejected", "quarantined"] = Field(
        description="rejected: below the threshold whatever its winner, which was not voted out (voting.adaptive=kept)"
    )
    answer: str | None = Field(description="majority letter; None unless outcome is 'labeled'")
    counts: dict[str, int] = Field(description="letter -> votes taken for it")
    requested: int = Field(description="K")
    taken: int = Field(description="votes taken; fewer than requested where the rest could change nothing")
    valid: int = Field(description="of those taken, with an answer")
    truncated: int = Field(description="of those taken, cut at the token limit")
    tokens: int = Field(description="generated in the votes taken")
    confidence_requested: tuple[float, float] = Field(description="winner's votes / requested: least, most possible")
    confidence_valid: tuple[float, float] = Field(description="winner's votes / valid: least, most; 0 if none is valid")
    kept: bool
    reason: str = Field("", description="why it is quarantined")
    policy: str
    sampling: str


def parse_record(kind: type[Record], row: dict, where: str) -> Any:
    """Validate one JSON row as `kind`. Raises InputError saying where, which field and why."""
    try:
        return kind.model_validate(row)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or kind.__name__
        raise InputError(f"{where}: {field}: {first['msg']}") from None
