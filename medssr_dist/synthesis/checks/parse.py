"""Parses the text of a reply into a stem and options, or into a rejection with its reason.

Several formats are accepted: JSON alone (as structured output gives it), JSON in a code fence or within other text,
and a plain stem with lettered options. Reasoning before the reply (`</think>`) is removed. The content is checked by
the other modules of `checks`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, NamedTuple

from medssr_dist.data.records import LETTERS

OPTION_CHARS = 400

_STEM_KEYS = ("question", "stem")
_OPTION_KEYS = ("options", "choices")
_TEXT_KEYS = ("text", "option", "value", "content")
_ANSWER_KEY = re.compile(r"answer|expla|rationale|reason|correct|solution|justif", re.IGNORECASE)
# Lower case, and searched only if the text contains a hint: most texts do not, and parse ten times faster.
_ANSWER_TEXT = re.compile(
    r"\b(?:correct|right|best)\s+(?:answer|option|choice)\s*(?:is\b|:)|\banswer\s*(?:is\s+\(?[a-j]\b|:)|"
    r"[(\[]\s*(?:correct|right)(?:\s+answer)?\s*[)\]]|\bexplanation\s*:|\brationale\s*:|[\u2705\u2713\u2714]",
)
_ANSWER_HINTS = ("answer", "option", "choice", "correct", "right", "explanation", "rationale", *"\u2705\u2713\u2714")
_REASONING = re.compile(r"^.*</think>", re.DOTALL)
_LABEL = re.compile(r"^\s*[(\[]?[A-J][.):\]]\s+")
_PLAIN_OPTION = re.compile(r"^\s*[-*]?\s*[(\[*]*([A-J])[.):\]]\**\s+(\S.*)$")
_STEM_LABEL = re.compile(r"^\W*(?:new\s+)?(?:question|stem)\s*(?:\d+\s*)?[:.]\W*", re.IGNORECASE)


class Rejection(NamedTuple):
    """Why a reply does not become a question.

    `reason` is a short machine-readable word that is counted; `detail` is the evidence.

    Example: Rejection("option_count", "1 options; a question has 2-10")
    """

    reason: str
    detail: str


class Draft(NamedTuple):
    """The question in a reply, with the options in the reply's order.

    Example: Draft("Which vitamin prevents scurvy?", ("Vitamin A", "Vitamin C"))
    """

    stem: str
    options: tuple[str, ...]


@dataclass(frozen=True)
class _Found:
    """The parts of a reply before any check. `rest` is the text outside the stem and the options."""

    stem: str
    options: list[str]
    rest: str


class _RejectedReply(Exception):
    def __init__(self, reason: str, detail: str):
        super().__init__(reason)
        self.rejection = Rejection(reason, detail)


def read_reply(text: str) -> Draft | Rejection:
    """Parse one reply.

    Returns:
        The draft, or a rejection whose reason is not_parsable, empty, option_count, duplicate_options,
        answer_leaked or option_too_long.
    """
    try:
        found = _read(text)
        _check(found)
        return Draft(found.stem, tuple(found.options))
    except _RejectedReply as reject:
        return reject.rejection


def _read(text: str) -> _Found:
    text = _REASONING.sub("", text)
    if not text.strip():
        raise _RejectedReply("empty", "the reply is empty")
    found = _read_json(text) or _read_plain(text)
    if found is None:
        raise _RejectedReply("not_parsable", "neither JSON with question and options nor a stem with lettered options")
    return found


def _check(found: _Found) -> None:
    count = len(found.options)
    if not found.stem or not all(found.options):
        raise _RejectedReply("empty", "the stem or an option is empty")
    if not 2 <= count <= len(LETTERS):
        raise _RejectedReply("option_count", f"{count} options; a question has 2-{len(LETTERS)}")
    if len({option.casefold() for option in found.options}) < count:
        raise _RejectedReply("duplicate_options", f"options are not distinct: {found.options}")
    whole = "\n|\n".join([found.rest, found.stem, *found.options]).lower()
    if any(hint in whole for hint in _ANSWER_HINTS) and (leak := _ANSWER_TEXT.search(whole)):
        raise _RejectedReply("answer_leaked", f"the reply says {leak.group()!r}")
    if max(map(len, found.options)) > OPTION_CHARS:
        raise _RejectedReply("option_too_long", f"an option has more than {OPTION_CHARS} characters")


def _read_json(text: str) -> _Found | None:
    """Return the first JSON object in `text` that has a stem and options, or None."""
    decoder = json.JSONDecoder(strict=False)
    start = text.find("{")
    while start >= 0:
        try:
            value, end = decoder.raw_decode(text, start)
        except (json.JSONDecodeError, RecursionError):
            end = start + 1
        else:
            found = _from_json(value)
            if found:
                return found
        start = text.find("{", end)
    return None


def _from_json(value: dict[str, Any]) -> _Found | None:
    fields = {key.strip().casefold(): item for key, item in value.items()}
    stem = next((fields[key] for key in _STEM_KEYS if key in fields), None)
    options = next((fields[key] for key in _OPTION_KEYS if key in fields), None)
    if isinstance(stem, dict):  # {"question": {"stem": ..., "options": ...}}
        return _from_json(stem)
    if not isinstance(stem, str) or not isinstance(options, dict | list):
        return None
    _reject_answer_keys(fields)
    return _Found(_clean(stem), _read_options(options), "")


def _reject_answer_keys(fields: dict[str, Any]) -> None:
    leaks = [key for key, item in fields.items() if _ANSWER_KEY.search(key) and item not in (None, "")]
    if leaks:
        raise _RejectedReply("answer_leaked", f"the reply has the key {leaks[0]!r}")


def _read_options(options: dict[str, Any] | list[Any]) -> list[str]:
    if isinstance(options, dict):
        options = [options[key] for key in sorted(options)]
    texts = [_read_option(item) if isinstance(item, dict) else item for item in options]
    texts = [item if isinstance(item, str | int | float) else "" for item in texts]
    return [_clean(_LABEL.sub("", str(item))) for item in texts]


def _read_option(item: dict[str, Any]) -> Any:
    """Return the text in {"A": text} or {"label": "A", "text": text}."""
    if len(item) == 1:
        return next(iter(item.values()))
    texts = [item[key] for key in _TEXT_KEYS if key in item]
    _reject_answer_keys({key: value for key, value in item.items() if value is not False and value not in texts})
    return texts[0] if texts else ""


def _read_plain(text: str) -> _Found | None:
    """Parse a stem followed by lines "A. ..", "B) ..", "(C) .." with the letters in order from A, or return None."""
    stem: list[str] = []
    options: list[str] = []
    rest: list[str] = []
    for line in text.splitlines():
        match = _PLAIN_OPTION.match(line)
        if match and match.group(1) == LETTERS[len(options) % len(LETTERS)]:
            options.append(_clean(match.group(2)))
        else:
            (rest if options else stem).append(line)
    if not options:
        return None
    return _Found(_clean(_STEM_LABEL.sub("", "\n".join(stem).strip())), options, "\n".join(rest))


def _clean(text: str) -> str:
    """Return text that can be written as UTF-8, with single spaces and without empty lines."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    lines = (" ".join(line.split()) for line in text.splitlines())
    return "\n".join(filter(None, lines))
