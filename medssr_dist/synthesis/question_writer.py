"""`questions.jsonl` and `rejected.jsonl`: the judged replies of the journal, in the order of the requests.

Both files are derived. They are built again from the journal when a run starts, under a temporary name, and renamed
when they hold everything known so far. Then they grow, line by line, in the order of the requests. Their content is
therefore the same no matter how often the run was interrupted, and a reader may follow them.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from medssr_dist.data.jsonl import JsonlLedger
from medssr_dist.data.records import LETTERS, Question, Rejected
from medssr_dist.errors import InputError
from medssr_dist.knowledge.name_finder import is_same_name
from medssr_dist.run.demand import QuestionDemand
from medssr_dist.run.paths import SynthesisPaths
from medssr_dist.runtime.failures import to_line
from medssr_dist.runtime.progress_bar import ProgressBar
from medssr_dist.synthesis.checks import Screen, TeacherReply
from medssr_dist.synthesis.journal import Journal, JournalEntry
from medssr_dist.synthesis.judge import QuestionJudge
from medssr_dist.synthesis.request_queue import JudgedCount

_CHUNK = 256  # replies in memory at once
_ALARM_WINDOW = 200  # replies over which the share of rejected ones is measured
_CUT = ("truncated", "still_thinking")  # reasons that more room for the reply mends
_CUT_SHARE = 0.05  # share of such replies above which a warning is given
_EXAMPLE_CHARS = 120
_MORE_ROOM = "raise synthesis.max_tokens (or ask the endpoint for shorter thoughts) in a new --run-dir"

logger = logging.getLogger(__name__)


class _Screened(NamedTuple):
    """A reply and what the checks made of it."""

    entry: JournalEntry
    outcome: Question | Rejected


class QuestionWriter:
    """Judges replies and writes each to one of the two files, until as many are accepted as are wanted.

    Attributes:
        judged: replies judged and accepted so far.
        rare, accepted_rare: those of them about a rare disease.
        rejected: rejected replies by reason.
        answered_by: replies by the model that answered, "no reply" for requests that were given up.
        first_option: accepted questions by the letter of the option that the model wrote first.
        entity_option: accepted questions by the letter of the option that is the rare disease.

    Raises:
        InputError: from `advance`, if more than `max_reject_share` of the last 200 replies were rejected.
    """

    def __init__(
        self,
        folder: Path,
        journal: Journal,
        screen: Screen,
        demand: QuestionDemand,
        max_reject_share: float,
        judge: QuestionJudge | None = None,
    ):
        self.judged = JudgedCount()
        self.rare = 0
        self.accepted_rare = 0
        self.rejected: Counter[str] = Counter()
        self.answered_by: Counter[str] = Counter()
        self.first_option: Counter[str] = Counter()
        self.entity_option: Counter[str] = Counter()
        self._journal = journal
        self._screen = screen
        self._demand = demand
        self._judge = judge
        self._screened: deque[_Screened] = deque()  # checked; the first waits for its verdict
        self._waiting = 0  # questions among them
        self._max_reject_share = max_reject_share
        self._recent: deque[bool] = deque(maxlen=_ALARM_WINDOW)
        self._may_warn = True
        self._examples: dict[str, str] = {}  # reason -> the first rejected reply, or why there is none
        paths = SynthesisPaths(folder)
        self._questions = _open_partial(paths.questions)
        self._rejected = _open_partial(paths.rejected)
        self._judge_journal(paths)

    def advance(self, until: int | None = None) -> int:
        """Judge and write the next replies, up to 256, in the order of the requests. Return how many.

        Args:
            until: only replies to requests below this number; None = all that the journal holds.
        """
        before = self.judged.total
        accepted: list[dict[str, Any]] = []
        rejected: list[dict[str, Any]] = []
        self._screen_next(until)
        while self._screened and self.judged.accepted < self._demand.count_wanted():
            entry, screened = self._screened[0]
            outcome = self._decide(entry, screened)
            if outcome is None:
                break
            self._screened.popleft()
            self._waiting -= isinstance(screened, Question)
            self._count(entry, outcome)
            (accepted if isinstance(outcome, Question) else rejected).append(outcome.model_dump())
        for ledger, rows in ((self._questions, accepted), (self._rejected, rejected)):
            if rows:
                ledger.append(*rows)
        self._warn_of_cut_replies()
        self._raise_if_too_many_rejected()
        return self.judged.total - before

    def close(self) -> None:
        """Close both files."""
        self._questions.close()
        self._rejected.close()

    def _judge_journal(self, paths: SynthesisPaths) -> None:
        """Judge everything in the journal, then give the files their final names."""
        known = self._journal.first_missing
        with ProgressBar(total=known, desc="synthesize: judging the journal", unit="reply", disable=not known) as bar:
            while judged := self.advance():
                bar.update(judged)
        for ledger, path in ((self._questions, paths.questions), (self._rejected, paths.rejected)):
            ledger.path = ledger.path.replace(path)

    def _screen_next(self, until: int | None) -> None:
        """Check the next replies until as many questions wait for a verdict as are wanted; ask for the verdicts."""
        missing = self._demand.count_wanted() - self.judged.accepted
        if self._waiting >= missing:
            return
        for each in self._check(self._next_entries(until)):
            self._screened.append(each)
            if isinstance(each.outcome, Question):
                self._waiting += 1
                if self._judge:
                    self._judge.submit(each.outcome)
            if self._waiting >= missing:
                return

    def _next_entries(self, until: int | None) -> list[JournalEntry]:
        first = self.judged.total + len(self._screened)
        end = self._journal.first_missing if until is None else until
        return [self._journal.read(index) for index in range(first, min(end, first + _CHUNK))]

    def _decide(self, entry: JournalEntry, screened: Question | Rejected) -> Question | Rejected | None:
        """Return what becomes of a reply after the judge; None while the verdict is missing."""
        if self._judge is None or isinstance(screened, Rejected):
            return screened
        verdict = self._judge.find(screened)
        if verdict is None:
            return None
        rejection = self._judge.decide(verdict)
        if rejection is None:
            return screened
        index = entry.provenance.index
        return Rejected(index=index, reason=rejection.reason, detail=rejection.detail, reply=entry.reply or "")

    def _check(self, entries: list[JournalEntry]) -> Iterator[_Screened]:
        judged = self._screen.judge(
            TeacherReply(entry.reply, entry.provenance, entry.finish_reason)
            for entry in entries
            if entry.reply is not None
        )
        for entry in entries:
            yield _Screened(entry, next(judged) if entry.reply is not None else _reject_without_reply(entry))

    def _count(self, entry: JournalEntry, outcome: Question | Rejected) -> None:
        entity = entry.provenance.entity
        self.judged.total += 1
        self.rare += entity is not None
        self.answered_by[entry.provenance.answered_by or "no reply"] += 1
        self._recent.append(isinstance(outcome, Rejected))
        if isinstance(outcome, Rejected):
            self.rejected[outcome.reason] += 1
            self._examples.setdefault(outcome.reason, outcome.reply[:_EXAMPLE_CHARS] or outcome.detail)
            return
        self.judged.accepted += 1
        self.accepted_rare += entity is not None
        if outcome.provenance is not None:
            self.first_option[LETTERS[outcome.provenance.permutation.index(0)]] += 1
        for letter, text in outcome.options.items():
            if entity is not None and is_same_name(text, entity):
                self.entity_option[letter] += 1

    def _warn_of_cut_replies(self) -> None:
        """Warn once if many replies end before their question does: they are paid for and lost."""
        cut = sum(self.rejected[reason] for reason in _CUT)
        if self._may_warn and self.judged.total >= _ALARM_WINDOW and cut > _CUT_SHARE * self.judged.total:
            self._may_warn = False
            logger.warning(
                "%d of %d replies are cut at the token limit or end within thoughts, and are no questions; %s",
                cut,
                self.judged.total,
                _MORE_ROOM,
            )

    def raise_if_hardly_accepted(self) -> None:
        """Raise InputError if requests are used up and hardly any reply, or none at all, became a question."""
        total, accepted = self.judged.total, self.judged.accepted
        missing = accepted < self._demand.count_wanted()
        if missing and not total:
            raise InputError("no request fits into synthesis.budget; raise it")
        if missing and (not accepted or total - accepted > self._max_reject_share * total):
            raise InputError(self._explain(f"{total - accepted:,} of {total:,} replies were rejected"))

    def _raise_if_too_many_rejected(self) -> None:
        rejected = sum(self._recent)
        if len(self._recent) == _ALARM_WINDOW and rejected > self._max_reject_share * _ALARM_WINDOW:
            raise InputError(self._explain(f"{rejected} of the last {_ALARM_WINDOW} replies were rejected"))

    def _explain(self, what: str) -> str:
        """Return `what` with the commonest reasons, a reply rejected for the first of them, and what to change."""
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in self.rejected.most_common(3))
        reason = self.rejected.most_common(1)[0][0]
        example = to_line(self._examples[reason])[:_EXAMPLE_CHARS]
        change = _MORE_ROOM if reason in _CUT else "change the model or synthesis.checks in a new --run-dir"
        return (
            f"{what} (mostly: {reasons}); read {self._rejected.path}, then {change}, or raise "
            f"synthesis.max_reject_share = {self._max_reject_share:g} to continue here; an example: {example!r}"
        )


def _reject_without_reply(entry: JournalEntry) -> Rejected:
    return Rejected(index=entry.provenance.index, reason=entry.gave_up or "no_reply", detail=entry.detail, reply="")


def _open_partial(path: Path) -> JsonlLedger:
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    return JsonlLedger(partial)
