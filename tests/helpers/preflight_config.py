"""For the tests of the preflight: a config for eight GPUs without its files, and an environment without Slurm."""

from __future__ import annotations

import os

import pytest
from config_builder import make_config

from medssr_dist.config.load import merge_sections
from medssr_dist.config.schema import Config

EIGHT_GPUS = {
    "policy": {"model": "no/such-model"},
    "synthesis": {
        "accepted": 40,
        "alpha": 0.0,
        "seeds": ["hpo:seeds"],
    },
    "voting": {"engines": 8},
    "training": {
        "ranks_per_node": 6,
        "engines": 2,
        "stage1": {"prompts_per_step": 6, "samples_per_prompt": 8},
    },
}


def eight_gpu_config(**sections) -> Config:
    """EIGHT_GPUS with `sections` merged into it."""
    return make_config(**merge_sections(EIGHT_GPUS, sections))


@pytest.fixture(autouse=True)
def outside_slurm(monkeypatch):
    """Remove the variables of Slurm and of this project from the environment."""
    for name in [name for name in os.environ if name.startswith(("SLURM", "MEDSSR_", "RAY_ADDRESS"))]:
        monkeypatch.delenv(name)
