"""A stage that runs out of memory names settings that help, and a run that has begun may change them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import ray
import torch
from config_builder import make_config

from medssr_dist.errors import InputError, TrainingFailed
from medssr_dist.run.directory import open_run
from medssr_dist.training.engine_failures import EngineDiedError, EngineLostError, SyncError, is_engine_death
from medssr_dist.training.stage_errors import explain_stage_error
from medssr_dist.training.train_stage import RunningStage

INPUTS = {"model": "9f0c"}


class Failed(Exception):
    """As Ray's RayTaskError: the error of an actor, around that of another one."""

    def __init__(self, cause):
        self.cause = cause


def job(tmp_path, stage2=None, **training):
    # stage 2 is off, but it is what the test looks at
    training["stage2"] = {"enabled": False} | (stage2 or {})
    config = make_config(policy={"max_model_len": 4096}, training=training)
    return SimpleNamespace(name="stage2", folder=tmp_path, config=config, stage=config.training.stage2)


THRIFTY = {"gradient_checkpointing": True, "offload_optimizer": True, "offload_reference": True}


@pytest.mark.parametrize(
    ("stage", "training", "told", "not_told"),
    [
        ({"micro_batch_size": 4}, {}, "lower training.stage2.micro_batch_size = 4", "micro_batch_tokens"),
        ({"micro_batch_size": 1}, {}, "set training.gradient_checkpointing=true", "micro_batch_size"),
        ({"micro_batch_tokens": 8192}, {}, "lower training.stage2.micro_batch_tokens = 8192 (to 4096", "batch_size"),
        ({"micro_batch_tokens": 4096}, {}, "set training.offload_reference=true", "micro_batch"),
        ({"kl_coef": 0}, {}, "set training.offload_optimizer=true", "offload_reference"),
        ({}, THRIFTY, "train on more ranks", "offload"),
    ],
)
def test_out_of_memory_names_what_helps(tmp_path, stage, training, told, not_told):
    failed = Failed(Failed(torch.OutOfMemoryError("CUDA out of memory")))
    error = explain_stage_error(failed, job(tmp_path, stage, **training))
    assert isinstance(error, InputError)
    assert "stage2 ran out of memory" in str(error) and "resumes from the last complete checkpoint" in str(error)
    assert told in str(error) and not_told not in str(error)


def test_a_full_machine_is_not_told_to_offload(tmp_path):
    error = explain_stage_error(Failed(ray.exceptions.OutOfMemoryError("killed")), job(tmp_path))
    assert "runtime.mode=sequential" in str(error) and "offload" not in str(error)


def test_a_full_disk_is_told_whatever_the_error_says(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=2**20, total=2**40))
    assert "1 MiB free" in str(explain_stage_error(Failed(RuntimeError("unexpected pos 64 vs 0")), job(tmp_path)))


def test_a_small_disk_that_is_almost_empty_is_not_full(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=190 * 2**20, total=192 * 2**20))
    found = explain_stage_error(ray.exceptions.ActorDiedError(), job(tmp_path))
    assert "was killed or has crashed" in str(found)


def test_a_stage_that_ray_ends_for_lack_of_memory_is_no_bug(tmp_path, monkeypatch):
    """Ray's monitor may end the actor that drives the stage; its error is then not within another one."""

    def raise_error(result):
        raise ray.exceptions.OutOfMemoryError("1 worker(s) were killed due to the node running low on memory")

    stage = RunningStage.__new__(RunningStage)
    stage._job, stage._result, stage._should_stop = job(tmp_path), None, lambda: False
    stage._watch = SimpleNamespace(check=lambda: None)
    monkeypatch.setattr(stage, "_show", lambda: None)
    monkeypatch.setattr(stage, "_close", lambda: None)
    monkeypatch.setattr(ray, "wait", lambda results, timeout: (results, []))
    monkeypatch.setattr(ray, "get", raise_error)
    with pytest.raises(InputError, match="the machine ran out of memory"):
        stage.check()


@pytest.mark.parametrize("kind", [ray.exceptions.ActorDiedError, ray.exceptions.WorkerCrashedError])
def test_a_killed_process_is_no_bug(tmp_path, kind):
    for error in (kind(), Failed(kind()), Failed(Failed(kind()))):
        found = explain_stage_error(error, job(tmp_path))
        assert isinstance(found, TrainingFailed) and "stage2 was killed or has crashed" in str(found)


@pytest.mark.parametrize("kind", [SyncError, EngineDiedError, EngineLostError])
def test_engines_that_fail_for_good_are_no_bug(tmp_path, kind):
    found = explain_stage_error(Failed(Failed(kind("rollout engine 3\ndied"))), job(tmp_path))
    assert isinstance(found, TrainingFailed)
    assert "stage2: rollout engine 3 died; the same command then resumes" in str(found)


@pytest.mark.parametrize("kind", [ray.exceptions.ActorDiedError, ray.exceptions.OutOfMemoryError, EngineDiedError])
def test_an_engine_that_was_killed_is_started_again(kind):
    """Ray's memory monitor kills with an error of its own, which is none of RayActorError."""
    error = kind() if kind is ray.exceptions.ActorDiedError else kind("killed")
    assert is_engine_death(error) and is_engine_death(Failed(error))
    assert not is_engine_death(Failed(SyncError("no answer from rollout engine 0")))


def test_other_errors_stay_as_they_are(tmp_path):
    error = Failed(ValueError("a bug"))
    assert explain_stage_error(error, job(tmp_path)) is error


@pytest.mark.parametrize(
    "training",
    [
        {"packing": True, "stage1": {"micro_batch_tokens": 8192}},
        {"gradient_checkpointing": True, "offload_optimizer": True, "offload_reference": True},
        {"colocate_reference": False, "nodes": 2},
        {"attention": "sdpa", "batching": "fixed", "old_logprobs": "always"},
        {"stall_s": 7200.0, "sync_timeout_s": 1200.0, "sync_bucket_mb": 64},
    ],
)
def test_a_run_that_has_begun_may_change_speed_and_memory(tmp_path, training):
    with open_run(tmp_path, make_config()) as run:
        run.begin_step("stage1", make_config(), INPUTS)
    changed = make_config(training=training)
    with open_run(tmp_path, changed) as run:
        run.begin_step("stage1", changed, INPUTS)


@pytest.mark.parametrize(
    "training", [{"stage1": {"learning_rate": 1e-5}}, {"max_policy_lag": 1, "stage1": {"importance": "token"}}]
)
def test_a_run_that_has_begun_may_not_change_its_results(tmp_path, training):
    with open_run(tmp_path, make_config()) as run:
        run.begin_step("stage1", make_config(), INPUTS)
    with (
        pytest.raises(InputError, match="began 'stage1' with other settings"),
        open_run(tmp_path, make_config(training=training)),
    ):
        pass
