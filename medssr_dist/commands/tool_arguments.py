"""The arguments of `medssr config` and of `medssr evaluate MODEL`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]  # argparse has no public name for it

_EVALUATE_EXAMPLE = "medssr evaluate Qwen/Qwen3-0.6B runs/demo/training/stage2/hf --data test.csv --limit 100"


def add_model_arguments(command: argparse.ArgumentParser) -> None:
    """Add what `medssr evaluate MODEL... --data X` takes, which needs no config of a run."""
    command.description = (
        f"{command.description}\nWith MODEL: score any models on any data, with paired differences; of a config, the "
        "sections policy, voting, evaluation and runtime count."
    )
    command.epilog = f"{command.epilog}\n  {_EVALUATE_EXAMPLE}"
    for action in command._actions:
        if action.dest == "config":
            action.required = False
        elif action.dest == "overrides":
            action.metavar = "MODEL|key=value"
            action.help = "models (directory, LoRA adapter, Hugging Face id), and overrides such as policy.prompt=base"
    command.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="X",
        help="with MODEL: file, folder, Hugging Face id, `paper`, or '{path: lab/set, split: test}'; may be repeated",
    )
    command.add_argument("--limit", type=int, default=0, metavar="N", help="with MODEL: first N questions of each")
    command.add_argument("--server", default="", metavar="URL", help="with MODEL: a running vLLM server that has it")


def add_config_tools(commands: Commands, call: Callable[[argparse.Namespace], int]) -> None:
    """Add `medssr config show|keys|init`."""
    text = "show a config with where each value comes from, search its keys, or write a first one"
    command = commands.add_parser("config", help=text, description=f"{text[0].upper()}{text[1:]}.")
    tools = command.add_subparsers(dest="tool", required=True, metavar="show|keys|init")
    show = tools.add_parser("show", help="print every value of a config with where it comes from")
    show.add_argument("--config", type=Path, required=True, help="YAML file, or the name of a config of the project")
    show.add_argument("--json", action="store_true", help="print JSON")
    show.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. voting.samples=16")
    keys = tools.add_parser("keys", help="print keys with their meaning, kind of value and default")
    keys.add_argument("pattern", nargs="?", default="", metavar="PATTERN", help="a part of a key, or with *")
    keys.add_argument("--markdown", action="store_true", help="print docs/config.md")
    init = tools.add_parser("init", help="write a first config")
    init.add_argument("file", type=Path, nargs="?", default=Path("medssr.yaml"), help="default: medssr.yaml")
    init.add_argument("--from", dest="start", default="", metavar="NAME", help="copy this config of the project")
    init.add_argument("--force", action="store_true", help="replace the file if it exists")
    command.set_defaults(call=call)
