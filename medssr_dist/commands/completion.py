"""Completion of the command line in a shell, by argcomplete: commands, options, and keys of the config.

Set up with: eval "$(register-python-argcomplete medssr)"
"""

from __future__ import annotations

import argparse

from medssr_dist.config.key_list import ITEM, list_keys_of_config


def complete(parser: argparse.ArgumentParser) -> None:
    """Answer a shell that asks for completions, and exit; do nothing if argcomplete is not installed."""
    try:
        import argcomplete
    except ImportError:
        return
    for action in _list_override_actions(parser):
        action.completer = complete_key  # type: ignore[attr-defined]
    argcomplete.autocomplete(parser)


def complete_key(prefix: str, **_: object) -> list[str]:
    """Return the keys of the config that begin with `prefix`, as the beginnings of overrides."""
    keys = (key.path.replace(f".{ITEM}.", ".0.") for key in list_keys_of_config())
    return [f"{key}=" for key in keys if key.startswith(prefix)]


def _list_override_actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    found: list[argparse.Action] = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found += [each for command in action.choices.values() for each in _list_override_actions(command)]
        elif action.dest == "overrides":
            found.append(action)
    return found
