"""The real stack end to end on a tiny model: HTTP teacher, vLLM on Ray, OpenRLHF with ZeRO-3, evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from stored_votes import stored_labels, stored_votes

from medssr_dist.data.jsonl import read_json, read_jsonl

POLICIES = "evaluation.policies=[base, stage2]"  # an engine less to start


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("run") / "tiny"


def test_whole_method(medssr, tiny_config, finished):
    done = medssr("run", "--config", tiny_config, "--run-dir", finished, POLICIES)
    assert "accuracy" in done.stdout
    questions = list(read_jsonl(finished / "synthesis" / "questions.jsonl"))
    assert len(questions) == 8
    votes, labels = stored_votes(finished / "voting"), stored_labels(finished / "voting")
    assert [label.question.id for label in labels] == [question["id"] for question in questions]
    assert len({vote.key for vote in votes}) == len(votes) == sum(label.taken for label in labels)
    assert all(3 <= label.taken <= 5 for label in labels)
    for stage in ("stage1", "stage2"):
        rows = list(read_jsonl(finished / "training" / stage / "metrics.jsonl"))
        assert [row["step"] for row in rows] == [1, 2]
        assert all(0 <= row["reward"] <= 1 and row["samples"] == 8 for row in rows)
        assert any((finished / "training" / stage / "tensorboard").iterdir())
    scores = read_json(finished / "evaluation" / "scores.json")
    assert list(scores["policies"]) == ["base", "stage2"]
    assert read_json(finished / "summary.json")["steps"]["evaluate"] == scores


def test_checkpoints_load_and_differ(finished, tiny_model):
    import torch
    from transformers import AutoModelForCausalLM

    def weights(folder):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        return torch.cat([weight.flatten() for weight in model.state_dict().values()])

    base, stage1, stage2 = map(weights, (tiny_model, _hf(finished, "stage1"), _hf(finished, "stage2")))
    assert not torch.equal(base, stage1)
    assert not torch.equal(stage1, stage2)


def _hf(run: Path, stage: str) -> Path:
    return run / "training" / stage / "hf"


def test_finished_run_is_recognised(medssr, tiny_config, finished):
    before = (finished / "voting" / "votes" / "00000.jsonl").stat()
    done = medssr("run", "--config", tiny_config, "--run-dir", finished, POLICIES)
    assert done.stdout.count("already finished") == 5
    assert (finished / "voting" / "votes" / "00000.jsonl").stat().st_mtime_ns == before.st_mtime_ns


def test_other_settings_are_refused(medssr, tiny_config, finished):
    done = medssr("run", "--config", tiny_config, "--run-dir", finished, POLICIES, "voting.samples=6", check=False)
    assert done.returncode == 2
    assert "voting.samples: 5 -> 6" in done.stderr
    assert "Traceback" not in done.stderr


def test_manifest_tells_what_ran(finished):
    manifest = read_json(finished / "manifest.json")
    assert manifest["attempts"][0]["versions"]["openrlhf"] == "0.11.2"
    assert all(step["finished"] for step in manifest["steps"].values())
    assert json.loads((finished / "config.resolved.json").read_text())["voting"]["samples"] == 5
