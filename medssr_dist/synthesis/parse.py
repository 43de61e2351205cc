"""From a reply's text to a validated question, or to a rejection with its reason.

The form is read tolerantly (JSON alone, in a code fence or within other text; or a plain stem with
lettered options); the content is checked strictly, each check with a reason of its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from medssr_dist.records import LETTERS, Provenance, Question, Rejected

STEM_CHARS = 3000
OPTION_CHARS = 400

_STEM_KEYS = ("question", "stem")
_OPTION_KEYS = ("options", "choices")
_ANSWER_KEY = re.compile(r"answer|explanation|rationale|correct|solution", re.IGNORECASE)
_ANSWER_TEXT = re.compile(
    r"\b(?:correct|right|best)\s+(?:answer|option|choice)\s*(?:is\b|:)|\banswer\s*(?:is\s+\(?[A-J]\b|:)|"
    r"[(\[]\s*(?:correct|right)(?:\s+answer)?\s*[)\]]|\bexplanation\s*:|\brationale\s*:",
    re.IGNORECASE,
)
_LABEL = re.compile(r"^\s*[(\[]?[A-J][.):\]]\s+")
_PLAIN_OPTION = re.compile(r"^\s*[-*]?\s*[(\[*]*([A-J])[.):\]]\**\s+(\S.*)$")
_STEM_LABEL = re.compile(r"^\W*(?:new\s+)?(?:question|stem)\s*(?:\d+\s*)?[:.]\W*", re.IGNORECASE)


@dataclass(frozen=True)
class _Draft:
    """What a reply holds, before any check. `rest` is what stands beside the stem and the options."""

    stem: str
    options: list[str]
    rest: str


class _Reject(Exception):
    def __init__(self, reason: str, detail: str):
        super().__init__(reason)
        self.reason, self.detail = reason, detail


def parse_reply(text: str, provenance: Provenance, taken: Collection[str] = ()) -> Question | Rejected:
    """Read and check one reply.

    Args:
        text: the reply.
        provenance: of the request; becomes the question's.
        taken: ids of the seeds and of the questions accepted before; such a question is a duplicate.

    Returns:
        The question (source "synthetic", rare when an entity was injected), or a rejection whose reason
        is not_parsable, empty, option_count, duplicate_options, answer_leaked, too_long or duplicate.
    """
    try:
        draft = _read(text)
        _check(draft)
        question = Question.make(
            draft.stem, draft.options, source="synthetic", rare=provenance.entity is not None, provenance=provenance
        )
        if question.id in taken:
            raise _Reject("duplicate", f"question {question.id} is a seed or was accepted before")
        return question
    except _Reject as reject:
        return Rejected(index=provenance.index, reason=reject.reason, detail=reject.detail, reply=text)


def _read(text: str) -> _Draft:
    if not text.strip():
        raise _Reject("empty", "the reply is empty")
    draft = _read_json(text) or _read_plain(text)
    if draft is None:
        raise _Reject("not_parsable", "neither JSON with question and options nor a stem with lettered options")
    return draft


def _check(draft: _Draft) -> None:
    count = len(draft.options)
    if not draft.stem or not all(draft.options):
        raise _Reject("empty", "the stem or an option is empty")
    if not 2 <= count <= len(LETTERS):
        raise _Reject("option_count", f"{count} options; a question has 2-{len(LETTERS)}")
    if len({option.casefold() for option in draft.options}) < count:
        raise _Reject("duplicate_options", f"options are not distinct: {draft.options}")
    for part in (draft.rest, draft.stem, *draft.options):
        if leak := _ANSWER_TEXT.search(part):
            raise _Reject("answer_leaked", f"the reply says {leak.group()!r}")
    if len(draft.stem) > STEM_CHARS or max(map(len, draft.options)) > OPTION_CHARS:
        raise _Reject("too_long", f"stem over {STEM_CHARS} or an option over {OPTION_CHARS} characters")


def _read_json(text: str) -> _Draft | None:
    """The first JSON object in `text` that has a stem and options."""
    decoder = json.JSONDecoder(strict=False)
    start = text.find("{")
    while start >= 0:
        try:
            value, end = decoder.raw_decode(text, start)
        except (json.JSONDecodeError, RecursionError):
            end = start + 1
        else:
            draft = _from_json(value)
            if draft:
                return draft
        start = text.find("{", end)
    return None


def _from_json(value: dict[str, Any]) -> _Draft | None:
    fields = {key.strip().casefold(): item for key, item in value.items()}
    stem = next((fields[key] for key in _STEM_KEYS if key in fields), None)
    options = next((fields[key] for key in _OPTION_KEYS if key in fields), None)
    if isinstance(stem, dict):  # {"question": {"stem": ..., "options": ...}}
        return _from_json(stem)
    if not isinstance(stem, str) or not isinstance(options, dict | list):
        return None
    leaks = [key for key, item in fields.items() if _ANSWER_KEY.search(key) and item not in (None, "")]
    if leaks:
        raise _Reject("answer_leaked", f"the reply has the key {leaks[0]!r}")
    return _Draft(_clean(stem), _option_texts(options), "")


def _option_texts(options: dict | list) -> list[str]:
    if isinstance(options, dict):
        options = [options[key] for key in sorted(options)]
    texts = [next(iter(item.values()), "") if isinstance(item, dict) and len(item) == 1 else item for item in options]
    texts = [item if isinstance(item, str | int | float) else "" for item in texts]
    return [_clean(_LABEL.sub("", str(item))) for item in texts]


def _read_plain(text: str) -> _Draft | None:
    """A stem, then lines "A. ..", "B) ..", "(C) .." whose letters run from A without a gap."""
    stem, options, rest = [], [], []
    for line in text.splitlines():
        match = _PLAIN_OPTION.match(line)
        if match and match.group(1) == LETTERS[len(options) % len(LETTERS)]:
            options.append(_clean(match.group(2)))
        else:
            (rest if options else stem).append(line)
    if not options:
        return None
    return _Draft(_clean(_STEM_LABEL.sub("", "\n".join(stem).strip())), options, "\n".join(rest))


def _clean(text: str) -> str:
    """Encodable text, spaces folded within lines, no empty lines."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    lines = (" ".join(line.split()) for line in text.splitlines())
    return "\n".join(filter(None, lines))
