"""The key of an HTTP API: it goes into the header, and is removed from everything that is shown or stored."""

from __future__ import annotations

from pydantic import SecretStr

from medssr_dist import secret_registry
from medssr_dist.errors import InputError

AUTHORIZATION = "Authorization"


def build_auth_header(api_key: SecretStr | None, where: str, name: str = AUTHORIZATION) -> dict[str, str]:
    """Return the header that carries the key; {} if there is no key.

    Args:
        where: the key's place in the config and the server, for the error message.
        name: of the header; any other than Authorization holds the key alone, without "Bearer".

    Raises:
        InputError: the key is empty or has characters that a header cannot carry.
    """
    if api_key is None:
        return {}
    key = api_key.get_secret_value()
    secret_registry.register_secret(key)
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise InputError(
            f"{where}: the api_key is empty, or holds a space, a line break or a character outside ASCII; correct the "
            "variable that it is taken from"
        )
    return {name: f"Bearer {key}" if name.casefold() == AUTHORIZATION.casefold() else key}


def scrub(text: str, api_key: SecretStr | None) -> str:
    """Return `text` with *** in place of the key, in any of its forms, and of all other secrets of this process."""
    key = api_key.get_secret_value() if api_key else ""
    return secret_registry.scrub(text.replace(key, secret_registry.MASK) if key else text)
