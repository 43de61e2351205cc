"""`medssr bench training`: how it compares metrics, and that the config of every variant loads."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from step_rows import make_metrics

from medssr_dist.bench.training import run
from medssr_dist.bench.training.run import (
    BASELINES,
    FULL,
    PHASES,
    VARIANTS,
    LossComparison,
    bench_training,
    compare_loss_steps,
    compute_ratios,
    render_table,
)
from medssr_dist.bench.training.stock_stage import DEMO, PIECES
from medssr_dist.config.load import load_config
from medssr_dist.training.step_metrics import StepMetrics


def make_steps(*seconds: float, sync: float) -> list[StepMetrics]:
    phases = dict.fromkeys(PHASES, 1.0) | {"seconds_sync": sync}
    return [
        make_metrics(step, **phases, seconds=each + 2.0, seconds_wait=2.0, tokens=10)
        for step, each in enumerate(seconds, start=1)
    ]


def test_ratios_compare_medians_without_waiting():
    found = compute_ratios(
        {
            "ours": make_steps(5, 6, 7, sync=0.5),
            "stock": make_steps(10, 12, 30, sync=2.0),
            "prompts not shared": make_steps(9, 9, 9, sync=0.5),
            "stock loss": make_steps(18, 18, 18, sync=0.5),
        }
    )
    assert (found.step_time_ratio, found.weight_sync_ratio) == (0.5, 0.25)
    assert (found.variants["stock"].fastest, found.variants["stock"].slowest) == (10, 30)
    assert found.shares == {"prompts not shared": 1.5, "stock loss": 2.0}
    table = render_table(found, LossComparison(1e-3, 3, {}))
    assert "NOT MET" in table and table.count(" met") == 2


def test_losses_are_compared_until_the_samples_differ():
    ours = [make_metrics(step, policy_loss=loss, kl=0.0, tokens=10) for step, loss in enumerate([0.0, 0.5, 0.7], 1)]
    stock = [make_metrics(step, policy_loss=loss, kl=0.0, tokens=10) for step, loss in enumerate([0.0, 0.5001, 0.9], 1)]
    assert compare_loss_steps({"ours": ours, "stock": stock}).loss_max_abs_diff == pytest.approx(0.2)
    stock[2] = make_metrics(3, policy_loss=0.9, kl=0.0, tokens=11)
    found = compare_loss_steps({"ours": ours, "stock": stock})
    assert (found.loss_steps, found.loss_max_abs_diff) == (2, pytest.approx(1e-4))
    assert found.losses_fp32["stock"] == [0.0, 0.5001, 0.9]


@pytest.mark.parametrize("name", VARIANTS)
def test_the_config_of_every_variant_loads(name):
    assert set(VARIANTS[name].pieces) <= set(PIECES)
    keys = {"stage2.drop_zero_variance": "false", "stage1.enabled": "false"} | VARIANTS[name].keys
    config = load_config(DEMO, [f"training.{key}={value}" for key, value in keys.items()])
    assert config.training.stage2.enabled and BASELINES.get(name, "ours") in VARIANTS


def test_what_others_are_compared_with_runs_first_and_last():
    compared = {"ours", "stock", *BASELINES.values()}
    half = len(FULL.runs) // 2
    assert set(FULL.runs) == set(VARIANTS)
    assert {name for name in FULL.runs[:half] if name in FULL.runs[half:]} == compared


def test_steps_of_both_runs_count_without_the_first_of_each(tmp_path, monkeypatch):
    seconds = iter([(99, 4, 6), (99, 10, 20), (99, 8, 12)])
    monkeypatch.setattr(run, "FULL", replace(FULL, runs=("ours", "stock", "ours")))
    monkeypatch.setattr(run, "_run", lambda *_: make_steps(*next(seconds), sync=1.0))
    monkeypatch.setattr(run, "compare_losses", lambda *_: LossComparison(1e-6, 3, {}))
    bench_training(tmp_path / "training.json")
    variants = json.loads((tmp_path / "training.json").read_text())["variants"]
    assert (variants["ours"]["step"], variants["ours"]["slowest"], variants["stock"]["step"]) == (7, 12, 15)
    assert (tmp_path / "training.png").stat().st_size
