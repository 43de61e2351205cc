"""Scores at TensorBoard, W&B and MLflow: stable names, samples only where asked for, failures that end nothing."""

import json

import pytest
from finished_run import write_run

from medssr_dist.evaluation.question_letters import read_question_letters
from medssr_dist.evaluation.score_tracking import ScoreTracking, list_score_tags, make_sample_table, track_scores
from medssr_dist.evaluation.scores import read_scores


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    run = write_run(tmp_path_factory.mktemp("run"))
    return run, read_scores(run.evaluation.scores), read_question_letters(run.evaluation.letters)


def make_place(run, *trackers, samples=0) -> ScoreTracking:
    return ScoreTracking(trackers, "medssr", run.root, run.evaluation.tensorboard, samples, {"voting": {"samples": 8}})


def test_names_are_stable_and_fit_all_services(evaluated):
    _, scores, _ = evaluated
    found = list_score_tags(scores)
    assert {"evaluation/set/base/accuracy", "evaluation/rare diseases/stage1/interval_low"} <= found.keys()
    assert all(0 <= value <= 1 for value in found.values())
    renamed = scores.model_copy(update={"benchmarks": {}})
    assert all(":" not in tag for tag in list_score_tags(renamed))


def test_a_table_of_samples_has_letters_and_no_texts(evaluated):
    _, scores, letters = evaluated
    table = make_sample_table(scores, letters, 2)
    assert table.head == ("set", "question", "right answer", "base", "stage1") and len(table.rows) == 2
    assert table.rows == make_sample_table(scores, letters[::-1], 2).rows
    assert "Question" not in json.dumps(table.rows)
    assert make_sample_table(scores, letters, 0).rows == ()


def test_tensorboard_gets_scalars_and_the_table(evaluated):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run, scores, letters = evaluated
    track_scores(make_place(run, "tensorboard", samples=3), scores, letters)
    events = EventAccumulator(str(run.evaluation.tensorboard))
    events.Reload()
    assert set(events.Tags()["scalars"]) == set(list_score_tags(scores))
    assert events.Tags()["tensors"] == ["evaluation/samples/text_summary"]


def test_wandb_offline_gets_one_run(evaluated, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run, scores, letters = evaluated
    track_scores(make_place(run, "wandb", samples=1), scores, letters)
    assert len(list((run.root / "wandb").glob("offline-run-*-evaluation-*"))) == 1


def test_a_service_that_fails_is_a_warning(evaluated, caplog, monkeypatch):
    run, scores, letters = evaluated
    monkeypatch.setitem(__import__("sys").modules, "mlflow", None)
    track_scores(make_place(run, "mlflow"), scores, letters)
    assert "mlflow gets no scores" in caplog.text


def test_mlflow_gets_metrics_config_and_the_table(evaluated, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    run, scores, letters = evaluated
    track_scores(make_place(run, "mlflow", samples=2), scores, letters)
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("medssr")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.data.metrics == pytest.approx(list_score_tags(scores))
    folders = [client.list_artifacts(found.info.run_id, folder) for folder in (None, "evaluation")]
    assert {"config.json", "evaluation/samples.json"} <= {file.path for files in folders for file in files}
