"""The config of a test: one small valid config, of which the test states only what differs."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

from medssr_dist.config.load import merge_sections
from medssr_dist.config.schema import Config

# The policy, the seeds and the endpoint do not exist; stage 2 is off because it would need a data set.
SMALLEST = {
    "policy": {"model": "m"},
    "synthesis": {"accepted": 4, "seeds": ["s"], "endpoints": [{"base_url": "http://127.0.0.1:9/v1", "model": "m"}]},
    "training": {"stage2": {"enabled": False}},
}


def config_tree(**sections: dict[str, Any]) -> dict[str, Any]:
    """Return SMALLEST with `sections` merged into it key by key; a list replaces the list that was there.

    Example: config_tree(voting={"samples": 8}, training={"stage1": {"steps": 4}})
    """
    return merge_sections(deepcopy(SMALLEST), sections)


def make_config(**sections: dict[str, Any]) -> Config:
    """Validate `config_tree(**sections)`."""
    return Config.model_validate(config_tree(**sections))


def write_config(file: Path, **sections: dict[str, Any]) -> Path:
    """Write `config_tree(**sections)` as YAML, for a test that loads it from a file; return `file`."""
    file.write_text(yaml.safe_dump(config_tree(**sections)), encoding="utf-8")
    return file
