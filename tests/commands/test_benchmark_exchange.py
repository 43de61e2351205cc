"""Benchmarks as tasks for lm-evaluation-harness and inspect_ai, and scores of what they stored."""

import json

import pytest
import yaml

from medssr_dist.cli import main
from medssr_dist.data.jsonl import read_jsonl

ROWS = [{"question": f"Pick {n}", "options": {"A": "x", "B": "y"}, "answer": "AB"[n % 2]} for n in range(4)]
REPLIES = ["The answer is A.", "The answer is B.", "I do not know", "Thinking. The answer is (B)."]  # 3 of 4 right


@pytest.fixture
def data(tmp_path):
    file = tmp_path / "set.json"
    file.write_text(json.dumps(ROWS))
    return str(file)


@pytest.fixture
def docs(data, tmp_path, capsys):
    assert main(["tasks", "--data", data, "--to", str(tmp_path / "lm"), "--set", "evaluation.generations=1"]) == 0
    return list(read_jsonl(tmp_path / "lm" / "set.jsonl"))


def test_a_task_of_lm_eval_is_whole(docs, data, tmp_path, capsys):
    task = yaml.safe_load((tmp_path / "lm" / "set.yaml").read_text())
    assert (task["task"], task["output_type"], task["repeats"]) == ("medssr_set", "generate_until", 1)
    assert task["dataset_kwargs"]["data_files"]["test"] == str(tmp_path / "lm" / "set.jsonl")
    assert [doc["answer"] for doc in docs] == ["A", "B", "A", "B"] and "Pick 0" in docs[0]["prompt"]
    assert main(["tasks", "--data", data, "--to", str(tmp_path / "lm")]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_a_dataset_of_inspect_has_input_target_and_id(data, tmp_path):
    assert main(["tasks", "--data", data, "--to", str(tmp_path / "in"), "--form", "inspect", "--limit", "2"]) == 0
    first, _ = read_jsonl(tmp_path / "in" / "set.jsonl")
    assert first["target"] == "A" and "Pick 0" in first["input"] and first["id"]


def write_lm_eval(file, docs):
    rows = [
        {"doc_id": place, "doc": doc, "target": doc["answer"], "resps": [[reply]], "filter": name}
        for name in ("none", "last_letter")
        for place, (doc, reply) in enumerate(zip(docs, REPLIES, strict=True))
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_inspect(file, docs):
    samples = [
        {"id": doc["id"], "epoch": 1, "output": {"choices": [{"message": {"content": "The answer is A."}}]}}
        for doc in docs
    ]
    file.write_text(json.dumps({"version": 2, "samples": samples}))


def test_stored_generations_are_scored_and_compared(docs, data, tmp_path, capsys):
    one, other = tmp_path / "samples_one.jsonl", tmp_path / "other.json"
    write_lm_eval(one, docs)
    write_inspect(other, docs)
    capsys.readouterr()
    assert main(["score", str(one), str(other), "--data", data]) == 0
    text = capsys.readouterr().out
    (row,) = [line for line in text.splitlines() if line.startswith("| set") and "[" in line]
    assert "75.0" in row and "50.0" in row and "[25.0%]" in row
    assert "other - samples_one" in text


def test_files_of_another_form_are_refused(docs, data, tmp_path, capsys):
    for name, content, needle in (
        ("a.jsonl", '{"x": 1}\n', "has no doc with an id"),
        ("a.json", "{}", "is no log of inspect_ai"),
        ("a.eval", "", "is a packed log"),
        ("b.json", '{"samples": []}', "has no answer to 4 of 4 questions"),
        ("b.jsonl", '{"doc": {"id": ["x"]}, "resps": [["a"]]}\n', "has no doc with an id"),
        ("c.jsonl", '{"doc": {"id": "x"}, "resps": [[5]]}\n', "has no doc with an id"),
        ("c.json", "[]", "is no log of inspect_ai"),
        ("d.json", '{"samples": [5]}', "samples.0"),
        ("e.json", '{"samples": [{"id": "x", "epoch": "one"}]}', "samples.0.epoch"),
        ("f.json", '{"samples": [{"id": "x", "output": {"choices": ["y"]}}]}', "samples.0.output.choices.0"),
        ("g.json", '{"samples": [{"output": {}}]}', "samples.0.id"),
    ):
        (tmp_path / name).write_text(content)
        assert main(["score", str(tmp_path / name), "--data", data]) == 2
        assert needle in capsys.readouterr().err


def test_an_evaluation_that_failed_is_not_scored(docs, data, tmp_path, capsys):
    """A sample without a reply is no wrong answer: a log of inspect_ai that ended early gives no score."""
    log = tmp_path / "log.json"
    write_inspect(log, docs)
    whole = json.loads(log.read_text())
    for sample in ({"output": {"choices": []}}, {"error": {"message": "timeout"}}, {"output": None}):
        broken = whole | {"samples": [whole["samples"][0] | sample, *whole["samples"][1:]]}
        log.write_text(json.dumps(broken))
        assert main(["score", str(log), "--data", data]) == 2
        assert "ended without a reply; finish the evaluation" in capsys.readouterr().err
