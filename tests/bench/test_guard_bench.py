"""The benchmark of the collapse guard: planted labels, and the judgement of a finished run by questions not seen."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from config_builder import make_config
from step_rows import append_steps, make_metrics
from stream_parts import label

from medssr_dist.bench.guard.guard_verdict import judge_run
from medssr_dist.bench.guard.planted_labels import plant_wrong_majorities
from medssr_dist.bench.guard.run import SOUND, WRONG, bench_guard, summarize
from medssr_dist.config.stage_checks import Guard
from medssr_dist.data.records import Label, Question
from medssr_dist.errors import InputError
from medssr_dist.run.paths import StagePaths
from medssr_dist.training.validation_log import append_validation, make_result


def make_labels(count: int) -> list[Label]:
    """Labels with answer A and three votes for B; every fourth is not kept."""
    found = []
    for number in range(count):
        asked = Question.make(f"Question {number}?", ["w", "x", "y", "z"], source="synthetic")
        made = label(asked, kept=number % 4 > 0)
        found.append(made.model_copy(update={"counts": {"A": 5, "B": 3}, "valid": 8, "taken": 8, "requested": 8}))
    return found


def test_a_third_of_the_kept_labels_is_planted():
    planted = plant_wrong_majorities(make_labels(120), 1 / 3, 7, lambda asked: None)
    assert len(planted) == 90 and all(found.kept for found in planted)
    wrong = [found for found in planted if found.answer != "A"]
    assert len(wrong) == 30
    assert all((found.answer, found.counts) == ("B", {"B": 5, "A": 3}) for found in wrong)
    assert planted == plant_wrong_majorities(make_labels(120), 1 / 3, 7, lambda asked: None)
    assert planted != plant_wrong_majorities(make_labels(120), 1 / 3, 8, lambda asked: None)


def test_a_label_that_is_wrong_already_stays():
    planted = plant_wrong_majorities(make_labels(40), 1.0, 1, lambda asked: "B")
    assert {found.answer for found in planted} == {"A"}
    planted = plant_wrong_majorities(make_labels(40), 1.0, 1, lambda asked: "A")
    assert {found.answer for found in planted} == {"B"}


def test_without_a_share_the_labels_are_as_voted():
    assert {found.answer for found in plant_wrong_majorities(make_labels(40), 0.0, 1, lambda asked: "C")} == {"A"}


def write_run(folder: Path, accuracies: list[float], seed: int = 0, questions: int = 2000) -> Path:
    """A run with a validation after every 5 steps, of questions of equal difficulty."""
    paths, rng = StagePaths(folder), random.Random(seed)
    append_steps(paths.metrics, *(make_metrics(step) for step in range(1, 5 * len(accuracies))))
    for number, accuracy in enumerate(accuracies):
        right = [sum(rng.random() < accuracy for _ in range(4)) for _ in range(questions)]
        append_validation(paths.validation, make_result(5 * number, right, 4, 0.0, 0.0, 1.0))
    return folder


def test_a_run_that_falls_is_stopped_near_its_peak(tmp_path):
    found = judge_run(write_run(tmp_path, [0.4, 0.5, 0.55, 0.45, 0.35]), WRONG, 0, Guard())
    assert (found.stop_step, found.signal, found.published_step) == (15, "validation_fall", 10)
    assert found.is_near_peak and found.published == found.peak
    assert [step for step, _ in found.accuracies] == [0, 5, 10, 15, 20]
    assert (found.start, found.last) == (found.accuracies[0][1], found.accuracies[-1][1])


def test_a_run_that_rises_is_not_stopped(tmp_path):
    found = judge_run(write_run(tmp_path, [0.4, 0.45, 0.5, 0.55]), SOUND, 0, Guard())
    assert (found.stop_step, found.signal, found.published_step) == (None, None, 15)


def test_runs_are_counted_by_kind(tmp_path):
    falls = judge_run(write_run(tmp_path / "a", [0.4, 0.55, 0.4]), WRONG, 0, Guard())
    rises = judge_run(write_run(tmp_path / "b", [0.4, 0.55]), SOUND, 0, Guard())
    found = summarize([falls, rises])
    assert (found.near_peak.count, found.stopped_wrong.count, found.stopped_sound.count) == (1, 1, 0)
    assert (found.near_peak.of, found.stopped_sound.of) == (1, 1)


def test_a_config_without_checks_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"needs training\.validate and training\.guard"):
        bench_guard(make_config(), tmp_path, tmp_path / "out.json", 1)
