"""The secrets that this process has read, and the one scrubber that everything passes before it leaves the process.

A secret is registered when it is read: the api_key of an endpoint or a server, a password in the address of a proxy.
Messages of errors, log lines, both output streams and every file that the package writes pass `scrub` or `scrub_bytes`.
"""

from __future__ import annotations

import base64
import html
import json
import os
import re
from collections.abc import Iterator
from urllib.parse import quote

MASK = "***"
MIN_CHARS = 8  # shorter ones ("none", "EMPTY") protect nothing, and would be found within words
_variables: dict[str, str] = {}  # name -> value of the environment variables that held a secret
_forms: tuple[str, ...] = ()  # the texts in which a secret may show, longest first
_encoded: tuple[bytes, ...] = ()  # the same in UTF-8

# Text that is a key by its form, wherever it stands.
_SHAPES = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"(?:sk|rk|pk)-[A-Za-z0-9_-]{16,}|hf_[A-Za-z0-9]{16,}|gh[opsur]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|"
    r"xox[abprs]-[A-Za-z0-9-]{10,}|AKIA[A-Z0-9]{16}|AIza[A-Za-z0-9_-]{30,}|gsk_[A-Za-z0-9]{20,}|nvapi-[\w-]{20,}|"
    r"glpat-[\w-]{20,}|r8_[A-Za-z0-9]{20,}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]*|Bearer\s+[\w.~+/=-]{8,}"
    r")"
)
_SECRET_NAME = re.compile(r"(?i)(?:^|_)(?:API_?KEY|KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$")


def register_secret(text: str) -> None:
    """Have `text` scrubbed from now on, also where it is quoted for a URL, escaped in JSON or HTML, or in base64."""
    global _forms, _encoded
    if len(text) < MIN_CHARS or text in _forms:
        return
    _forms = tuple(sorted({*_forms, *_list_forms(text)}, key=len, reverse=True))
    _encoded = tuple(form.encode("utf-8", "replace") for form in _forms)


def _list_forms(text: str) -> Iterator[str]:
    """Yield the forms in which `text` may show."""
    yield text
    in_json = json.dumps(text)[1:-1]
    for escaped in (text, in_json):  # the second: JSON within JSON, as in a gateway's copy of an error
        yield json.dumps(escaped)[1:-1]
        yield json.dumps(escaped).replace("/", "\\/")[1:-1]
    yield repr(text)[1:-1]
    yield html.escape(text)
    for safe in ("", "/"):
        quoted = quote(text, safe=safe, errors="replace")
        yield quoted
        yield re.sub("%..", lambda code: code[0].lower(), quoted)
    data = text.encode("utf-8", "replace")
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        yield encode(data).decode().rstrip("=")
        for before, skipped in ((0, 0), (1, 2), (2, 3)):  # within a longer text, such as "user:key"
            coded = encode(bytes(before) + data).decode().rstrip("=")
            yield coded[skipped : len(coded) - ((before + len(data)) % 3 > 0)]  # the last letter: with what follows


def take_variable(name: str) -> str | None:
    """Return the secret in environment variable `name`, and remove it from the environment of later child processes.

    A second call returns the same value. None: there is no such variable.
    """
    if name in os.environ:
        _variables[name] = os.environ.pop(name)
        register_secret(_variables[name])
        take_copies(_variables[name])
    return _variables.get(name)


def take_copies(secret: str) -> None:
    """Remove the environment variables of any name whose whole value is `secret`, as `take_variable` does."""
    if len(secret) >= MIN_CHARS:
        for name in [name for name, value in os.environ.items() if value.strip() == secret.strip()]:
            _variables[name] = os.environ.pop(name)


def list_variables() -> tuple[str, ...]:
    """Return the names of the environment variables that were taken, sorted."""
    return tuple(sorted(_variables))


def scrub(text: str) -> str:
    """Return `text` with *** in place of every registered secret."""
    for form in _forms:
        text = text.replace(form, MASK)
    return text


def scrub_message(text: str) -> str:
    """Return a text for people with *** also in place of what is a key by its form, registered or not."""
    return _SHAPES.sub(MASK, scrub(text))


def scrub_bytes(data: bytes) -> bytes:
    """Return UTF-8 `data` with *** in place of every registered secret."""
    for form in _encoded:
        data = data.replace(form, MASK.encode())
    return data


def holds_secret(text: str) -> bool:
    """Return whether `text` holds a registered secret, or something that is a key by its form."""
    return scrub(text) != text or bool(_SHAPES.search(text))


def names_secret(variable: str) -> bool:
    """Return whether a variable of this name usually holds a secret. Example: "OPENAI_API_KEY"."""
    return bool(_SECRET_NAME.search(variable))
