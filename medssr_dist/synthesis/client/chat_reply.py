"""Reads the reply in the answer of a chat API, whatever its form. What was paid for is used, or rejected once.

The text may be absent, a refusal, a list of parts (with thoughts among them), an object, or a stream of events that
nobody asked for; the completion may lie in what a gateway wraps around it. A reply without text is a reply: it was paid
for, and asking again would be paid for again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from pydantic import SecretStr

from medssr_dist.runtime.api_key import scrub
from medssr_dist.runtime.http.api_failure import ApiFailure, classify_error, quote_words
from medssr_dist.runtime.http.error_body import ErrorBody, describe_error, read_error_body
from medssr_dist.runtime.http.event_stream import END_MARK, drop_comments, is_event_stream, split_events
from medssr_dist.runtime.http.failure_words import Scope
from medssr_dist.runtime.http.http_answer import (
    HttpAnswer,
    decode_text,
    parse_json,
    read_count,
    read_name,
    replace_surrogates,
)

_BROKEN_OFF = {
    "abort",
    "error",
    "insufficient_system_resource",
    "network_error",
}  # finish reasons for which another try may pass
_TEXT_TYPES = {"", "text", "output_text", "input_text"}
_WRAPPERS = ("data", "result", "response", "output", "body", "completion")
_MOST_WRAPPERS = 4
_ERROR_KEYS = ("error", "errors", "detail", "message", "error_msg", "error_code", "base_resp", "code")


class ReplyParts(NamedTuple):
    """What a chat completion holds; counts are None where they are absent or no counts.

    Example: ReplyParts('{"question": ...}', "stop", "gpt-x-2025-01", 812, 140)
    """

    text: str
    finish_reason: str
    model: str
    prompt_tokens: int | None
    completion_tokens: int | None


class NoReply(Exception):
    """A try that brought no reply; `failure` says what it is about."""

    def __init__(self, failure: ApiFailure):
        super().__init__(failure.reason)
        self.failure = failure


def read_chat_reply(answer: HttpAnswer, api_key: SecretStr | None = None) -> ReplyParts:
    """Read the body of an answer of status 2xx. Raises NoReply if it holds no reply."""
    payload = _parse_payload(answer, api_key)
    choices = payload.get("choices")
    if "choices" not in payload or (not choices and _names_error(payload)):
        raise NoReply(_explain_missing_choices(answer, payload, api_key))
    choice = choices[0] if isinstance(choices, list) and choices else choices or {}
    if not isinstance(choice, dict):
        raise NoReply(_unusable(answer, "is JSON, but not a chat completion", api_key))
    if choice.get("error"):
        raise NoReply(_billed(classify_error(answer, describe_error(choice["error"]), api_key)))
    message = choice.get("message") or choice.get("delta") or {}
    if not isinstance(message, dict):
        message = {"content": message}
    finish_reason = _read_finish_reason(choice, message)
    if finish_reason in _BROKEN_OFF:
        raise NoReply(try_failed(f"the server broke the reply off (finish_reason {finish_reason!r})"))
    usage = payload.get("usage") if isinstance(payload.get("usage"), dict) else {}
    return ReplyParts(
        text=scrub(replace_surrogates(_read_text(message, choice)), api_key),
        finish_reason=finish_reason,
        model=scrub(read_name(payload.get("model")), api_key),
        prompt_tokens=_read_usage(usage, "prompt_tokens", "input_tokens"),
        completion_tokens=_read_usage(usage, "completion_tokens", "output_tokens"),
    )


def try_failed(reason: str, may_be_billed: bool = True) -> ApiFailure:
    """Return the failure of one try, after which another may pass."""
    return ApiFailure(Scope.TRY, reason, may_be_billed)


def _parse_payload(answer: HttpAnswer, api_key: SecretStr | None) -> dict[str, Any]:
    body = answer.body
    if is_event_stream(body):
        if any(split_events(body)) or END_MARK in body:
            return _merge_events(answer, api_key)
        body = drop_comments(body)  # signs of life before a plain body
    content_type = answer.headers.get("Content-Type", "")
    try:
        payload = _unwrap(parse_json(body, content_type))
    except ValueError:
        if answer.body.lstrip().startswith(b"<"):
            words = quote_words(decode_text(answer.body, content_type)[:2000], api_key)
            raise NoReply(ApiFailure(Scope.ADDRESS, f"it answers HTML: {words}")) from None
        raise NoReply(_unusable(answer, "is not JSON", api_key)) from None
    if not isinstance(payload, dict):
        raise NoReply(_no_completion(answer, api_key))
    return payload


def _unwrap(value: Any, depth: int = 0) -> Any:
    """Return the completion that an object, a list of one or JSON as text wraps; `value` if there is none."""
    if depth > _MOST_WRAPPERS or (isinstance(value, dict) and "choices" in value):
        return value
    if isinstance(value, str):
        try:
            return _unwrap(parse_json(value.encode("utf-8", "replace")), depth + 1)
        except ValueError:
            return value
    if isinstance(value, list):
        return _unwrap(value[0], depth + 1) if len(value) == 1 else value
    if isinstance(value, dict):
        for key in _WRAPPERS:
            inner = _unwrap(value.get(key), depth + 1)
            if isinstance(inner, dict) and "choices" in inner:
                return value | inner
    return value


def _merge_events(answer: HttpAnswer, api_key: SecretStr | None) -> dict[str, Any]:
    """Return the completion that a stream of events amounts to."""
    texts: list[str] = []
    merged: dict[str, Any] = {}
    finish_reason: Any = None
    message: dict[str, Any] = {}
    for event in split_events(answer.body):
        try:
            chunk = parse_json(event)
        except ValueError:
            continue
        if not isinstance(chunk, dict):
            continue
        if chunk.get("error"):
            raise NoReply(_billed(classify_error(answer, describe_error(chunk["error"]), api_key)))
        merged |= {key: value for key, value in chunk.items() if value is not None and key != "choices"}
        choices = chunk.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
        delta = choice.get("delta") or choice.get("message") or {}
        if isinstance(delta, dict):
            texts.append(_read_text(delta, choice))
            message |= {key: value for key, value in delta.items() if key == "refusal" and value}
        finish_reason = choice.get("finish_reason") or finish_reason
    if finish_reason is None and END_MARK not in answer.body:
        raise NoReply(_unusable(answer, "is a stream of events that ends early, or holds no completion", api_key))
    return merged | {"choices": [{"message": message | {"content": "".join(texts)}, "finish_reason": finish_reason}]}


def _explain_missing_choices(answer: HttpAnswer, payload: Mapping[str, Any], api_key: SecretStr | None) -> ApiFailure:
    """Return the failure of a body without choices: the error that it holds, or an answer that is no completion."""
    said = describe_error(dict(payload))
    if said.status or any(payload.get(key) and not isinstance(payload.get("message"), dict) for key in _ERROR_KEYS):
        return classify_error(answer, said, api_key)
    return _no_completion(answer, api_key)


def _names_error(payload: Mapping[str, Any]) -> bool:
    """Whether a body names an error: in `error`, or in the form {"base_resp": {"status_code": 1002}}."""
    said = payload.get("base_resp")
    return bool(payload.get("error") or payload.get("errors") or (isinstance(said, dict) and said.get("status_code")))


def _no_completion(answer: HttpAnswer, api_key: SecretStr | None) -> ApiFailure:
    """Return the failure of an address that answers with JSON of another kind: it may be billed each time."""
    failure = _unusable(answer, "is JSON, but not a chat completion", api_key)
    return replace(failure, scope=Scope.ADDRESS)


def _unusable(answer: HttpAnswer, what: str, api_key: SecretStr | None) -> ApiFailure:
    said: ErrorBody = read_error_body(answer.body, answer.headers.get("Content-Type", ""))
    status = "" if answer.status == 200 else f"HTTP {answer.status}: "
    return try_failed(f"{status}the reply {what}: {quote_words(said.message, api_key)}")


def _billed(failure: ApiFailure) -> ApiFailure:
    return replace(failure, may_be_billed=True)


def _read_text(message: Mapping[str, Any], choice: Mapping[str, Any]) -> str:
    content = message.get("content")
    if content is None:
        content = choice.get("text")
    text = _join_parts(content)
    refusal = message.get("refusal")
    return text if text or not isinstance(refusal, str) else refusal


def _join_parts(content: Any) -> str:
    """Return the text of a message's content: a text, a part, or a list of parts without the thoughts among them."""
    if content is None:
        return ""
    if isinstance(content, list):
        return "".join(map(_join_parts, content))
    if not isinstance(content, dict):
        return str(content)
    if "type" not in content and "text" not in content:  # a server that has parsed the reply's JSON
        return json.dumps(content, ensure_ascii=False)
    if content.get("type", "") not in _TEXT_TYPES:
        return content["refusal"] if isinstance(content.get("refusal"), str) else ""
    text = content.get("text", content.get("content"))
    return _join_parts(text.get("value") if isinstance(text, dict) else text)


def _read_finish_reason(choice: Mapping[str, Any], message: Mapping[str, Any]) -> str:
    """Return why a reply ended; "refusal" if the model refused in the field that OpenAI's API has for that."""
    parts = message.get("content")
    refused = isinstance(parts, list) and any(isinstance(part, dict) and part.get("refusal") for part in parts)
    if message.get("refusal") or refused:
        return "refusal"
    reason = choice.get("finish_reason")
    return read_name(reason.get("type") if isinstance(reason, dict) else reason)


def _read_usage(usage: Any, *names: str) -> int | None:
    counts = (read_count(usage.get(name)) for name in names)
    return next((count for count in counts if count is not None), None)
