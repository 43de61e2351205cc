"""On the real stack, the method teaches the mini policy something, and labels of other questions do not."""

from __future__ import annotations

import pytest

from medssr_dist.bench.method.run import bench_method
from medssr_dist.data.jsonl import read_json

# Far above the intervals of 1,000 questions, and below the gains that were measured (docs/evidence.md).
MARGIN = 0.03


@pytest.mark.slow
def test_two_stages_gain_and_shuffled_labels_do_not(tmp_path):
    file = tmp_path / "method.json"
    bench_method(file, quick=True)
    arms = read_json(file)["arms"]
    two_stage, shuffled = (
        arms[name]["to_base"]["all"]["test"]["difference"] for name in ("two_stage", "shuffled_labels")
    )
    assert two_stage > MARGIN, f"two stages gain {100 * two_stage:.1f} points"
    assert shuffled < MARGIN, f"shuffled labels gain {100 * shuffled:.1f} points"
    assert two_stage - shuffled > MARGIN
