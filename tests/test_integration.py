"""The whole method on a tiny model with the real stack: teacher over HTTP, vLLM on Ray, ZeRO-3, evaluation."""

from __future__ import annotations

from pathlib import Path

import pytest
from stored_votes import stored_labels, stored_votes

from medssr_dist.data.jsonl import read_json, read_jsonl
from medssr_dist.evaluation.question_letters import read_question_letters
from medssr_dist.evaluation.scores import read_scores
from medssr_dist.run.paths import STAGES, RunPaths, vote_segment

POLICIES = "evaluation.policies=[base, stage2]"  # without stage1 there is one engine less to start


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunPaths:
    """The run directory that the first test fills and the others look at."""
    return RunPaths(tmp_path_factory.mktemp("run") / "tiny")


@pytest.fixture
def crowded_folder(tmp_path) -> Path:
    """A working directory with files that have the names of modules which every process imports."""
    folder = tmp_path / "crowded"
    folder.mkdir()
    for name in ("json", "kernels", "numpy", "random", "ray", "tokenize", "torch", "yaml"):
        (folder / f"{name}.py").write_text('raise RuntimeError("a file of the working directory was imported")\n')
    return folder


def test_whole_method_runs(medssr, tiny_config, run, crowded_folder):
    done = medssr("run", "--config", tiny_config, "--run-dir", run.root, POLICIES, cwd=crowded_folder)
    assert "accuracy" in done.stdout and "--- one question ---" in done.stdout
    assert run.summary_plot.read_bytes().startswith(b"\x89PNG")
    assert "starting 1 vLLM engine" in done.stderr and done.stderr.count("\n") < 250, "a clean run has a short log"
    questions = list(read_jsonl(run.synthesis.questions))
    assert len(questions) == 8
    votes, labels = stored_votes(run.voting.folder), stored_labels(run.voting.folder)
    assert [label.question.id for label in labels] == [question["id"] for question in questions]
    assert len({vote.key for vote in votes}) == len(votes) == sum(label.taken for label in labels)
    assert all(3 <= label.taken <= 5 for label in labels)
    for stage in map(run.stage, STAGES):
        rows = list(read_jsonl(stage.metrics))
        assert [row["step"] for row in rows] == [1, 2]
        assert all(0 <= row["reward"] <= 1 and row["samples"] == 8 for row in rows)
        assert any(stage.tensorboard.iterdir())
    assert list(read_scores(run.evaluation.scores).policies) == ["base", "stage2"]
    assert read_json(run.summary_file)["steps"]["evaluate"] == read_json(run.evaluation.scores)
    letters = read_question_letters(run.evaluation.letters)
    assert all(set(given) == {"ours", "paper"} for row in letters for given in row.policies.values())
    second_passes = list(read_jsonl(run.evaluation.second_passes))
    assert "paper" in {row["protocol"] for row in second_passes}, "a bare letter is no answer for the paper"
    assert "## Evaluation" in (run.stage("stage2").hf / "README.md").read_text()


def test_checkpoints_load_and_differ(run, tiny_model):
    import torch
    from transformers import AutoModelForCausalLM

    def read_weights(folder):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        return torch.cat([weight.flatten() for weight in model.state_dict().values()])

    base, stage1, stage2 = map(read_weights, (tiny_model, *(run.stage(name).hf for name in STAGES)))
    assert not torch.equal(base, stage1)
    assert not torch.equal(stage1, stage2)


def test_finished_run_is_not_repeated(medssr, tiny_config, run):
    votes = vote_segment(run.voting.votes, 0)
    before = votes.stat()
    done = medssr("run", "--config", tiny_config, "--run-dir", run.root, POLICIES)
    assert done.stderr.count("already finished") == 5
    assert votes.stat().st_mtime_ns == before.st_mtime_ns


def test_changed_settings_are_refused(medssr, tiny_config, run):
    done = medssr("run", "--config", tiny_config, "--run-dir", run.root, POLICIES, "voting.samples=6", check=False)
    assert done.returncode == 2
    assert "voting.samples: 5 -> 6" in done.stderr
    assert "Traceback" not in done.stderr


def test_manifest_records_versions_and_steps(run):
    manifest = read_json(run.manifest_file)
    assert manifest["attempts"][0]["versions"]["openrlhf"] == "0.11.2"
    assert all(step["finished"] for step in manifest["steps"].values())
    assert read_json(run.config_file)["voting"]["samples"] == 5
