"""Grounding: a question about a rare disease is based on the passages in its prompt.

The check counts the distinct content words that the question shares with the passages. Words of its seeds and of the
entity's name do not count, because they could be there without a passage. The check shows that the passages were
used, not that the question is correct.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from medssr_dist.data.records import Provenance, Question
from medssr_dist.synthesis.checks.reply_parts import Draft, Rejection
from medssr_dist.synthesis.checks.wording import fold, join_text

_SHORTEST = 4  # letters of a content word
# Words of four letters and more that any examination question may contain.
_COMMON = frozenset(
    b"about above after also among been before being between both could does during each following from has have "
    b"having into likely many more most must newly often only other over patient patients presents shows such than "
    b"that their them then there these they this those through under very were what when where which while whose "
    b"will with within without would year years male female disease disorder syndrome condition diagnosis question "
    b"associated commonly frequent known rare caused".split()
)


class Grounding:
    """Rejects a rare question that takes fewer than `least` content words from its passages.

    Args:
        seeds: all seed questions, so that those of each request can be found by id.
        passage_text: passage id -> text.
    """

    def __init__(self, least: int, seeds: Iterable[Question], passage_text: Callable[[str], str]):
        self._least = least
        self._seeds = {seed.id: seed for seed in seeds}
        self._passage_text = passage_text

    def __call__(self, draft: Draft, provenance: Provenance) -> Rejection | None:
        if provenance.entity is None:
            return None
        seeds = (self._seeds[seed] for seed in provenance.seed_ids)
        elsewhere = [join_text(seed.stem, seed.options.values()) for seed in seeds]
        known = _content_words([provenance.entity, *elsewhere])
        offered = _content_words(map(self._passage_text, provenance.passage_ids))
        taken = (_content_words([draft.stem, *draft.options]) & offered) - known
        if len(taken) >= self._least:
            return None
        listed = ", ".join(sorted(word.decode() for word in taken)) or "none"
        return Rejection("grounding", f"{len(taken)} content words are from the passages ({listed}), not {self._least}")


def _content_words(texts: Iterable[str]) -> set[bytes]:
    words = {word for text in texts for word in fold(text).split() if len(word) >= _SHORTEST}
    return words - _COMMON
