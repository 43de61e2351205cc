"""What a stage writes for readers: samples, model cards, trackers; and what a restart removes from it."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from config_builder import make_config
from step_rows import append_steps, make_metrics
from tiny_policy import tiny_tokenizer

from medssr_dist.config.training import Training
from medssr_dist.data.jsonl import JsonlLedger, read_json, read_jsonl
from medssr_dist.data.prompt_forms import load_prompt_form
from medssr_dist.errors import InputError, Stopped
from medssr_dist.run.directory import open_run
from medssr_dist.training.after_step import SampleLog
from medssr_dist.training.model_card import write_model_card
from medssr_dist.training.stage_job import StageCounts, StageJob, StageSummary
from medssr_dist.training.trackers import Trackers, check_trackers
from medssr_dist.training.train_stage import RunningStage, _drop_steps_after, _make_bar_text, _publish, _tell_end
from medssr_dist.training.validation_log import append_validation, make_result
from medssr_dist.training.weights.checkpoints import Checkpoint

SECRET = "sk-this-is-a-secret"


@pytest.fixture
def job(tmp_path) -> StageJob:
    """Stage 1 with 4 steps, of a run whose config contains a secret."""
    config = make_config(
        policy={"model": "Qwen/Qwen3-8B"},
        synthesis={"endpoints": [{"base_url": "http://u/v1", "model": "m", "api_key": SECRET}]},
        training={"stage1": {"steps": 4}},
    ).without_secrets()
    base, folder = tmp_path / "base", tmp_path / "run" / "training" / "stage1"
    folder.mkdir(parents=True)
    return StageJob(
        "stage1", config, config.training.stage1, base, base, folder, "Ten labelled questions.", 4, None, None
    )


def append_rows(job: StageJob, *steps: int) -> None:
    append_steps(job.paths.metrics, *(make_metrics(step, time=1.0, reward=step / 10, kl=0.5) for step in steps))


def set_trackers(job: StageJob, *names: str, step: int = 0) -> StageJob:
    training = job.config.training.model_copy(update={"trackers": list(names)})
    checkpoint = Checkpoint(step, 2, 0.0, 1.0, {}) if step else None
    config = job.config.model_copy(update={"training": training})
    return StageJob(**{**vars(job), "config": config, "checkpoint": checkpoint})


# --- samples


def make_rollout(index: int) -> SimpleNamespace:
    tokenizer = tiny_tokenizer()
    sequence = torch.tensor([tokenizer.convert_tokens_to_ids(["Pick", "the", "letter", "B", "<eos>"])])
    return SimpleNamespace(
        prompts=[f"question {index}"],
        labels=[json.dumps({"answer": "B", "options": {}, "id": f"q{index}"})],
        sequences=sequence,
        action_mask=torch.tensor([[0, 0, 1, 1]]),
        rewards=torch.tensor([1.0]),
        truncated=torch.tensor([False]),
        info={"policy_lag": torch.tensor([1.0])},
    )


def test_samples_are_spread_over_the_step(tmp_path):
    log = SampleLog(tmp_path / "samples.jsonl", tiny_tokenizer(), count=3)
    log.keep([make_rollout(index) for index in range(8)], step=5)
    rows = list(read_jsonl(tmp_path / "samples.jsonl"))
    assert [row["question_id"] for row in rows] == ["q0", "q2", "q4"]
    assert rows[0] == {
        "step": 5,
        "question_id": "q0",
        "prompt": "question 0",
        "response": "B",
        "label": "B",
        "reward": 1.0,
        "truncated": False,
        "policy_lag": 1,
    }


@pytest.mark.parametrize(("count", "rollouts", "kept"), [(0, 8, 0), (4, 2, 2), (4, 0, 0), (4, 4, 4), (3, 4, 3)])
def test_at_most_all_samples_are_kept(tmp_path, count, rollouts, kept):
    SampleLog(tmp_path / "s", tiny_tokenizer(), count).keep([make_rollout(index) for index in range(rollouts)], 1)
    assert (len(list(read_jsonl(tmp_path / "s"))) if kept else (tmp_path / "s").exists()) == kept


# --- the progress bar


def test_the_bar_shows_reward_and_time_left():
    seconds = [1000.0] * 5 + [60.0] * 5
    rows = [make_metrics(n, reward=n / 100, kl=2e-4, seconds=each) for n, each in enumerate(seconds, start=1)]
    assert _make_bar_text(rows, total=40) == {"reward": "0.10", "kl": "2.0e-04", "ETA": "30 min"}
    assert _make_bar_text(rows[:1], total=1)["ETA"] == "0 s"


# --- restart


def test_rows_after_the_checkpoint_are_removed(job):
    append_rows(job, 1, 2, 3)
    with JsonlLedger(job.paths.samples) as ledger:
        ledger.append({"step": 2, "response": "é"}, {"step": 3, "response": "x"})
    untouched = (job.paths.metrics).stat().st_mtime_ns
    _drop_steps_after(job.paths, 3)
    assert (job.paths.metrics).stat().st_mtime_ns == untouched
    _drop_steps_after(job.paths, 2)
    assert [row["step"] for row in read_jsonl(job.paths.metrics)] == [1, 2]
    assert list(read_jsonl(job.paths.samples)) == [{"step": 2, "response": "é"}]


# --- a stage that is not started


def test_a_stage_without_time_is_not_started(job):
    append_rows(job, 1)
    late = StageJob(**{**vars(job), "end": time.time() - 1})
    with pytest.raises(Stopped, match="stage1 stopped after step 0, its end time is over"):
        RunningStage(late, None, None, should_stop=lambda: False)
    with pytest.raises(Stopped, match="stopped before stage1"):
        RunningStage(job, None, None, should_stop=lambda: True)
    assert len(list(read_jsonl(job.paths.metrics))) == 1


# --- model card


def test_a_card_describes_training_and_limits(job, tmp_path):
    append_rows(job, 1, 2, 3)
    folder = tmp_path / "hf"
    folder.mkdir()
    write_model_card(folder, job, step=2)
    text = (folder / "README.md").read_text()
    header = yaml.safe_load(text.split("---\n")[1])
    assert header["base_model"] == "Qwen/Qwen3-8B" and "not-for-clinical-use" in header["tags"]
    assert "# Qwen3-8B, stage 1 (self-supervised GRPO)" in text
    assert "**For research only. Not for clinical use.**" in text
    assert "Ten labelled questions." in text and "2 of 4 steps" in text and "from the base model" in text
    assert "| last step | 0.2 | 0.5 |" in text and "| learning_rate | 1e-06 |" in text and "| commit | " in text
    assert f"| prompt | {load_prompt_form('reason').label} |" in text and "explain step by step" in text
    assert str(tmp_path) not in text and SECRET not in text


def test_a_card_contains_no_folder_of_the_user(job, tmp_path):
    policy = job.config.policy.model_copy(update={"model": "/home/someone/models/tiny"})
    config = job.config.model_copy(update={"policy": policy})
    write_model_card(tmp_path, StageJob(**{**vars(job), "config": config}), step=0)
    text = (tmp_path / "README.md").read_text()
    assert "# tiny, stage 1" in text and "/home" not in text and "base_model" not in text


def test_a_card_of_the_start_claims_no_training_of_its_stage(job, tmp_path):
    append_rows(job, 1, 2)
    write_model_card(tmp_path, job, step=0)
    text = (tmp_path / "README.md").read_text()
    assert "No step of this stage is in the weights. They are those that it began with: the base model." in text
    assert "None of this stage's, because no step of it is in the weights." in text
    assert "steps of GRPO" not in text and "None, because no step of this stage is in the weights." in text


def test_a_card_says_that_stage_1_left_the_base_model(job, tmp_path):
    job.paths.hf_partial.mkdir()
    _publish(job.paths, StageCounts(8, 0, "", published_step=0), seconds=1.0)
    write_model_card(tmp_path, replace(job, model=job.paths.hf), step=2)
    text = (tmp_path / "README.md").read_text()
    assert "2 of 4 steps" in text and "from stage 1's weights, which are still the base model's, with" in text


# --- what a stage publishes


def test_candidates_are_kept_until_the_run_records_the_end(job):
    """A stage that is killed between its summary and the manifest is resumed, and chooses among them again."""
    append_rows(job, 1, 2)
    for folder in (job.paths.hf_partial, job.paths.hf_candidate(0), job.paths.hf_candidate(2)):
        folder.mkdir()
        (folder / "config.json").write_text(folder.name, encoding="utf-8")
    with open_run(job.folder.parents[1], job.config) as run:
        run.begin_step("stage1", job.config, {})
        _publish(job.paths, StageCounts(8, 0, "", published_step=2), seconds=1.0)
        assert (job.paths.hf / "config.json").read_text() == job.paths.hf_partial.name
        assert job.paths.candidates() == [0, 2] and read_json(job.paths.summary)["published_step"] == 2
        run.finish_step("stage1")
    assert job.paths.candidates() == [] and not list(job.paths.folder.glob("hf_best*"))


def test_a_candidate_whose_deletion_is_cut_short_is_none(job, monkeypatch):
    job.paths.hf_candidate(4).mkdir()
    monkeypatch.setattr(shutil, "rmtree", lambda folder, **options: None)
    job.paths.delete_candidate(4)
    assert job.paths.candidates() == [] and [left.name for left in job.paths.partial_exports()] == ["hf_best4.partial"]


def test_the_log_says_that_the_best_policy_is_lost(job, caplog):
    for step, right in ((0, [4, 4]), (2, [1, 1])):
        append_validation(job.paths.validation, make_result(step, right, 4, 0.0, 0.0, 1.0))
    _tell_end(job, StageCounts(8, 0, "", published_step=2))
    assert "the best policy, after step 0, is no longer on disk; published: the policy after step 2" in caplog.text


def test_notes_of_a_stage_name_what_it_publishes():
    found = StageSummary(8, 0, "", 1.0, 4, [0.5], 9, published_step=4, ended_by="guard: x is 1", alarms=["x is 1", "y"])
    assert found.describe_end() == ["ended early, guard: x is 1", "collapse guard: y"]
    validated = replace(found, accuracy_by_step={0: 0.4, 4: 0.5}, ended_by="", alarms=[])
    assert validated.describe_end() == ["published: the policy after step 4"]
    assert replace(found, published_step=0).describe_end()[1] == "published: the policy that the stage began with"


# --- trackers


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def test_tensorboard_follows_the_metrics_while_they_grow(job):
    job = set_trackers(job, "tensorboard")
    trackers = Trackers(job)
    append_rows(job, 1)
    time.sleep(0.3)
    append_rows(job, 2)
    trackers.close()
    found = scalars(job.paths.tensorboard)
    assert found["train/reward"] == {1: pytest.approx(0.1), 2: pytest.approx(0.2)}
    assert {"train/reward", "train/kl"} < set(found) and not {"train/step", "train/time"} & set(found)


def test_after_a_restart_repeated_steps_are_overwritten(job):
    first = Trackers(set_trackers(job, "tensorboard"))
    append_rows(job, 1, 2, 3)
    first.close()
    _drop_steps_after(job.paths, 2)
    time.sleep(1.1)  # event files are named after the second in which they are created
    second = Trackers(set_trackers(job, "tensorboard", step=2))
    append_steps(job.paths.metrics, make_metrics(3, time=2.0, reward=0.9, kl=0.5))
    second.close()
    found = scalars(job.paths.tensorboard)["train/reward"]
    assert found == {1: pytest.approx(0.1), 2: pytest.approx(0.2), 3: pytest.approx(0.9)}


def test_a_failing_tracker_is_reported_and_dropped(job, caplog):
    (job.paths.tensorboard).write_text("not a folder")
    trackers = Trackers(set_trackers(job, "tensorboard"))
    append_rows(job, 1)
    trackers.close()
    assert "tensorboard gets no more metrics of stage1" in caplog.text


def test_wandb_gets_metrics_and_config_but_no_secret(job, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 32 + "deadbeef")
    append_rows(job, 1)
    for step in (0, 1):
        trackers = Trackers(set_trackers(job, "wandb", step=step))
        append_rows(job, step + 2)
        trackers._thread.join(timeout=0.1)
        trackers.close()
    run_id = read_json(job.paths.trackers)["wandb"]
    folders = [folder.name for folder in (job.folder / "wandb").glob("offline-run-*")]
    assert len(folders) == 2 and all(f"-{run_id}" in name for name in folders)  # one W&B run, resumed
    stored = b"".join(file.read_bytes() for file in (job.folder / "wandb").rglob("*") if file.is_file())
    assert b"train/reward" in stored and b"Qwen/Qwen3-8B" in stored
    assert SECRET.encode() not in stored and b"deadbeef" not in stored


def test_mlflow_metrics_are_one_run(job, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)  # mlflow writes artifacts into the current folder
    for step in (0, 1):
        trackers = Trackers(set_trackers(job, "mlflow", step=step))
        append_rows(job, step + 1)
        trackers.close()
    run_id = read_json(job.paths.trackers)["mlflow"]
    history = mlflow.MlflowClient().get_metric_history(run_id, "reward")
    assert [point.step for point in history] == [1, 2]


@pytest.mark.parametrize(
    ("name", "variables", "expected"),
    [
        ("wandb", {}, "export WANDB_API_KEY, or WANDB_MODE=offline"),
        ("wandb", {"WANDB_API_KEY": "k"}, None),
        ("wandb", {"WANDB_MODE": "offline"}, None),
        ("tensorboard", {}, None),
    ],
)
def test_a_tracker_without_its_key_is_refused(monkeypatch, name, variables, expected):
    pytest.importorskip(name)
    for variable in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    training = Training.model_construct(trackers=[name])
    if expected is None:
        check_trackers(training)
    else:
        with pytest.raises(InputError, match=expected):
            check_trackers(training)


def test_a_tracker_that_is_not_installed_is_refused(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="names mlflow, which is not installed here: pip install mlflow"):
        check_trackers(Training.model_construct(trackers=["mlflow"]))
