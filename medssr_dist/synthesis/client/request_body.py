"""The JSON body of a chat request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from medssr_dist.config.synthesis import Endpoint, Synthesis

LimitName = Literal["max_tokens", "max_completion_tokens"]
_OPTION_LETTERS = ("A", "B", "C", "D")
# A strict schema has no optional keys, so under this schema every question has four options.
RESPONSE_FORMAT = {
    "type": "json_schema",
    "json_schema": {
        "name": "question",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {
                "question": {"type": "string"},
                "options": {
                    "type": "object",
                    "properties": {letter: {"type": "string"} for letter in _OPTION_LETTERS},
                    "required": list(_OPTION_LETTERS),
                    "additionalProperties": False,
                },
            },
            "required": ["question", "options"],
            "additionalProperties": False,
        },
    },
}


def build_request_body(
    messages: list[dict[str, str]],
    endpoint: Endpoint,
    synthesis: Synthesis,
    response_format: Mapping[str, Any] = RESPONSE_FORMAT,
    limit_name: LimitName = "max_tokens",
) -> dict[str, Any]:
    """Return the JSON body of a chat completion request to `endpoint`.

    Args:
        response_format: the form of the reply, sent to endpoints with `json_schema`.
        limit_name: the parameter that limits the tokens of the reply; reasoning models of OpenAI refuse `max_tokens`.
    """
    body: dict[str, Any] = {
        "model": endpoint.model,
        "messages": messages,
        "temperature": synthesis.temperature,
        limit_name: synthesis.max_tokens,
    }
    if endpoint.json_schema:
        body["response_format"] = response_format
    return body
