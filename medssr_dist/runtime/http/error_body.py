"""What a server says about a failure: the words, codes, status and wait in the body, whatever its form.

OpenAI's form is {"error": {"message", "type", "code", "param"}}. Gateways and other servers use lists, `detail`,
`errors`, `base_resp`, an error of their provider as text within `metadata.raw` or `message`, plain text, or HTML.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from medssr_dist.runtime.http.http_answer import decode_text, parse_json, replace_surrogates

_MOST_BYTES = 2**16  # of a body that only explains a failure
_MOST_PARTS = 300
_MOST_DEPTH = 8
_MESSAGE_CHARS = 2000
_CODE_CHARS = 100
_INNER_CHARS = 10_000  # of an error within the text of another
_WORDS = (
    "message",
    "msg",
    "detail",
    "error",
    "error_msg",
    "error_message",
    "error_description",
    "status_msg",
    "errmsg",
    "title",
    "raw",
)
_CODES = (
    "code",
    "type",
    "status",
    "reason",
    "error_code",
    "errcode",
    "status_code",
    "statuscode",
    "error",
    "error_type",
    "param",
    "name",
    "@type",
    "__type",
)
_WAITS = {
    "retry_after": 1.0,
    "retryafter": 1.0,
    "retry_after_seconds": 1.0,
    "retry_after_ms": 0.001,
    "retrydelay": 1.0,
    "estimated_time": 1.0,
}
_STATUSES = {"code", "status", "status_code", "statuscode", "error_code", "error"}
_SKIPPED = {"input", "ctx", "messages", "prompt", "request", "body", "choices"}  # they may repeat the prompt
_HTML = re.compile(rb"\s*(?:<!doctype html|<html|<head|<\?xml|<body|<!--)", re.IGNORECASE)
_NAMES_ERROR = re.compile(r"[\"']error[\"']\s*:")
_TITLE = re.compile(r"<title[^>]*>(.*?)</title>", re.IGNORECASE | re.DOTALL)


@dataclass
class ErrorBody:
    """What a body says about a failure.

    Attributes:
        message: the words for people; "" if there are none.
        codes: codes, types, statuses and reasons in small letters, such as "context_length_exceeded".
        status: the HTTP status that the body names, None if it names none.
        waits: seconds, or durations such as "17s", after which a retry is asked for.
        headers: headers of the provider behind a gateway, in small letters.
        is_html: the body is a page.

    Example: ErrorBody("Rate limit reached", {"rate_limit_exceeded", "tokens"}, status=429)
    """

    message: str = ""
    codes: set[str] = field(default_factory=set)
    status: int | None = None
    waits: list[float | str] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    is_html: bool = False


def read_error_body(body: bytes, content_type: str = "") -> ErrorBody:
    """Read the body of a failure. Never raises."""
    body = body[:_MOST_BYTES]
    if _HTML.match(body):
        text = decode_text(body, content_type)
        title = _TITLE.search(text)
        words = title[1] if title and title[1].strip() else text
        return ErrorBody(replace_surrogates(words)[:_MESSAGE_CHARS], is_html=True)
    try:
        value = parse_json(body, content_type)
    except ValueError:
        return ErrorBody(replace_surrogates(decode_text(body, content_type))[:_MESSAGE_CHARS])
    return describe_error(value)


def describe_error(value: Any) -> ErrorBody:
    """Read the parsed body of a failure, or the error within a reply."""
    found = ErrorBody()
    messages: list[str] = []
    for number, (key, part) in enumerate(_walk("error", value, 0)):
        if number >= _MOST_PARTS:
            break
        _note(found, messages, key, part)
    distinct = dict.fromkeys(filter(None, (message.strip() for message in messages)))
    text = ": ".join(distinct) if distinct else _show(value)
    found.message = replace_surrogates(text)[:_MESSAGE_CHARS]
    return found


def _walk(key: str, value: Any, depth: int) -> Iterator[tuple[str, Any]]:
    """Yield (key, value) of what a body holds; an error as text within the text is read too."""
    if depth > _MOST_DEPTH:
        return
    if key in _WORDS and isinstance(value, str) and (inner := _find_inner_error(value)):
        words, value = inner
        yield key, words
    if isinstance(value, dict):
        yield from ((each, part) for each, part in _walk_fields(value, depth))
    elif isinstance(value, list):
        for part in value[:20]:
            yield from _walk(key, part, depth + 1)
    else:
        yield key, value


def _walk_fields(fields: dict[Any, Any], depth: int) -> Iterator[tuple[str, Any]]:
    for name, part in fields.items():
        key = str(name).casefold()
        if key == "headers" and isinstance(part, dict):
            yield key, part
        elif key == "flagged_input" or (part is True and key in ("flagged", "filtered")):
            yield "code", key
        elif key not in _SKIPPED:
            yield from _walk(key, part, depth + 1)


def _find_inner_error(text: str) -> tuple[str, Any] | None:
    """Return the words before an error that a text ends with, as JSON or as Python prints it, and that error."""
    start = min((at for at in (text.find("{"), text.find("[{")) if at >= 0), default=-1)
    inner = text[start : start + _INNER_CHARS]
    if start < 0 or (start > 0 and not _NAMES_ERROR.search(inner)):
        return None
    try:
        return text[:start].rstrip(" :-\n"), parse_json(inner.encode("utf-8", "replace"))
    except ValueError:
        pass
    try:
        return text[:start].rstrip(" :-\n"), ast.literal_eval(inner.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _note(found: ErrorBody, messages: list[str], key: str, part: Any) -> None:
    if key == "headers":
        found.headers |= {str(name).casefold(): str(value)[:_CODE_CHARS] for name, value in part.items()}
        return
    if key in _WAITS and isinstance(part, int | float | str) and not isinstance(part, bool):
        found.waits.append(part * _WAITS[key] if isinstance(part, int | float) else part[:_CODE_CHARS])
    if key in _WORDS and isinstance(part, str):
        messages.append(part[:_MESSAGE_CHARS])
    if key in _CODES and isinstance(part, int | str) and not isinstance(part, bool):
        code = str(part)[:_CODE_CHARS].casefold()
        found.codes.add(code)
        if key in _STATUSES and re.fullmatch(r"[45]\d\d", code):
            found.status = found.status or int(code)


def _show(value: Any) -> str:
    return value if isinstance(value, str) else str(value)[:_MESSAGE_CHARS]
