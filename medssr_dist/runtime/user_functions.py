"""Functions of the user that a config names as "package.module:function"."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from typing import Any

from medssr_dist.errors import InputError

USER_FUNCTION = r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*"


def load_user_function(name: str, key: str) -> Callable[..., Any]:
    """Import a function. Worker processes import it by the same name, so its module must be importable on every node.

    Args:
        name: "package.module:function".
        key: the config key that holds `name`, for messages.

    Raises:
        InputError: the name has another form, or it names nothing that can be imported and called.
    """
    if not re.fullmatch(USER_FUNCTION, name):
        raise InputError(f"{key} = {name!r} is not of the form package.module:function")
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function, None)
    except Exception as error:
        raise InputError(
            f"{key} = {name!r}: importing {module} raised {type(error).__name__}: {error}; install it into the "
            "environment, or add its folder to PYTHONPATH"
        ) from error
    if not callable(found):
        raise InputError(f"{key} = {name!r}: {module} has no function {function}")
    return found  # type: ignore[no-any-return]
