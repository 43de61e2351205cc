"""The collapse guard on simulated traces: it names each way to collapse, and leaves sound training alone."""

from __future__ import annotations

import random

import pytest
from step_rows import make_metrics
from vote_traces import Habits, trace

from medssr_dist.config.stage_checks import Guard
from medssr_dist.training.collapse_guard import CollapseGuard, GuardAlarm
from medssr_dist.training.validation_log import ValidationResult, make_result

RUNS = 6
STEPS = 48


def blend(first: float, last: float, progress: float, begin: float = 0.0) -> float:
    """Return `first` until `begin`, then a straight line to `last`."""
    return first + (last - first) * max(0.0, progress - begin) / (1 - begin)


SOUND = {
    "steady": lambda progress: Habits(),
    "learning": lambda progress: Habits(
        keeps_label=blend(0.8, 0.97, progress), sureness=blend(0.5, 0.9, progress), length=blend(60, 110, progress)
    ),
    "slowly shorter": lambda progress: Habits(length=blend(60, 35, progress), truncated=blend(0.1, 0.0, progress)),
    "mild preference": lambda progress: Habits(favourite=blend(0.05, 0.15, progress)),
}
COLLAPSES = {
    "agreement_fall": lambda progress: Habits(keeps_label=blend(0.85, 0.2, progress, 0.4)),
    "vote_entropy_floor": lambda progress: Habits(sureness=blend(0.6, 1.4, progress, 0.2), truncated=0.0),
    "letter_entropy_fall": lambda progress: Habits(favourite=blend(0.0, 0.9, progress, 0.4)),
    "length_ratio": lambda progress: Habits(length=blend(60, 400, progress, 0.4)),
    "truncation_rise": lambda progress: Habits(truncated=blend(0.02, 0.7, progress, 0.4)),
}


def watch(habits_at, seed: int, settings: Guard | None = None, **sizes: int) -> list[GuardAlarm]:
    guard = CollapseGuard(settings or Guard())
    for metrics in trace(habits_at, sizes.pop("steps", STEPS), seed, **sizes):
        guard.see_step(metrics)
    return guard.alarms


@pytest.mark.parametrize("signal", COLLAPSES)
def test_each_collapse_is_seen_before_it_is_complete(signal):
    alarms = [watch(COLLAPSES[signal], seed) for seed in range(RUNS)]
    assert all(signal in [alarm.signal for alarm in found] for found in alarms)
    steps = [next(alarm.step for alarm in found if alarm.signal == signal) for found in alarms]
    assert all(0.2 * STEPS < step < STEPS for step in steps), steps


@pytest.mark.parametrize("kind", SOUND)
def test_sound_training_raises_no_alarm(kind):
    alarms = [watch(SOUND[kind], seed) for seed in range(RUNS)]
    assert [found for found in alarms if found] == []


def test_small_steps_that_vary_much_raise_no_alarm():
    assert [watch(SOUND["steady"], seed, steps=200, questions=4) for seed in range(RUNS)] == [[]] * RUNS


def test_a_signal_at_0_is_off():
    off = Guard(letter_entropy_fall=0, agreement_fall=0)
    assert watch(COLLAPSES["letter_entropy_fall"], 1, off) == []


def test_an_alarm_names_metric_value_and_limit():
    guard = CollapseGuard(Guard(window=2))
    for step, length in enumerate((100, 102, 100, 98, 20, 22), start=1):
        guard.see_step(make_metrics(step, drawn_length=length))
    (alarm,) = guard.alarms
    assert (alarm.step, alarm.signal, alarm.value, alarm.reference) == (6, "length_ratio", 21, 101)
    text = "the mean drawn_length of the last steps is 21 after step 6, it was 101 (training.guard.length_ratio = 3)"
    assert alarm.describe() == text


def test_each_signal_raises_one_alarm():
    assert len(watch(COLLAPSES["truncation_rise"], 3, Guard(agreement_fall=0, vote_entropy_floor=0))) == 1


def test_steps_that_were_not_measured_are_left_out():
    """Lines of an earlier version have no such metrics."""
    guard = CollapseGuard(Guard(window=2))
    for step in range(1, 9):
        guard.see_step(make_metrics(step))
    assert guard.alarms == []


# --- validation


def validate(step: int, accuracy: float, seed: int, questions: int = 400) -> ValidationResult:
    """A validation with 4 answers to each question; questions differ in difficulty, equally in all validations."""
    levels, rng = random.Random(0), random.Random(f"{seed}/{step}")
    chances = [min(1.0, max(0.0, accuracy + levels.uniform(-0.4, 0.4))) for _ in range(questions)]
    right = [sum(rng.random() < chance for _ in range(4)) for chance in chances]
    return make_result(step, right, 4, 0.0, 0.0, 1.0)


def count_alarms(accuracies: list[float], seed: int) -> int:
    guard, results = CollapseGuard(Guard()), []
    for step, accuracy in enumerate(accuracies):
        results.append(validate(10 * step, accuracy, seed))
        guard.see_validations(results)
    return len(guard.alarms)


def test_a_clear_fall_of_held_out_accuracy_is_seen():
    falling = [0.45, 0.5, 0.52, 0.48, 0.44, 0.4]
    assert sum(count_alarms(falling, seed) for seed in range(RUNS)) == RUNS


def test_noise_of_held_out_accuracy_raises_no_alarm():
    rising = [0.45 + 0.005 * number for number in range(12)]
    assert sum(count_alarms(rising, seed) for seed in range(RUNS)) == 0
    assert sum(count_alarms([0.5] * 12, seed) for seed in range(40)) <= 2


def test_a_bad_moment_of_a_rising_policy_raises_no_alarm():
    """One validation lies 5 points below the best: with the next one the policy is above it again."""
    assert sum(count_alarms([0.45, 0.5, 0.52, 0.47, 0.53, 0.54], seed) for seed in range(40)) <= 1


def test_a_single_question_raises_no_alarm():
    guard = CollapseGuard(Guard())
    guard.see_validations([make_result(step, [4 - step], 4, 0, 0, 1) for step in (0, 3, 4)])
    assert guard.alarms == []
