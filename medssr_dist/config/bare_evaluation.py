"""The config of an evaluation of models alone, without synthesis, vote or training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medssr_dist.config.benchmark_sets import list_benchmark_sets
from medssr_dist.config.load import Tree, merge_layers, merge_sections, read_layers, validate_tree
from medssr_dist.config.schema import Config
from medssr_dist.config.shipped import find_config_file
from medssr_dist.data.yaml_text import parse_yaml
from medssr_dist.errors import InputError

# A config needs these sections; an evaluation reads none of these values.
_UNREAD: Tree = {
    "synthesis": {
        "accepted": 1,
        "seeds": ["hpo:seeds"],
        "endpoints": [{"base_url": "offline-teacher", "model": "offline-teacher"}],
    },
    "voting": {"max_tokens": 1, "kept": 0},
    "training": {stage: {"enabled": False, "max_new_tokens": 1} for stage in ("stage1", "stage2")},
}


def build_evaluation_config(
    model: str, data: Sequence[str], limit: int, server: str, file: Path | None, overrides: Sequence[str]
) -> Config:
    """Return a config for evaluating models.

    Args:
        model: value of `policy.model`.
        data: benchmarks: a file, a folder, a Hugging Face id, a set such as `paper`, or the keys of a data set as YAML
            ("{path: lab/set, split: test}"); none = those of the file.
        limit: first N questions of each benchmark; 0 = all.
        server: address of a running vLLM server that answers; '' = engines of our own.
        file: a config whose sections `policy`, `voting`, `evaluation` and `runtime` count; None = the defaults.
        overrides: "key=value", as for `load_config`.

    Raises:
        InputError: see `load_config`; a benchmark is neither a path nor YAML with a path; there is none.
    """
    given = merge_layers(read_layers(find_config_file(file))) if file else {}
    read: Tree = {name: given[name] for name in ("policy", "voting", "evaluation", "runtime") if name in given}
    tree = merge_sections(merge_sections(read, _UNREAD), {"policy": {"model": model}})
    if data:
        tree = merge_sections(tree, {"evaluation": {"benchmarks": [_read_data(text) for text in data]}})
    if server:
        tree = merge_sections(tree, {"voting": {"servers": [{"base_url": server}], "engines": 0}})
    config = validate_tree(tree, list(overrides), str(file or "medssr evaluate"))
    if not config.evaluation.benchmarks:
        raise InputError("no benchmark is given; name one with --data, e.g. --data openlifescienceai/medqa")
    return _limit(config, limit) if limit else config


def _read_data(text: str) -> Any:
    if text in list_benchmark_sets() and not Path(text).exists():
        return {"set": text}
    if not text.lstrip().startswith("{"):
        return text
    value = parse_yaml(text, "--data")
    if not isinstance(value, dict):
        raise InputError(f"--data {text!r} is not valid YAML; write it as '{{path: lab/set, split: test}}'")
    return value


def _limit(config: Config, limit: int) -> Config:
    sources = [source.model_copy(update={"limit": limit}) for source in config.evaluation.benchmarks]
    return config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"benchmarks": sources})})
