"""`medssr config`: show a resolved config, search the keys, write a first config."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import yaml

from medssr_dist.config.key_list import ConfigKey, find_keys, render_markdown, suggest_paths
from medssr_dist.config.load import Tree, merge_layers, merge_sections, read_layers
from medssr_dist.config.shipped import find_config_file, find_shipped, list_shipped_configs
from medssr_dist.config.value_origins import trace_config
from medssr_dist.data.jsonl import read_text, write_atomic
from medssr_dist.data.yaml_text import parse_yaml
from medssr_dist.errors import InputError

_KEY_VARIABLE = "MEDSSR_API_KEY"


def show_config(path: Path, overrides: list[str], as_json: bool = False) -> None:
    """Print every value of a config with where it comes from.

    Args:
        as_json: print a JSON object of key -> {value, origin}.

    Raises:
        InputError: the config cannot be used.
    """
    values = trace_config(path, overrides)
    if as_json:
        print(json.dumps({each.key: {"value": each.value, "origin": each.origin} for each in values}, indent=2))
        return
    lines = [f"{each.key} = {json.dumps(each.value, ensure_ascii=False)}" for each in values]
    width = min(64, max(map(len, lines)))
    for line, each in zip(lines, values, strict=True):
        print(f"{line:<{width}}  # {each.origin}")


def print_keys(pattern: str, markdown: bool = False) -> None:
    """Print the keys whose path or meaning matches `pattern`, with kind, default and meaning.

    Args:
        markdown: print docs/config.md, which has all keys.

    Raises:
        InputError: no key matches.
    """
    if markdown:
        print(render_markdown(), end="")
        return
    found = find_keys(pattern)
    if not found:
        close = suggest_paths(pattern)
        near = f"; did you mean {' or '.join(close)}?" if close else "; `medssr config keys` lists all"
        raise InputError(f"no key of the config matches {pattern!r}{near}")
    for key in found:
        print(f"{key.path}  ({_describe_value(key)})\n    {key.description}")


def _describe_value(key: ConfigKey) -> str:
    return f"{key.kind}; {f'default {key.default}' if key.default else 'must be set'}"


def init_config(target: Path, start: str, force: bool = False) -> None:
    """Write a first config to `target`: the answers to a few questions, or a copy of a config of the project.

    Args:
        start: name of a config that comes with the project; '' = ask on the terminal.
        force: replace `target` if it exists.

    Raises:
        InputError: `target` exists, there is no such config, or there is no terminal to ask on.
    """
    if target.exists() and not force:
        raise InputError(f"{target} exists; give another name, or replace it with --force")
    known = ", ".join(list_shipped_configs())
    if start and start not in list_shipped_configs():
        raise InputError(f"--from {start!r} is not a config that comes with the project; choose one of {known}")
    if not start and not sys.stdin.isatty():
        raise InputError(f"no terminal to ask on; copy a commented config with --from NAME: {known}")
    text = _copy_config(start) if start else _ask_config()
    write_atomic(target, text)
    print(f"{target} is written; next: medssr doctor --config {target}, medssr run --config {target} --dry-run")


def _copy_config(name: str) -> str:
    """Return the text of a config of the project; `extends` finds the other file in the project from anywhere."""
    return read_text(find_shipped("configs") / f"{name}.yaml")


def _ask_config() -> str:
    """Return a config from the user's answers, with the meaning of each value as its comment."""
    print("Press Enter for the value in brackets.")
    base = _ask("start from", "demo_cpu", f"one of {', '.join(list_shipped_configs())}")
    answers: Tree = {}
    model = _ask("policy.model", "", "model directory or Hugging Face id; empty = that of the start")
    if model:
        answers = merge_sections(answers, {"policy": {"model": model}})
    url = _ask("synthesis.endpoints.0.base_url", "offline-teacher", "chat API that writes the questions")
    endpoint = {"base_url": url, "model": "offline-teacher"}
    if url != "offline-teacher":
        endpoint["model"] = _ask("synthesis.endpoints.0.model", "", "model name sent to the API")
        variable = _ask("environment variable with the key", _KEY_VARIABLE, "the key itself is never written here")
        endpoint["api_key"] = f"${{{variable}}}"
    synthesis: Tree = {"endpoints": [endpoint]}
    if accepted := _ask("synthesis.accepted", "", "questions to write; empty = as in the start"):
        synthesis["accepted"] = parse_yaml(accepted, "synthesis.accepted")
    for key, meaning in (("synthesis.seeds", "seed questions"), ("training.stage2.data", "questions with answers")):
        if path := _ask(key, "", f"{meaning}: file, folder or Hugging Face id; empty = as in the start"):
            section, *rest = key.split(".")
            tree: Tree = {rest[-1]: [path]}
            answers = merge_sections(answers, {section: {rest[0]: tree} if len(rest) > 1 else tree})
    if path := _ask("evaluation.benchmarks", "", "evaluation questions, likewise"):
        answers = merge_sections(answers, {"evaluation": {"benchmarks": [path]}})
    answers = merge_sections({"synthesis": synthesis}, answers)
    _refuse_unknown_start(base)
    head = f"# Written by `medssr config init`. Keys: `medssr config keys PATTERN`.\nextends: {base}.yaml\n"
    return head + yaml.safe_dump(answers, sort_keys=False, allow_unicode=True)


def _refuse_unknown_start(base: str) -> None:
    merge_layers(read_layers(find_config_file(Path(base))))


def _ask(what: str, default: str, meaning: str) -> str:
    answer = input(f"{what} ({meaning}) [{default}]: ").strip()
    return answer or default
