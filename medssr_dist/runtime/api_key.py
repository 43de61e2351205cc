"""The key of an HTTP API: into the header, and out of everything that is shown or stored."""

from __future__ import annotations

import msgspec
from pydantic import SecretStr

from medssr_dist.errors import InputError

ERROR_CHARS = 300  # of a far end's words


def build_auth_header(api_key: SecretStr | None, where: str) -> dict[str, str]:
    """The header that carries the key; none when there is no key.

    Args:
        where: names its place in the config and the far end, for the error.

    Raises InputError when no header can carry it.
    """
    if api_key is None:
        return {}
    key = api_key.get_secret_value()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise InputError(
            f"{where}: the api_key is empty, or holds a space, a line break or a character outside ASCII; correct the "
            "variable that it is taken from"
        )
    return {"Authorization": f"Bearer {key}"}


def scrub(text: str, api_key: SecretStr | None) -> str:
    """`text` without the key."""
    key = api_key.get_secret_value() if api_key else ""
    return text.replace(key, "***") if key else text


def read_error_text(answer: bytes, api_key: SecretStr | None) -> str:
    """What an error answer says, on one line, without the key; the error message alone where there is one."""
    try:
        error = msgspec.json.decode(answer)["error"]
        text = str(error["message"] if isinstance(error, dict) else error)
    except (msgspec.DecodeError, LookupError, TypeError, RecursionError):
        text = answer.decode("utf-8", "replace")
    return scrub(" ".join(text.split()), api_key)[:ERROR_CHARS] or "(nothing)"
