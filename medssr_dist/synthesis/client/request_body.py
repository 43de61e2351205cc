"""The JSON body of a chat request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medssr_dist.config.synthesis import Endpoint, Synthesis

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
) -> dict[str, Any]:
    """Return the JSON body of a chat completion request to `endpoint`.

    Args:
        response_format: the form of the reply, sent to endpoints with `json_schema`.
    """
    body: dict[str, Any] = {
        "model": endpoint.model,
        "messages": messages,
        "temperature": synthesis.temperature,
        "max_tokens": synthesis.max_tokens,
    }
    if endpoint.json_schema:
        body["response_format"] = response_format
    return body
