"""The form of a reply: from its text to a stem and options, or to a refusal with its reason.

The form is read tolerantly: JSON alone (as structured output gives it), in a code fence or within other text,
or a plain stem with lettered options; thoughts before the reply are left out. What it says is then checked
by `checks`.
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
# Lower case, and searched only where a hint stands: most texts have none, and are read ten times faster.
_ANSWER_TEXT = re.compile(
    r"\b(?:correct|right|best)\s+(?:answer|option|choice)\s*(?:is\b|:)|\banswer\s*(?:is\s+\(?[a-j]\b|:)|"
    r"[(\[]\s*(?:correct|right)(?:\s+answer)?\s*[)\]]|\bexplanation\s*:|\brationale\s*:|[\u2705\u2713\u2714]",
)
_ANSWER_HINTS = ("answer", "option", "choice", "correct", "right", "explanation", "rationale", *"\u2705\u2713\u2714")
_THOUGHTS = re.compile(r"^.*</think>", re.DOTALL)
_LABEL = re.compile(r"^\s*[(\[]?[A-J][.):\]]\s+")
_PLAIN_OPTION = re.compile(r"^\s*[-*]?\s*[(\[*]*([A-J])[.):\]]\**\s+(\S.*)$")
_STEM_LABEL = re.compile(r"^\W*(?:new\s+)?(?:question|stem)\s*(?:\d+\s*)?[:.]\W*", re.IGNORECASE)


class Refusal(NamedTuple):
    """Why a reply does not become a question: a short machine word, counted, and the evidence."""

    reason: str
    detail: str


class Draft(NamedTuple):
    """The question as the reply has it, its options in the reply's order."""

    stem: str
    options: tuple[str, ...]


@dataclass(frozen=True)
class _Found:
    """What a reply holds, before any check. `rest` is what stands beside the stem and the options."""

    stem: str
    options: list[str]
    rest: str


class _Reject(Exception):
    def __init__(self, reason: str, detail: str):
        super().__init__(reason)
        self.refusal = Refusal(reason, detail)


def read_reply(text: str) -> Draft | Refusal:
    """Read one reply.

    Returns:
        The draft, or a refusal whose reason is not_parsable, empty, option_count, duplicate_options,
        answer_leaked or option_too_long.
    """
    try:
        found = _read(text)
        _check(found)
        return Draft(found.stem, tuple(found.options))
    except _Reject as reject:
        return reject.refusal


def _read(text: str) -> _Found:
    text = _THOUGHTS.sub("", text)
    if not text.strip():
        raise _Reject("empty", "the reply is empty")
    found = _read_json(text) or _read_plain(text)
    if found is None:
        raise _Reject("not_parsable", "neither JSON with question and options nor a stem with lettered options")
    return found


def _check(found: _Found) -> None:
    count = len(found.options)
    if not found.stem or not all(found.options):
        raise _Reject("empty", "the stem or an option is empty")
    if not 2 <= count <= len(LETTERS):
        raise _Reject("option_count", f"{count} options; a question has 2-{len(LETTERS)}")
    if len({option.casefold() for option in found.options}) < count:
        raise _Reject("duplicate_options", f"options are not distinct: {found.options}")
    said = "\n|\n".join([found.rest, found.stem, *found.options]).lower()
    if any(hint in said for hint in _ANSWER_HINTS) and (leak := _ANSWER_TEXT.search(said)):
        raise _Reject("answer_leaked", f"the reply says {leak.group()!r}")
    if max(map(len, found.options)) > OPTION_CHARS:
        raise _Reject("option_too_long", f"an option has more than {OPTION_CHARS} characters")


def _read_json(text: str) -> _Found | None:
    """The first JSON object in `text` that has a stem and options."""
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
    _refuse_answer_keys(fields)
    return _Found(_clean(stem), _option_texts(options), "")


def _refuse_answer_keys(fields: dict[str, Any]) -> None:
    leaks = [key for key, item in fields.items() if _ANSWER_KEY.search(key) and item not in (None, "")]
    if leaks:
        raise _Reject("answer_leaked", f"the reply has the key {leaks[0]!r}")


def _option_texts(options: dict | list) -> list[str]:
    if isinstance(options, dict):
        options = [options[key] for key in sorted(options)]
    texts = [_option_of(item) if isinstance(item, dict) else item for item in options]
    texts = [item if isinstance(item, str | int | float) else "" for item in texts]
    return [_clean(_LABEL.sub("", str(item))) for item in texts]


def _option_of(item: dict[str, Any]) -> Any:
    """The text of {"A": text} or {"label": "A", "text": text}."""
    if len(item) == 1:
        return next(iter(item.values()))
    texts = [item[key] for key in _TEXT_KEYS if key in item]
    _refuse_answer_keys({key: value for key, value in item.items() if value is not False and value not in texts})
    return texts[0] if texts else ""


def _read_plain(text: str) -> _Found | None:
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
    return _Found(_clean(_STEM_LABEL.sub("", "\n".join(stem).strip())), options, "\n".join(rest))


def _clean(text: str) -> str:
    """Encodable text, spaces folded within lines, no empty lines."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    lines = (" ".join(line.split()) for line in text.splitlines())
    return "\n".join(filter(None, lines))
