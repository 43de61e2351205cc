"""Turns the body of a chat request into the body of a chat completion."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from medssr_dist.data.records import LETTERS, hash_content
from medssr_dist.offline_teacher.common_questions import compose_common
from medssr_dist.offline_teacher.faults import FaultDraws, spoil
from medssr_dist.offline_teacher.rare_questions import compose_rare
from medssr_dist.offline_teacher.reading import PromptParts, read_prompt
from medssr_dist.offline_teacher.verdicts import JudgedQuestion, compose_verdict, read_judged_question, spoil_verdict

MODEL = "offline-teacher"
NOTICE = "offline rule-based stand-in for a synthesis API; not a language model"
_MAX_OPTIONS = 5
_TOKEN_CHARS = 4


class BadRequest(Exception):
    """A request that fails at every retry; it is answered with status 400."""


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A chat request that can be answered.

    Attributes:
        schema: the JSON schema that the reply must follow, None for none.
        key: the hash of the messages.
        max_tokens: the limit of the reply; None for none.
    """

    messages: list[dict[str, Any]]
    model: str
    prompt: PromptParts | JudgedQuestion
    schema: Mapping[str, Any] | None
    key: str
    max_tokens: int | None = None


def read_request(body: Any, knows_schemas: bool) -> ChatRequest:
    """Parse a request body. Raises BadRequest if it is no chat request or asks for something unsupported."""
    try:
        messages, model = body["messages"], str(body.get("model") or MODEL)
        prompt = read_prompt(messages) or read_judged_question(messages)
    except (LookupError, TypeError, AttributeError):
        raise BadRequest("the body is not a chat completion request") from None
    if prompt is None:
        raise BadRequest(f"{NOTICE}: it answers the prompts of `medssr synthesize` only")
    schema, limit = _read_schema(body, knows_schemas), body.get("max_tokens")
    return ChatRequest(
        messages, model, prompt, schema, hash_content(messages), limit if isinstance(limit, int) else None
    )


def _read_schema(body: Mapping[str, Any], supported: bool) -> Mapping[str, Any] | None:
    asked = body.get("response_format") or {"type": "text"}
    kind = asked.get("type") if isinstance(asked, dict) else None
    if kind == "text":
        return None
    if kind != "json_schema" or not supported:
        raise BadRequest(f"response_format of type {kind!r} is not supported")
    try:
        if asked["json_schema"]["name"]:
            return asked["json_schema"]["schema"]["properties"] and asked["json_schema"]["schema"]
    except (LookupError, TypeError):
        pass
    raise BadRequest("response_format.json_schema needs a name, and a schema with properties")


def complete(asked: ChatRequest, random_seed: int, draws: FaultDraws) -> dict[str, Any]:
    """Return the chat completion. Its usage assumes four characters per token."""
    flaw = draws.draw_flaw(asked.messages, structured=asked.schema is not None)
    if isinstance(asked.prompt, JudgedQuestion):
        text = compose_verdict(asked.prompt)
        text = spoil_verdict(text, flaw) if flaw else text
    else:
        text = compose_reply(asked.prompt, f"{random_seed} {asked.key}", _max_options(asked.schema))
        text = spoil(text, flaw) if flaw else text
    if asked.schema is not None:
        text = _apply_schema(text, asked.schema)
    most = len(text) if asked.max_tokens is None else _TOKEN_CHARS * asked.max_tokens
    finish_reason = "stop" if len(text) <= most else "length"
    text = text[:most]
    prompt_tokens = sum(len(str(message.get("content", ""))) for message in asked.messages) // _TOKEN_CHARS
    completion_tokens = len(text) // _TOKEN_CHARS
    return {
        "id": f"chatcmpl-{asked.key}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": asked.model,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        },
    }


def _max_options(schema: Mapping[str, Any] | None) -> int:
    letters = schema["properties"].get("options", {}).get("properties") if schema else None
    return len(letters) if letters else _MAX_OPTIONS


def _apply_schema(text: str, schema: Mapping[str, Any]) -> str:
    """Return the reply in the form of the schema: its properties in its order, options as a list or an object."""
    question = json.loads(text)
    properties = schema["properties"]
    if properties.get("options", {}).get("type") == "array":
        question["options"] = list(question["options"].values())
    return json.dumps({name: question[name] for name in properties if name in question}, ensure_ascii=False)


def compose_reply(prompt: PromptParts, seed: str, most_options: int = 5) -> str:
    """Return the text of the reply: JSON in the form that the prompt asks for, without the answer."""
    rng = random.Random(seed)
    if prompt.entity and prompt.passages:
        draft = compose_rare(prompt, prompt.entity, rng)
        stem, options = draft.stem, [draft.correct, *draft.wrong[: most_options - 1]]
        rng.shuffle(options)
    else:
        common = compose_common(prompt, rng, most_options)
        stem, options = common.stem, common.options
    return json.dumps({"question": stem, "options": dict(zip(LETTERS, options, strict=False))}, ensure_ascii=False)
