"""`questions.jsonl` and `rejected.jsonl`: what the journal's replies come to, in the order of the requests.

Both are derived: they are built anew from the journal when a run starts, appear under their names once
they hold all that is known, and then grow as further prefixes of the requests are complete. Their lines
are therefore the same however often the run was interrupted, and a reader may follow them.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from medssr_dist.data.jsonl import JsonlLedger
from medssr_dist.data.records import LETTERS, Question, Rejected
from medssr_dist.errors import InputError
from medssr_dist.run.paths import SynthesisPaths
from medssr_dist.synthesis.checks import Screen
from medssr_dist.synthesis.journal import Journal, JournalEntry
from medssr_dist.synthesis.request_queue import Judged

_BATCH = 256  # replies held in memory at once
_ALARM_WINDOW = 200  # replies that the share of refused ones is taken over


class QuestionWriter:
    """The two files and their counts. One line in one of the two a request, until `accepted` are accepted.

    Raises:
        InputError: from `advance`, when more than `max_reject_share` of the last 200 replies were refused.
    """

    def __init__(self, folder: Path, journal: Journal, screen: Screen, accepted: int, max_reject_share: float):
        self.judged = Judged()
        self.rare = 0
        self.accepted_rare = 0
        self.rejected: Counter[str] = Counter()
        self.answered_by: Counter[str] = Counter()
        self.first_option: Counter[str] = Counter()
        self.entity_option: Counter[str] = Counter()
        self._journal = journal
        self._screen = screen
        self._wanted = accepted
        self._max_reject_share = max_reject_share
        self._recent: deque[bool] = deque(maxlen=_ALARM_WINDOW)
        paths = SynthesisPaths(folder)
        self._questions = _begin(paths.questions)
        self._rejected = _begin(paths.rejected)
        self._catch_up(paths)

    def advance(self, until: int | None = None) -> int:
        """Judge up to 256 further replies that have come in order, and write them out. Returns how many.

        Args:
            until: those of requests below this number only; None = all that have come.
        """
        before = self.judged.done
        accepted, rejected = [], []
        for entry, outcome in self._judge(self._ready(until)):
            self._count(entry, outcome)
            (accepted if isinstance(outcome, Question) else rejected).append(outcome.model_dump())
            if self.judged.accepted >= self._wanted:
                break
        for ledger, rows in ((self._questions, accepted), (self._rejected, rejected)):
            if rows:
                ledger.append(*rows)
        self._refuse_bad_teacher()
        return self.judged.done - before

    def close(self) -> None:
        self._questions.close()
        self._rejected.close()

    def _catch_up(self, paths: SynthesisPaths) -> None:
        known = self._journal.first_missing
        with tqdm(total=known, desc="synthesize: judging the journal", unit="reply", disable=not known) as bar:
            while judged := self.advance():
                bar.update(judged)
        for ledger, path in ((self._questions, paths.questions), (self._rejected, paths.rejected)):
            ledger.path = ledger.path.replace(path)

    def _ready(self, until: int | None) -> list[JournalEntry]:
        if self.judged.accepted >= self._wanted:
            return []
        first, end = self.judged.done, self._journal.first_missing if until is None else until
        return [self._journal.read(index) for index in range(first, min(end, first + _BATCH))]

    def _judge(self, entries: list[JournalEntry]) -> Iterator[tuple[JournalEntry, Question | Rejected]]:
        judged = self._screen.judge((entry.reply, entry.provenance) for entry in entries if entry.reply is not None)
        for entry in entries:
            yield entry, next(judged) if entry.reply is not None else _without_reply(entry)

    def _count(self, entry: JournalEntry, outcome: Question | Rejected) -> None:
        rare = entry.provenance.entity is not None
        self.judged.done += 1
        self.rare += rare
        self.answered_by[entry.provenance.answered_by or "no reply"] += 1
        self._recent.append(isinstance(outcome, Rejected))
        if isinstance(outcome, Rejected):
            self.rejected[outcome.reason] += 1
            return
        self.judged.accepted += 1
        self.accepted_rare += rare
        self.first_option[LETTERS[outcome.provenance.permutation.index(0)]] += 1
        for letter, text in outcome.options.items():
            if rare and text.casefold() == entry.provenance.entity.casefold():
                self.entity_option[letter] += 1

    def _refuse_bad_teacher(self) -> None:
        refused = sum(self._recent)
        if len(self._recent) == _ALARM_WINDOW and refused > self._max_reject_share * _ALARM_WINDOW:
            reasons = ", ".join(f"{reason} {count:,}" for reason, count in self.rejected.most_common(3))
            raise InputError(
                f"{refused} of the last {_ALARM_WINDOW} replies were refused (most: {reasons}); look into "
                f"{self._rejected.path}, then change the model or synthesis.checks in a new --run-dir, or raise "
                f"synthesis.max_reject_share = {self._max_reject_share:g} to go on here"
            )


def _without_reply(entry: JournalEntry) -> Rejected:
    return Rejected(index=entry.provenance.index, reason=entry.gave_up, detail=entry.detail, reply="")


def _begin(path: Path) -> JsonlLedger:
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    return JsonlLedger(partial)
