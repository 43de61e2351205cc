"""A config for eight GPUs whose files are nowhere, and a machine outside Slurm, for the tests of the preflight."""

from __future__ import annotations

import os

import pytest

from medssr_dist.config.schema import Config

TREE = {
    "policy": {"model": "no/such-model"},
    "synthesis": {
        "accepted": 40,
        "alpha": 0.0,
        "seeds": ["hpo:seeds"],
        "endpoints": [{"base_url": "http://127.0.0.1:9/v1", "model": "m"}],
    },
    "voting": {"engines": 8},
    "training": {
        "ranks_per_node": 6,
        "engines": 2,
        "stage1": {"prompts_per_step": 6, "samples_per_prompt": 8},
        "stage2": {"enabled": False},
    },
}


def config(**sections) -> Config:
    return Config.model_validate({key: value | sections.get(key, {}) for key, value in TREE.items()})


@pytest.fixture(autouse=True)
def outside_slurm(monkeypatch):
    """No job, and none of our own variables, whatever this test runs in."""
    for name in [name for name in os.environ if name.startswith(("SLURM", "MEDSSR_", "RAY_ADDRESS"))]:
        monkeypatch.delenv(name)
