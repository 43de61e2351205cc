"""`medssr compare`: settings that differ, paired scores of shared questions, and what cannot be compared."""

import pytest
from evaluation_examples import EVALUATION, QUESTIONS, RecordingPool, answer_a, run_policy

from medssr_dist.cli import main
from medssr_dist.commands.compare import compare_runs
from medssr_dist.data.jsonl import read_json, read_jsonl, write_json, write_jsonl
from medssr_dist.errors import InputError
from medssr_dist.evaluation.score_report import write_report
from medssr_dist.evaluation.scoring import build_scores, collect_letters
from medssr_dist.run.paths import RunPaths

SETTINGS = {"voting": {"samples": 16, "threshold": 0.5}, "training": {"stage1": {"enabled": True}}}


def answer_half(request, seed):
    """Right for generation 0 alone."""
    return "A" if request.choices else f"The answer is {'A' if seed == request.seed else 'B'}."


def make_run(root, policies, benchmarks=None, evaluation=EVALUATION, settings=SETTINGS):
    """Make an evaluated run. `policies`: name -> how it replies."""
    run, benchmarks = RunPaths(root), benchmarks or {"set": QUESTIONS}
    answers = {
        name: run_policy(run.evaluation.folder, RecordingPool(reply), benchmarks, evaluation, policy=name)
        for name, reply in policies.items()
    }
    letters = collect_letters(benchmarks, answers)
    seconds = dict.fromkeys(answers, 1.0)
    write_report(build_scores(benchmarks, answers, letters, evaluation, 1, seconds), letters, run.evaluation)
    write_json(run.config_file, settings)
    return root


def test_settings_and_paired_scores_are_shown(tmp_path, capsys):
    changed = {"voting": {"samples": 32, "threshold": 0.5}, "training": {"stage1": {"enabled": True, "steps": 7}}}
    first = make_run(tmp_path / "a", {"base": answer_half, "stage1": answer_half})
    second = make_run(tmp_path / "b", {"base": answer_half, "stage1": answer_a}, settings=changed)
    assert main(["compare", str(first), str(second)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:5] == [
        "settings: 2 differ",
        "  training.stage1.steps: (not there) -> 7",
        "  voting.samples: 16 -> 32",
    ]
    assert lines[5].startswith("compared: 5 questions that both have answered, 3 generations; temperature 0.6")
    text = "\n".join(lines)
    equal, better = text.split("base of A and base of B")[1].split("stage1 of A and stage1 of B")
    assert "+0.0 (-" in equal and "p 1.000" in equal
    assert "+66.7 (" in better and "p 0.0" in better
    assert "| rare diseases   | 1 " in better and "| other questions | 4 " in better


def test_last_policies_of_other_names_are_compared_too(tmp_path, capsys):
    first = make_run(tmp_path / "a", {"base": answer_half, "stage2": answer_a})
    second = make_run(tmp_path / "b", {"base": answer_half, "stage1": answer_half})
    compare_runs(first, second)
    text = capsys.readouterr().out
    assert "base of A and base of B" in text and "stage2 of A and stage1 of B" in text and "-66.7" in text


def test_only_shared_questions_and_generations_count(tmp_path, capsys):
    more = EVALUATION.model_copy(update={"generations": 4})
    first = make_run(tmp_path / "a", {"base": answer_half}, {"set": QUESTIONS[:3], "other": QUESTIONS[3:]})
    second = make_run(tmp_path / "b", {"base": answer_a}, {"set": [*QUESTIONS[1:], QUESTIONS[1]]}, more)
    compare_runs(first, second)
    text = capsys.readouterr().out
    assert "compared: 2 questions that both have answered, 3 generations" in text
    assert "other" not in text.split("compared:")[1]


def test_protocols_of_both_runs_are_shown(tmp_path, capsys):
    first = make_run(tmp_path / "a", {"base": answer_half})
    paper = EVALUATION.model_copy(update={"protocol": "paper"})
    second = make_run(tmp_path / "b", {"base": answer_a}, evaluation=paper)
    compare_runs(first, second)
    text = capsys.readouterr().out
    assert "protocol ours" in text and "protocol paper" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"temperature": 1.0},
            r"not drawn alike: evaluation\.temperature is 0\.6 and 1\.0; evaluate one of them again",
        ),
        ({"max_tokens": 64}, r"evaluation\.max_tokens is 32 and 64"),
    ],
)
def test_other_sampling_is_refused(tmp_path, change, message):
    first = make_run(tmp_path / "a", {"base": answer_a})
    second = make_run(tmp_path / "b", {"base": answer_a}, evaluation=EVALUATION.model_copy(update=change))
    with pytest.raises(InputError, match=message):
        compare_runs(first, second)


def test_other_benchmarks_are_refused(tmp_path, capsys):
    first = make_run(tmp_path / "a", {"base": answer_a}, {"medqa": QUESTIONS[:2]})
    second = make_run(tmp_path / "b", {"base": answer_a}, {"pubmedqa": QUESTIONS[2:]})
    assert main(["compare", str(first), str(second)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "(medqa) and" in error and "(pubmedqa) share no question of any benchmark; evaluate both" in error


def test_other_right_answers_are_refused(tmp_path):
    other = [question.model_copy(update={"truth": "B"}) for question in QUESTIONS]
    first = make_run(tmp_path / "a", {"base": answer_a})
    second = make_run(tmp_path / "b", {"base": answer_a}, {"set": other})
    with pytest.raises(InputError, match=r"of set has the answer A in .*a and B in .*b; evaluate both on the same"):
        compare_runs(first, second)


def test_runs_without_an_evaluation_are_refused(tmp_path):
    run = make_run(tmp_path / "a", {"base": answer_a})
    with pytest.raises(InputError, match=r"none is no run directory: it has no config\.resolved\.json"):
        compare_runs(run, tmp_path / "none")
    with pytest.raises(InputError, match="a are the same run; give two runs"):
        compare_runs(run, tmp_path / "b" / ".." / "a")
    other = make_run(tmp_path / "b", {"base": answer_a})
    RunPaths(run).evaluation.letters.unlink()
    with pytest.raises(
        InputError, match=r"evaluated by an older version, without letters\.jsonl; run `medssr evaluate`"
    ):
        compare_runs(run, other)
    RunPaths(run).evaluation.scores.unlink()
    with pytest.raises(InputError, match="a has no scores; run `medssr evaluate`"):
        compare_runs(run, other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[1:], r"letters\.jsonl has \d of \d questions of set; delete .* run `medssr evaluate`"),
        (lambda rows: [], "has 0 of"),
        (lambda rows: [rows[0] | {"policies": {}}, *rows[1:]], "lacks letters of base, protocol ours; delete"),
    ],
)
def test_lost_letters_are_refused(tmp_path, change, message):
    first, second = (make_run(tmp_path / name, {"base": answer_a}) for name in "ab")
    file = RunPaths(second).evaluation.letters
    write_jsonl(file, change(list(read_jsonl(file))))
    with pytest.raises(InputError, match=message):
        compare_runs(first, second)


def test_scores_without_a_policy_are_refused(tmp_path):
    first, second = (make_run(tmp_path / name, {"base": answer_a}) for name in "ab")
    file = RunPaths(second).evaluation.scores
    write_json(file, read_json(file) | {"policies": {}})
    with pytest.raises(InputError, match=r"scores\.json has no policy; delete .* and run `medssr evaluate`"):
        compare_runs(first, second)
