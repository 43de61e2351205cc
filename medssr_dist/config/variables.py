"""Environment variables and key files in a config, and the rule that a secret stands in an api_key and nowhere else."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Any

from medssr_dist.data.jsonl import refuse_pipe
from medssr_dist.errors import InputError
from medssr_dist.secret_registry import holds_secret, names_secret, register_secret, take_copies, take_variable

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_SECRET_FILE = "file:"
_MOST_SECRET = 10_000  # characters
# ${ENV} is allowed in secrets and paths only. Elsewhere, a run would depend on values that are not recorded.
_VARIABLE_KEYS = re.compile(
    r"(^|\.)(api_key|path|model|prompt|base_url|medcpt_query|medcpt_article|corpus|corpora|corpora_root|entities_file|"
    r"seeds|benchmarks|data|prompt_file)(\.\d+)?$"
)
_SECRET_KEY = re.compile(r"(^|\.)api_key$")


def fill_variables(tree: dict[str, Any]) -> dict[str, Any]:
    """Return the config with the values of `${NAME}` everywhere, and of `file:PATH` in an api_key.

    Raises:
        InputError: variables are not set (all are named), a file cannot be used, or a secret stands where it would be
            stored or shown. The message names the key, never the secret.
    """
    missing: dict[str, list[str]] = {}
    filled: dict[str, Any] = _fill(tree, "", missing)
    if missing:
        told = "; ".join(f"{name}, which is not set, is needed by {_name_few(keys)}" for name, keys in missing.items())
        exports = " ".join(f"{name}=..." for name in missing)
        raise InputError(f"environment variables: {told}; export {exports}")
    return filled


def _name_few(keys: list[str]) -> str:
    return ", ".join(keys[:2]) + (f" and {len(keys) - 2} more" if len(keys) > 2 else "")


def _fill(node: Any, key: str, missing: dict[str, list[str]]) -> Any:
    """Return `node` filled in; variables that are not set are added to `missing`, with the keys that need them."""
    if _SECRET_KEY.search(key):
        return None if node is None else _read_secret(node, key, missing)
    if isinstance(node, dict):
        for name in node:
            _refuse_secret(str(name), f"a key below {key}" if key else "a key")
        return {name: _fill(value, f"{key}.{name}" if key else str(name), missing) for name, value in node.items()}
    if isinstance(node, list):
        return [_fill(value, f"{key}.{index}", missing) for index, value in enumerate(node)]
    if not isinstance(node, str):
        return node
    if _VARIABLE.search(node):
        if not _VARIABLE_KEYS.search(key):
            raise InputError(f"{key}: ${{...}} is allowed in secrets and paths only; write the value itself")
        node = _VARIABLE.sub(lambda match: _read_variable(match.group(1), key, missing), node)
    _refuse_secret(node, key)
    return node


def _refuse_secret(text: str, key: str) -> None:
    if holds_secret(text):
        raise InputError(
            f"{key} holds a key or a token, and would be stored in the run directory; give it as the api_key of the "
            "endpoint or server, e.g. ${MEDSSR_API_KEY}"
        )


def _read_variable(name: str, key: str, missing: dict[str, list[str]]) -> str:
    if names_secret(name):
        raise InputError(
            f"{key} takes its value from {name}, which is the name of a secret; a secret belongs in api_key. Rename "
            "the variable if it holds none"
        )
    if name not in os.environ:
        missing.setdefault(name, []).append(key)
    return os.environ.get(name, "")


def _read_secret(node: Any, key: str, missing: dict[str, list[str]]) -> str:
    """Return the secret that `node` names, and register it."""
    text = node if isinstance(node, str) else ""
    if found := _VARIABLE.fullmatch(text):
        secret = take_variable(found[1])
        if secret is None:
            missing.setdefault(found[1], []).append(key)
        return secret or ""
    if not text.startswith(_SECRET_FILE):
        raise InputError(
            f"{key} must name an environment variable, e.g. ${{MEDSSR_API_KEY}}, or a file of mode 0600, e.g. "
            f"{_SECRET_FILE}~/.medssr_api_key, not hold the key"
        )
    secret = read_secret_file(text.removeprefix(_SECRET_FILE), key)
    register_secret(secret)
    take_copies(secret)
    return secret


def read_secret_file(name: str, key: str) -> str:
    """Return the text of the file, which must belong to this user and be closed to all others.

    Args:
        key: what names the file, for the error message.

    Raises:
        InputError: others may read it, or it cannot be read, or it is no file.
    """
    try:
        file = Path(name).expanduser()
        refuse_pipe(file)
        with open(file, encoding="utf-8-sig") as handle:
            info = os.fstat(handle.fileno())
            if info.st_uid != os.getuid() or info.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise InputError(
                    f"{key}: {file} has mode {stat.S_IMODE(info.st_mode):04o} and owner {info.st_uid}: others may read "
                    f"it; become its owner, then chmod 600 {file}"
                )
            text = handle.read(_MOST_SECRET + 1).strip()
        if text.isascii() and text.isprintable() and " " not in text and 0 < len(text) <= _MOST_SECRET:
            return text
        reason = f"it holds no key: one line of up to {_MOST_SECRET} ASCII characters without spaces"
    except UnicodeDecodeError:
        reason = "not UTF-8"
    except OSError as error:
        reason = error.strerror or "an error of the file system"
    except (ValueError, RuntimeError):  # a NUL in the name; ~ of a user that does not exist
        reason = "no name of a file"
    raise InputError(f"{key}: {name} cannot be read ({reason}); write only the key into it, mode 0600")
