"""The one parser of JSON that came from a file: whatever the text is, the result is a value or an InputError."""

from __future__ import annotations

import json
from typing import Any

from medssr_dist.errors import InputError


def parse_json(text: str, where: str) -> Any:
    """Return the value of a JSON text.

    Args:
        where: the place of the text, for the message.

    Raises:
        InputError: it is not JSON, has a key twice in one object, is too deep, or has a number of thousands of digits.
    """
    try:
        return json.loads(text, object_pairs_hook=_make_object)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}: " if "\n" in text.strip() else ""
        reason = f"{place}{error.msg}"
    except ValueError as error:
        reason = str(error).split(";")[0]
    except RecursionError:
        reason = "its lists and objects are nested too deep"
    raise InputError(f"{where} is not valid JSON ({reason}); repair or replace it")


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"an object has the key {next(key for key in keys if keys.count(key) > 1)[:40]!r} twice")
    return row
