"""`medssr bench training`: what it makes of metrics, and that every variant is a config that loads."""

from __future__ import annotations

import pytest

from medssr_dist.bench.training.run import BASELINES, PHASES, VARIANTS, ratios, table
from medssr_dist.bench.training.stock_stage import DEMO, PIECES
from medssr_dist.config.load import load_config


def rows(*seconds: float, sync: float) -> list[dict]:
    phases = dict.fromkeys(PHASES, 1.0) | {"seconds_sync": sync}
    return [phases | {"seconds": each + 2.0, "seconds_wait": 2.0, "tokens": 10} for each in seconds]


def test_ratios_are_of_medians_without_the_first_step_and_the_waiting():
    found = ratios(
        {
            "ours": rows(99, 5, 6, 7, sync=0.5),
            "stock": rows(99, 10, 12, 30, sync=2.0),
            "prompts not shared": rows(99, 9, 9, 9, sync=0.5),
            "stock loss": rows(99, 18, 18, 18, sync=0.5),
        }
    )
    assert (found["step_time_ratio"], found["weight_sync_ratio"]) == (0.5, 0.25)
    assert found["shares"] == {"prompts not shared": 1.5, "stock loss": 2.0}
    said = table(found | {"loss_max_abs_diff": 1e-3})
    assert "NOT MET" in said and said.count(" met") == 2


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_load(name):
    assert set(VARIANTS[name].pieces) <= set(PIECES)
    keys = {"stage2.drop_zero_variance": "false", "stage1.enabled": "false"} | VARIANTS[name].keys
    config = load_config(DEMO, [f"training.{key}={value}" for key, value in keys.items()])
    assert config.training.stage2.enabled and BASELINES.get(name, "ours") in VARIANTS
