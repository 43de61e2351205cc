"""Which policy a stage publishes, and when it ends early; read again from its files, it decides the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from config_builder import make_config
from step_rows import append_steps, make_metrics

from medssr_dist.estimates.memory import count_candidates
from medssr_dist.training.collapse_guard import read_alarms
from medssr_dist.training.stage_job import StageJob
from medssr_dist.training.stage_watch import StageWatch, copy_model
from medssr_dist.training.validation_log import make_result

VALIDATE = {"data": ["held_out.jsonl"], "every": 2}
LENGTHS = (100, 102, 100, 98, 20, 22)  # the length falls to a fifth; with window 2, the alarm comes after step 6


@pytest.fixture
def make_job(tmp_path):
    """Make a stage with these settings of `training`, in one folder for all stages of a test."""

    def make(name: str = "stage1", **training) -> StageJob:
        config = make_config(training={"stage2": {"enabled": True, "data": ["d"]}, **training})
        return StageJob(name, config, config.training.stage1, Path(), Path(), tmp_path, "", 9, None, None)

    return make


def validate(watch: StageWatch, step: int, right: int) -> None:
    """Add a validation in which `right` of 100 questions are answered."""
    watch.add_result(make_result(step, [1] * right + [0] * (100 - right), 1, 0.0, 0.0, 1.0))


def take_steps(job: StageJob, watch: StageWatch, lengths=LENGTHS, save_steps: int = 2) -> None:
    """Take steps with answers of these lengths, as AfterStep does; candidates are empty folders."""
    for step, length in enumerate(lengths, start=1):
        metrics = make_metrics(step, drawn_length=length)
        append_steps(job.paths.metrics, metrics)
        watch.add_step(metrics)
        is_saved = step % save_steps == 0
        if watch.is_candidate(step, is_saved):
            job.paths.hf_candidate(step).mkdir()
        if is_saved:
            watch.delete_candidates(step)


def test_without_checks_the_last_policy_is_published(make_job):
    job = make_job()
    watch = StageWatch(job)
    take_steps(job, watch)
    assert (watch.ended_by, watch.choose(6), job.paths.candidates()) == ("", 6, [])
    assert not job.paths.guard.exists()


def test_the_best_validated_policy_is_published(make_job):
    job = make_job(validate=VALIDATE)
    watch = StageWatch(job)
    chosen = []
    for step, right in ((0, 40), (2, 45), (4, 50), (6, 50), (8, 40)):
        validate(watch, step, right)
        if step:
            if watch.is_candidate(step, is_saved=False):
                job.paths.hf_candidate(step).mkdir()
            chosen.append(watch.choose(step))
    assert chosen == [2, 4, 6, 6]  # the later of equal ones
    watch.delete_candidates(8)
    assert job.paths.candidates() == [6]
    assert StageWatch(job).choose(8) == 6
    assert watch.find_accuracy(4) == 0.5 and watch.find_accuracy(5) is None


def test_a_stage_that_makes_its_policy_worse_publishes_the_start(make_job):
    job = make_job(validate=VALIDATE)
    watch = StageWatch(job)
    validate(watch, 0, 60)
    assert watch.keeps_start
    job.paths.hf_candidate(0).mkdir()
    watch.delete_candidates(1)
    for step, right in ((2, 45), (4, 50)):
        validate(watch, step, right)
        assert not watch.is_candidate(step, is_saved=False)
        watch.delete_candidates(step)
    assert job.paths.candidates() == [0] and watch.choose(4) == 0


def test_the_start_is_kept_until_a_trained_policy_was_validated(make_job):
    job = make_job(guard={"window": 2}, validate=VALIDATE | {"every": 50})
    watch = StageWatch(job)
    validate(watch, 0, 60)
    job.paths.hf_candidate(0).mkdir()
    take_steps(job, watch, LENGTHS[:4])
    assert job.paths.candidates() == [0, 2, 4]
    validate(watch, 4, 50)
    watch.delete_candidates(4)
    assert job.paths.candidates() == [0] and watch.choose(4) == 0


def test_a_guard_without_calm_checkpoints_publishes_the_start(make_job):
    job = make_job(guard={"window": 2})
    watch = StageWatch(job)
    assert watch.keeps_start
    job.paths.hf_candidate(0).mkdir()
    take_steps(job, watch, save_steps=5)
    assert watch.ended_by and watch.choose(6) == 0


@pytest.mark.parametrize("save_steps", [1, 3, 8])
@pytest.mark.parametrize("settings", [{}, {"guard": {"window": 4}}, {"validate": {}}, {"validate": {}, "guard": {}}])
@pytest.mark.parametrize("every", [1, 2, 5, 30])
def test_the_disk_estimate_counts_all_candidates(make_job, settings, every, save_steps):
    validated = {"validate": VALIDATE | {"every": every}} if "validate" in settings else {}
    job = make_job(**settings | validated)
    watch, most = StageWatch(job), 0
    if validated:
        validate(watch, 0, 10)
    if watch.keeps_start:
        job.paths.hf_candidate(0).mkdir()
    for step in range(1, 25):
        if validated and step % every == 0:
            validate(watch, step, 10 + step)  # each is the best so far
        metrics = make_metrics(step)
        watch.add_step(metrics)
        if watch.is_candidate(step, step % save_steps == 0):
            job.paths.hf_candidate(step).mkdir()
        most = max(most, len(job.paths.candidates()))
        if step % save_steps == 0:
            watch.delete_candidates(step)
    counted = count_candidates(job.config, "stage1", save_steps)
    assert most <= counted and (most > 0) == (counted > 0)


def test_without_checks_the_start_is_not_kept(make_job):
    assert not StageWatch(make_job()).keeps_start


def test_a_lost_candidate_is_replaced_by_the_last_policy(make_job):
    job = make_job(validate=VALIDATE)
    watch = StageWatch(job)
    validate(watch, 2, 50)
    validate(watch, 4, 40)
    assert watch.choose(4) == 4


def test_a_guard_ends_stage_1_with_its_last_calm_policy(make_job):
    job = make_job(guard={"window": 2})
    watch = StageWatch(job)
    take_steps(job, watch)
    alarm = "the mean drawn_length of the last steps is 21 after step 6, it was 101 (training.guard.length_ratio = 3)"
    assert watch.ended_by == f"guard: {alarm}"
    assert job.paths.candidates() == [4] and watch.choose(6) == 4
    assert [alarm.step for alarm in read_alarms(job.paths.guard)] == [6]


def test_a_resumed_stage_decides_as_before(make_job):
    job = make_job(guard={"window": 2})
    take_steps(job, StageWatch(job), LENGTHS[:5])
    resumed = StageWatch(job)
    assert resumed.ended_by == ""
    metrics = make_metrics(6, drawn_length=LENGTHS[5])
    append_steps(job.paths.metrics, metrics)
    resumed.add_step(metrics)
    job.paths.guard.unlink()  # as if it was killed before it wrote the alarm
    again = StageWatch(job)
    assert resumed.ended_by == again.ended_by != ""
    assert [alarm.step for alarm in read_alarms(job.paths.guard)] == [6]


def test_a_guard_that_warns_ends_nothing(make_job):
    job = make_job(guard={"window": 2, "action": "warn"})
    watch = StageWatch(job)
    take_steps(job, watch)
    assert (watch.ended_by, job.paths.candidates(), watch.choose(6)) == ("", [], 6)
    assert [alarm.signal for alarm in read_alarms(job.paths.guard)] == ["length_ratio"]


def test_the_guard_does_not_watch_stage_2(make_job):
    job = make_job("stage2", guard={"window": 2})
    watch = StageWatch(job)
    take_steps(job, watch)
    assert watch.ended_by == "" and not job.paths.guard.exists()


def test_a_guard_publishes_the_best_validated_policy(make_job):
    job = make_job(guard={"window": 2}, validate=VALIDATE)
    watch = StageWatch(job)
    job.paths.hf_candidate(2).mkdir()
    validate(watch, 0, 40)
    validate(watch, 2, 50)
    validate(watch, 4, 10)
    assert watch.ended_by == ""  # one bad validation is no alarm
    validate(watch, 6, 12)
    assert watch.ended_by.startswith("guard: validation_accuracy is 0.12 after step 6, it was 0.5")
    assert watch.choose(6) == 2


def test_before_a_validation_the_guard_keeps_calm_policies(make_job):
    job = make_job(guard={"window": 2}, validate=VALIDATE | {"every": 50})
    watch = StageWatch(job)
    validate(watch, 0, 40)
    take_steps(job, watch)
    assert watch.choose(6) == 4


@pytest.mark.parametrize(("patience", "ended_at"), [(0, None), (1, 4), (2, 6)])
def test_patience_ends_a_stage(make_job, patience, ended_at):
    watch = StageWatch(make_job("stage2", validate=VALIDATE | {"patience": patience}))
    ended = []
    for step, right in ((0, 40), (2, 50), (4, 50), (6, 45)):
        validate(watch, step, right)
        ended += [step] if watch.ended_by else []
    assert (ended[0] if ended else None) == ended_at
    assert ("training.validate.patience" in watch.ended_by) == bool(ended_at)


def test_a_copied_model_shares_its_files(tmp_path):
    source = tmp_path / "hf_best4"
    source.mkdir()
    (source / "model.safetensors").write_text("weights")
    copy = copy_model(source, tmp_path / "hf.partial")
    assert (copy / "model.safetensors").samefile(source / "model.safetensors")
    assert (copy / "model.safetensors").read_text() == "weights"
