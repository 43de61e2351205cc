"""The learning-rate schedule is planned once: a restart that knows more keeps it."""

from __future__ import annotations

import pytest
from config_builder import make_config

from medssr_dist.data.jsonl import read_json
from medssr_dist.run.paths import StagePaths
from medssr_dist.training import train_stage
from medssr_dist.training.train_stage import fix_schedule, start_stage1


def test_a_restart_keeps_the_schedule(tmp_path):
    paths = StagePaths(tmp_path / "stage1")
    assert fix_schedule(paths, 448) == 448
    assert fix_schedule(paths, 178) == 448
    assert read_json(paths.schedule) == {"steps": 448}


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """begun(kept, **stage) starts stage 1, of which only its job is made; returns it."""
    jobs = []
    monkeypatch.setattr(train_stage, "RunningStage", lambda job, *_: jobs.append(job))

    def begin(kept=None, voting=None, **stage):
        monkeypatch.setattr(train_stage, "read_kept_count", lambda labels: kept)
        config = make_config(voting=voting or {}, training={"stage1": {"prompts_per_step": 96} | stage})
        labels = tmp_path / "labeled.jsonl"
        start_stage1(config, tmp_path / "m", labels, tmp_path / "stage1", 43_000, lambda: False)
        return jobs[-1]

    return begin


def test_a_restart_after_the_vote_plans_what_the_first_start_did(begun):
    assert begun(lr_scheduler="linear").expected_steps == 448
    assert begun(kept=17_000, lr_scheduler="linear").expected_steps == 448


def test_a_stage_that_begins_after_the_vote_plans_its_own_steps(begun):
    assert begun(kept=17_000).expected_steps == 178


@pytest.mark.parametrize(
    ("settings", "warns"),
    [
        ({"lr_scheduler": "linear"}, True),
        ({"lr_scheduler": "cosine_with_min_lr"}, True),
        ({"lr_scheduler": "linear", "kept": 17_000}, False),
        ({"lr_scheduler": "linear", "steps": 200}, False),
        ({"lr_scheduler": "linear", "voting": {"kept": 8}}, False),
        ({}, False),
    ],
)
def test_a_schedule_of_unknown_length_is_told(begun, caplog, settings, warns):
    begun(**settings)
    assert ("the vote may keep fewer" in caplog.text) == warns
