"""`medssr bench update`: the config of every variant loads, and a real ZeRO-3 rank takes its steps."""

from __future__ import annotations

from dataclasses import replace

import pytest
from zero_cases import save_tiny_llama

from medssr_dist.bench.training.update import (
    SCALES,
    VARIANTS,
    UpdateRow,
    UpdateSpeed,
    make_config,
    measure,
    render_table,
    run_in_process,
)

TINY = replace(SCALES["cpu quick"], prompt=12, answers=(2, 8))


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_differ_only_in_their_keys(tiny_model, name):
    ours, config = (make_config(str(tiny_model), keys, TINY).training for keys in ({}, VARIANTS[name].keys))
    differ = {key for key, value in config.model_dump().items() if value != ours.model_dump()[key]}
    assert differ == set(VARIANTS[name].keys) | ({"stage2"} if name == "packed" else set())


def test_the_table_shows_speeds_and_failures():
    rows = [
        UpdateRow("Qwen3-8B", "ours", UpdateSpeed(seconds=2.0, tokens_per_s=1000.0, mfu=0.41, peak_gb=70.5)),
        UpdateRow("Qwen3-8B", "stock", failed="OutOfMemoryError: CUDA out of memory"),
    ]
    lines = render_table(rows).splitlines()
    assert lines[1].split() == ["Qwen3-8B", "ours", "2.000", "1000", "0.410", "70.50"]
    assert lines[2].endswith("stock                         OutOfMemoryError: CUDA out of memory")


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_a_rank_takes_the_steps_of_every_variant(tmp_path, name):
    speed = run_in_process(measure, str(save_tiny_llama(tmp_path, tied=True)), VARIANTS[name], TINY)
    assert speed.seconds > 0 and speed.tokens_per_s > 0 and speed.peak_gb > 0
