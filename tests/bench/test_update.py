"""`medssr bench update`: every variant's config loads, and real ranks of ZeRO-3 take its steps."""

from __future__ import annotations

from dataclasses import replace

import pytest
from zero_cases import tiny_llama

from medssr_dist.bench.training.update import SCALES, VARIANTS, alone, config_of, measure, table

TINY = replace(SCALES["cpu quick"], prompt=12, answers=(2, 8))


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_load_and_differ_in_their_keys_alone(tiny_model, name):
    ours, config = (config_of(str(tiny_model), keys, TINY).training for keys in ({}, VARIANTS[name].keys))
    differ = {key for key, value in config.model_dump().items() if value != ours.model_dump()[key]}
    assert differ == set(VARIANTS[name].keys) | ({"stage2"} if name == "packed" else set())


def test_the_table_has_a_line_a_variant_and_says_why_one_is_missing():
    rows = [
        {"shape": "Qwen3-8B", "variant": "ours", "seconds": 2.0, "tokens_per_s": 1000.0, "mfu": 0.41, "peak_gb": 70.5},
        {"shape": "Qwen3-8B", "variant": "stock", "failed": "OutOfMemoryError: CUDA out of memory"},
    ]
    lines = table(rows).splitlines()
    assert lines[1].split() == ["Qwen3-8B", "ours", "2.000", "1000", "0.410", "70.50"]
    assert lines[2].endswith("stock                         OutOfMemoryError: CUDA out of memory")


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_a_rank_takes_the_steps_of_every_variant(tmp_path, name):
    found = alone(measure, str(tiny_llama(tmp_path, tied=True)), VARIANTS[name], TINY)
    assert found["seconds"] > 0 and found["tokens_per_s"] > 0 and found["peak_gb"] > 0
