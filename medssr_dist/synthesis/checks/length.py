"""Length of the stem in words: too short tells no case, too long is not read."""

from __future__ import annotations

from medssr_dist.records import Provenance
from medssr_dist.synthesis.parse import Draft, Refusal


def min_words(draft: Draft, provenance: Provenance, least: int) -> Refusal | None:
    count = len(draft.stem.split())
    return Refusal("min_words", f"the stem has {count} words, at least {least} are wanted") if count < least else None


def max_words(draft: Draft, provenance: Provenance, most: int) -> Refusal | None:
    count = len(draft.stem.split())
    return Refusal("max_words", f"the stem has {count} words, at most {most} are wanted") if count > most else None
