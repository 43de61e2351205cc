"""What the synthesis step reports: summary.json when it ends, progress.json while it runs."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from medssr_dist.config.synthesis import Budget
from medssr_dist.data.jsonl import read_json
from medssr_dist.data.records import parse_record
from medssr_dist.data.wilson import Share
from medssr_dist.synthesis.client.endpoint_state import EndpointState


class _Report(BaseModel):
    model_config = ConfigDict(frozen=True)


class AlphaShares(_Report):
    """The share of rare-disease requests that the config asks for, and the shares achieved.

    Example: AlphaShares(asked=0.5, requests=measure_share(610, 1200), accepted=measure_share(500, 1000))
    """

    asked: float
    requests: Share
    accepted: Share


class LetterBalance(_Report):
    """Accepted questions by letter: of the option that the model wrote first, and of the rare disease.

    Example: LetterBalance(first_option={"A": 251, "B": 749}, entity_option={"A": 7})
    """

    first_option: dict[str, int]
    entity_option: dict[str, int]


class ModelReplies(_Report):
    """The models asked, and the replies by the model that answered.

    Example: ModelReplies(asked=["gpt-x"], answered={"gpt-x-0613": 1190, "no reply": 10})
    """

    asked: list[str]
    answered: dict[str, int]


class JudgeSummary(_Report):
    """The verdicts of the judge that were used.

    Attributes:
        judged: questions with scores.
        not_judged: questions whose verdict could not be read or was given up; kept if `not_judged_kept`.
        least: criterion -> least score asked for; 0 = only counted.
        scores: criterion -> score -> questions.

    Example: JudgeSummary(models=["gpt-x"], judged=90, not_judged=2, not_judged_kept=True,
    least={"reasoning": 3, ...}, scores={"reasoning": {1: 5, 2: 10, 3: 25, 4: 30, 5: 20}, ...})
    """

    models: list[str]
    judged: int
    not_judged: int
    not_judged_kept: bool
    least: dict[str, int]
    scores: dict[str, dict[int, int]]


class SynthesisSummary(_Report):
    """The summary of a finished synthesis step (summary.json).

    `requests_sent`, `http_attempts`, `asked_again`, `lost`, `held_s`, `started`, `ended` and `seconds` are of the
    attempt that ended the step; all else is of the whole folder.

    Attributes:
        requested: replies judged, including requests that were given up.
        stopped_by: "count", "cap" or "budget".
        prompt_hash: hash of the prompt's template; "" in a summary of an earlier version.
        judge: the verdicts of the judge; None without a judge.
        surplus: replies that came after the last accepted question: paid for and kept in the journal, but not used.
        tokens: the same as completion_tokens.
        lost, lost_tokens: tries whose reply was lost and may have been billed, and their tokens.
        requests_replayed: replies of earlier attempts that were read from the journal.
        http_attempts: tries sent, including retries.
        asked_again: requests in flight at the end of an earlier attempt, which were sent a second time.
        held_s: seconds without new requests, because the vote lagged behind.
        checked_against: the benchmarks that the questions were decontaminated against.

    Example: SynthesisSummary(requested=1200, accepted=1000, rejected_by_reason={"not_parsable": 200},
    stopped_by="count", ..., seconds=3600.0, checked_against=["medqa"])
    """

    requested: int
    accepted: int
    rejected_by_reason: dict[str, int]
    stopped_by: str
    budget: Budget
    prompt_hash: str = ""
    surplus: int
    alpha: AlphaShares
    letter_balance: LetterBalance
    models: ModelReplies
    prompt_tokens: int
    completion_tokens: int
    tokens: int
    usd: float
    unpriced: tuple[str, ...] = ()
    lost_tokens: int
    requests_sent: int
    requests_replayed: int
    http_attempts: int
    asked_again: int
    lost: int
    held_s: float = 0.0
    started: str
    ended: str
    seconds: float
    checked_against: list[str] = []
    judge: JudgeSummary | None = None


class SynthesisProgress(_Report):
    """The state of a running synthesis step (progress.json).

    Attributes:
        time: seconds since 1970.
        accepted_share: accepted / judged; None before the first reply.
        replies_per_s: rate over the last 30 seconds; None in the first second.
        unpriced: models whose price is unknown; `usd` does not hold their cost.
        eta_s: seconds until `wanted` questions are accepted at the present rate; None if unknown.
        attempts: tries sent.
        lost: tries whose reply was lost and may have been billed.

    Example: SynthesisProgress(time=1.7e9, accepted=40, wanted=100, judged=50, accepted_share=0.8, in_flight=8,
    replies_per_s=5.0, eta_s=15, usd=0.12, tokens=40000, attempts=60, lost=1, endpoints=(EndpointState(...),))
    """

    time: float
    accepted: int
    wanted: int
    judged: int
    accepted_share: float | None
    in_flight: int
    replies_per_s: float | None
    eta_s: int | None
    usd: float
    unpriced: tuple[str, ...] = ()
    tokens: int
    attempts: int
    lost: int
    endpoints: tuple[EndpointState, ...]


def read_synthesis_summary(file: Path) -> SynthesisSummary:
    """Read summary.json of the synthesis step. Raises InputError if it is absent or not a summary."""
    return parse_record(SynthesisSummary, read_json(file), f"{file}, the summary of a synthesis")


def read_synthesis_progress(file: Path) -> SynthesisProgress:
    """Read progress.json of the synthesis step. Raises InputError if it is absent or not a progress report."""
    return parse_record(SynthesisProgress, read_json(file), f"{file}, the progress of a synthesis")
