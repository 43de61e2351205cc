"""Each shipped ablation end to end on the real stack, on the config of the tiny model in place of Qwen's."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from places import REPO
from stored_votes import stored_labels

from medssr_dist.data.jsonl import read_json, read_jsonl

ABLATIONS = sorted((REPO / "configs" / "ablations").glob("*.yaml"))


@pytest.fixture
def run_ablation(medssr, tiny_config, tmp_path):
    def run(file: Path) -> Path:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
        assert tree["extends"] == "../qwen3_8b.yaml"
        config = tmp_path / file.name
        config.write_text(yaml.safe_dump(tree | {"extends": str(tiny_config)}), encoding="utf-8")
        medssr("run", "--config", config, "--run-dir", tmp_path / "run")
        return tmp_path / "run"

    return run


def policies(run: Path) -> list[str]:
    return list(read_json(run / "evaluation" / "scores.json")["policies"])


def questions(run: Path) -> list[dict]:
    return list(read_jsonl(run / "synthesis" / "questions.jsonl"))


def trained(run: Path) -> list[str]:
    """Return the stages that ran; each has two steps and a model with its card."""
    stages = []
    for folder in sorted((run / "training").iterdir()):
        assert [row["step"] for row in read_jsonl(folder / "metrics.jsonl")] == [1, 2]
        assert "research only" in (folder / "hf" / "README.md").read_text()
        stages.append(folder.name)
    return stages


def samples(run: Path, stage: str) -> set[str]:
    return {row["question_id"] for row in read_jsonl(run / "training" / stage / "samples.jsonl")}


def no_stage1(run: Path) -> None:
    assert trained(run) == ["stage2"] and policies(run) == ["base", "stage2"]
    assert not (run / "synthesis").exists() and not (run / "voting").exists()
    assert "from the base model" in (run / "training" / "stage2" / "hf" / "README.md").read_text()


def no_stage2(run: Path) -> None:
    assert trained(run) == ["stage1"] and policies(run) == ["base", "stage1"]
    assert samples(run, "stage1") <= {question["id"] for question in questions(run)}


def single_stage_mix(run: Path) -> None:
    assert trained(run) == ["stage2"] and policies(run) == ["base", "stage2"]
    assert stored_labels(run / "voting")
    card = (run / "training" / "stage2" / "hf" / "README.md").read_text()
    assert "16 human-annotated questions" in card and "Mixed with synthetic questions" in card


def no_filter(run: Path) -> None:
    assert trained(run) == ["stage1", "stage2"]
    labels = stored_labels(run / "voting")
    assert all(label.kept for label in labels if label.answer is not None)
    assert read_json(run / "config.resolved.json")["voting"]["threshold"] == 0


def no_knowledge(run: Path) -> None:
    assert trained(run) == ["stage1", "stage2"]
    assert len(questions(run)) == 8 and {question["provenance"]["entity"] for question in questions(run)} == {None}


EXPECTED = {check.__name__: check for check in (no_stage1, no_stage2, single_stage_mix, no_filter, no_knowledge)}


def test_every_ablation_is_run():
    assert [file.stem for file in ABLATIONS] == sorted(EXPECTED)


@pytest.mark.slow
@pytest.mark.parametrize("file", ABLATIONS, ids=lambda file: file.stem)
def test_ablation(run_ablation, file):
    EXPECTED[file.stem](run_ablation(file))
