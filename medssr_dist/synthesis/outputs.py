"""`questions.jsonl` and `rejected.jsonl`: what the journal's replies come to, in the order of the requests.

Both are derived: they are built anew from the journal when a run starts, appear under their names once
they hold all that is known, and then grow as further prefixes of the requests are complete. Their lines
are therefore the same however often the run was interrupted, and a reader may follow them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from medssr_dist.jsonl import JsonlLedger
from medssr_dist.records import Question, Rejected
from medssr_dist.synthesis.journal import Journal
from medssr_dist.synthesis.parse import parse_reply

QUESTIONS = "questions.jsonl"
REJECTED = "rejected.jsonl"
_BATCH = 1000  # replies held in memory at once while catching up


class Outputs:
    """The two files and their counts. One line in one of the two a request."""

    def __init__(self, folder: Path, journal: Journal, requested: int, seed_ids: Iterable[str]):
        self.done = 0
        self.accepted = 0
        self.accepted_rare = 0
        self.rare = 0
        self.rejected: Counter[str] = Counter()
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self._journal = journal
        self._requested = requested
        self._taken = set(seed_ids)
        self._questions = _begin(folder / QUESTIONS)
        self._rejected = _begin(folder / REJECTED)
        self.advance()
        for ledger, name in ((self._questions, QUESTIONS), (self._rejected, REJECTED)):
            ledger.path = ledger.path.replace(folder / name)

    def advance(self) -> None:
        """Write out every request whose reply, and all replies before it, are in the journal."""
        while self._ready():
            accepted, rejected = [], []
            while self._ready() and len(accepted) + len(rejected) < _BATCH:
                outcome = self._next()
                (accepted if isinstance(outcome, Question) else rejected).append(outcome.model_dump())
            for ledger, rows in ((self._questions, accepted), (self._rejected, rejected)):
                if rows:
                    ledger.append(*rows)

    def close(self) -> None:
        self._questions.close()
        self._rejected.close()

    def _ready(self) -> bool:
        return self.done < self._requested and self.done in self._journal

    def _next(self) -> Question | Rejected:
        entry = self._journal.read(self.done)
        outcome = parse_reply(entry.reply, entry.provenance, self._taken)
        rare = entry.provenance.entity is not None
        self.done += 1
        self.rare += rare
        self.prompt_tokens += entry.prompt_tokens
        self.completion_tokens += entry.completion_tokens
        if isinstance(outcome, Question):
            self._taken.add(outcome.id)
            self.accepted += 1
            self.accepted_rare += rare
        else:
            self.rejected[outcome.reason] += 1
        return outcome


def _begin(path: Path) -> JsonlLedger:
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    return JsonlLedger(partial)
