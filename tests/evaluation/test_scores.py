"""Scores of both protocols against values worked out by hand; the report; files of older versions."""

import json

import pytest
from evaluation_examples import EVALUATION, QUESTIONS, TEXTS, RecordingPool, answer_a, run_policy, score_all

from medssr_dist.config.schema import Evaluation
from medssr_dist.data.jsonl import read_json
from medssr_dist.data.records import Question
from medssr_dist.errors import InputError
from medssr_dist.evaluation.benchmarks import read_benchmarks
from medssr_dist.evaluation.question_letters import FinalLetters, read_question_letters
from medssr_dist.evaluation.score_card import add_scores_to_card
from medssr_dist.evaluation.score_report import render_table, write_report
from medssr_dist.evaluation.scores import BenchmarkFacts, Score, read_scores
from medssr_dist.evaluation.scoring import collect_letters
from medssr_dist.run.paths import EvaluationPaths


def answer_mixed(request, seed):
    """Return A, B and no letter for generations 0, 1 and 2; in the second pass A, but nothing for question 1."""
    if request.choices:
        return "" if request.key.startswith(QUESTIONS[1].id) else "A"
    return ["The answer is A.", "The answer is B.", "unsure"][seed - request.seed]


def make_answers(folder, benchmarks):
    return {
        "base": run_policy(folder, RecordingPool(answer_a), benchmarks),
        "stage1": run_policy(folder, RecordingPool(answer_mixed), benchmarks, policy="p2"),
    }


@pytest.fixture
def benchmarks():
    return {"first": QUESTIONS[:2], "second": QUESTIONS[2:]}


@pytest.fixture
def scores(tmp_path, benchmarks):
    return score_all(benchmarks, make_answers(tmp_path, benchmarks))


def test_scores_equal_those_computed_by_hand(scores):
    base, stage1 = scores.headline["base"], scores.headline["stage1"]
    assert base.benchmarks["first"].model_copy(update={"interval": None}) == Score(
        questions=2,
        answers=6,
        accuracy=1.0,
        std=0.0,
        per_generation=(1.0, 1.0, 1.0),
        recovered=0,
        invalid=0,
        truncated=0,
        letters={"A": 6},
        pass_at={1: 1.0, 2: 1.0, 3: 1.0},
        majority_at={1: 1.0, 2: 1.0, 3: 1.0},
    )
    first, second = stage1.benchmarks["first"], stage1.benchmarks["second"]
    assert first.per_generation == (1.0, 0.0, 0.5)
    assert (first.accuracy, first.std) == (0.5, 0.5)
    assert (first.recovered, first.invalid, first.letters) == (1, 1, {"A": 3, "B": 2, "none": 1})
    # letters A B A and A B -: one of two answers is right with 1 - 0 and 1 - 1/3; A wins, and A and B share the win
    assert first.pass_at == {1: 0.5, 2: pytest.approx(5 / 6, abs=1e-6), 3: 1.0}
    assert first.majority_at == {1: 0.5, 2: 0.5, 3: 0.75}
    assert second.per_generation == (1.0, 0.0, 1.0)
    assert stage1.macro.per_generation == (1.0, 0.0, 0.75)
    assert stage1.macro.accuracy == pytest.approx(7 / 12, abs=1e-6)
    assert (stage1.rare.questions, stage1.rare.per_generation) == (1, (1.0, 0.0, 1.0))
    assert stage1.rare_benchmarks == {"first": stage1.rare}
    assert (scores.policies["stage1"].tokens, scores.policies["stage1"].seconds) == (15 * 4 + 2 * 5 * 4, 2.0)
    assert scores.benchmarks["first"] == BenchmarkFacts(
        questions=2, rare=1, rare_by={"column": 1}, truth_letters={"A": 2}, constant=1.0, duplicates=0
    )


def test_paper_rounds_and_takes_the_population_deviation(scores):
    paper = scores.policies["stage1"].protocols["paper"]
    assert paper.benchmarks["second"].per_generation == (1.0, 0.0, 1.0)
    # percents 100, 0, 100: mean 66.67, population deviation 47.14; the sample deviation is 57.74
    assert (paper.benchmarks["second"].accuracy, paper.benchmarks["second"].std) == (0.6667, 0.4714)
    ours = scores.policies["stage1"].protocols["ours"].benchmarks["second"]
    assert (ours.accuracy, ours.std) == (0.666667, 0.57735)
    assert ours.interval == paper.benchmarks["second"].interval


def test_copies_of_a_question_are_no_further_evidence(tmp_path):
    right = Question.make("Right", TEXTS, source="set", truth="A")
    wrong = Question.make("Wrong", TEXTS, source="set", truth="B")
    answers = {"base": run_policy(tmp_path, RecordingPool(answer_a), {"set": [right, wrong]})}
    once = score_all({"set": [right, wrong]}, answers)
    twice = score_all({"set": [right, wrong, right, wrong]}, answers)
    assert twice.benchmarks["set"].duplicates == 2
    assert twice.headline["base"].benchmarks["set"].interval == once.headline["base"].benchmarks["set"].interval
    thrice = score_all({"set": [right, right, wrong]}, answers)
    assert thrice.headline["base"].benchmarks["set"].accuracy == pytest.approx(2 / 3, abs=1e-6)


def test_differences_are_paired_over_questions(scores):
    found = {(each.protocol, each.on): each for each in scores.differences}
    sets = ("first", "second", "macro average", "rare diseases", "other questions")
    assert set(found) == {(protocol, on) for protocol in ("ours", "paper") for on in sets}
    first = found["ours", "first"]
    assert (first.first, first.second, first.questions) == ("base", "stage1", 2)
    # base is right in 3/3 and 3/3, stage1 in 2/3 and 1/3; of 4 exchanges, 2 give a sum as large, which counts half
    assert first.difference == -0.5 and first.interval[0] >= -1
    assert first.p == pytest.approx(0.25, abs=0.02)
    assert found["ours", "macro average"].difference == pytest.approx(7 / 12 - 1, abs=1e-6)


def test_scores_json_keeps_its_keys_and_reads_back(tmp_path, benchmarks):
    answers = make_answers(tmp_path, benchmarks)
    letters, scores = collect_letters(benchmarks, answers), score_all(benchmarks, answers)
    write_report(scores, letters, EvaluationPaths(tmp_path))
    written = read_json(tmp_path / "scores.json")
    assert list(written) == ["schema_version", "protocol", "benchmarks", "policies", "differences"]
    assert written["protocol"] == {
        "generations": 3,
        "temperature": 0.6,
        "top_p": 0.95,
        "top_k": 20,
        "max_tokens": 32,
        "random_seed": 1,
        "headline": "ours",
        "std": "sample, over generations",
    }
    stage1 = written["policies"]["stage1"]
    assert list(stage1) == ["protocols", "tokens", "seconds"]
    assert list(stage1["protocols"]) == ["ours", "paper"]
    assert list(stage1["protocols"]["ours"]) == ["benchmarks", "macro", "rare", "others", "rare_benchmarks"]
    assert stage1["protocols"]["ours"]["benchmarks"]["first"]["letters"] == {"A": 3, "B": 2, "none": 1}
    assert stage1["protocols"]["paper"]["macro"]["std"] == 0.4249  # percents 100, 0, 75
    assert read_scores(tmp_path / "scores.json") == scores
    rows = read_question_letters(tmp_path / "letters.jsonl")
    assert rows == letters and [row.question_id for row in rows] == [question.id for question in QUESTIONS]
    assert rows[1].policies["stage1"]["ours"] == FinalLetters(letters=("A", "B", None))


OLD_SCORE = {"questions": 2, "answers": 4, "accuracy": 0.5, "std": 0.1, "per_generation": [0.4, 0.6]} | {
    "recovered": 1,
    "invalid": 0,
    "truncated": 0,
    "letters": {"A": 4},
}
OLD_AVERAGE = {"accuracy": 0.5, "std": 0.1, "per_generation": [0.4, 0.6]}
OLD_SCORES = {
    "schema_version": 1,
    "protocol": {"generations": 2, "temperature": 0.6, "top_p": 0.95, "top_k": 20, "max_tokens": 32}
    | {"random_seed": 1, "std": "sample, over generations"},
    "benchmarks": {name: {"questions": 2, "rare": 1, "truth_letters": {"A": 2}} for name in ("medqa", "other")},
    "policies": {
        "base": {"benchmarks": {"medqa": OLD_SCORE, "other": OLD_SCORE}, "macro": OLD_AVERAGE, "rare": OLD_SCORE}
        | {"tokens": 80, "seconds": 4.0}
    },
}


def test_scores_of_an_older_version_are_read_and_shown(tmp_path):
    (tmp_path / "scores.json").write_text(json.dumps(OLD_SCORES))
    scores = read_scores(tmp_path / "scores.json")
    assert scores.headline["base"].benchmarks["medqa"].std == 0.1 and scores.differences == ()
    lines = render_table(scores).splitlines()
    assert lines[2].split("|")[4].strip() == "50.0 ± 10.0 [0.0%]"
    assert [line.split("|")[1].strip() for line in lines[2:6]] == ["medqa", "other", "macro average", "rare diseases"]


def test_scores_json_with_a_missing_field_is_refused(tmp_path):
    written = json.loads(json.dumps(OLD_SCORES))
    del written["policies"]["base"]["macro"]
    file = tmp_path / "scores.json"
    file.write_text(json.dumps(written))
    with pytest.raises(InputError, match=r"scores\.json: policies\.base\.protocols\.ours\.macro: Field required"):
        read_scores(file)


def test_one_generation_has_zero_std_and_no_rare_score(tmp_path):
    one = Evaluation(generations=1)
    benchmarks = {"set": QUESTIONS[1:]}
    answers = {"base": run_policy(tmp_path, RecordingPool(answer_a), benchmarks, evaluation=one)}
    scores = score_all(benchmarks, answers, one)
    assert (scores.headline["base"].benchmarks["set"].std, scores.headline["base"].rare) == (0.0, None)
    assert "pass@" not in render_table(scores) and scores.differences == ()


def test_report_writes_json_table_and_plot(tmp_path, benchmarks):
    answers = make_answers(tmp_path, benchmarks)
    scores = score_all(benchmarks, answers)
    paths = EvaluationPaths(tmp_path / "out")
    write_report(scores, collect_letters(benchmarks, answers), paths)
    assert read_scores(paths.scores) == scores
    assert paths.plot.read_bytes().startswith(b"\x89PNG")
    table = paths.table.read_text()
    assert table == render_table(scores)
    lines = table.splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["benchmark", "questions", "constant", "base", "stage1"]
    assert cells[2][:3] == ["first", "2", "100.0"] and cells[2][4].startswith("50.0 (")
    assert cells[2][4].endswith(") [16.7%]")
    labels = [row[0] for row in cells[2:8]]
    assert labels[:3] == ["first", "first, rare (column)", "second"]
    assert labels[3:] == ["macro average", "rare diseases (column)", "other questions"]
    assert len({len(line) for line in lines[:8]}) == 1
    assert "benchmark       | stage1 - base" in table and "-50.0 (" in table
    assert "base pass@3 | base maj@3" in table and "stage1 ours" in table and "66.67 ± 47.14" in table


def test_a_damaged_letter_is_found(tmp_path, benchmarks):
    answers = make_answers(tmp_path, benchmarks)
    paths = EvaluationPaths(tmp_path / "out")
    write_report(score_all(benchmarks, answers), collect_letters(benchmarks, answers), paths)
    assert len(read_question_letters(paths.letters)) == len(collect_letters(benchmarks, answers))
    paths.letters.write_bytes(paths.letters.read_bytes().replace(b'"truth": "A"', b'"truth": "B"', 1))
    with pytest.raises(InputError, match=r"letters\.jsonl line \d does not match its checksum"):
        read_question_letters(paths.letters)


def test_headline_decides_what_tables_show(tmp_path, benchmarks):
    answers = make_answers(tmp_path, benchmarks)
    scores = score_all(benchmarks, answers, EVALUATION.model_copy(update={"protocol": "paper"}))
    assert (scores.protocol.headline, scores.protocol.std) == ("paper", "population, over generations")
    assert scores.headline["stage1"].benchmarks["second"].accuracy == 0.6667
    assert {each.protocol for each in scores.headline_differences} == {"paper"}
    assert "Reading rule: paper." in render_table(scores)


def test_benchmarks_are_read_by_name_or_refused(tmp_path):
    row = {"question": "Q?", "options": {"A": "x", "B": "y"}, "answer_idx": "A"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    (tmp_path / "b.jsonl").write_text(json.dumps(row | {"answer_idx": None}))
    path, unlabelled = str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")
    benchmarks = read_benchmarks(Evaluation(benchmarks=[path, {"path": path, "name": "again"}]), 1)
    assert [(name, len(questions)) for name, questions in benchmarks.items()] == [("a", 1), ("again", 1)]
    for sources, needle in (([], "empty"), ([path, path], "two named 'a'"), ([unlabelled], "no answer")):
        with pytest.raises(InputError, match=needle):
            read_benchmarks(Evaluation(benchmarks=sources), 1)


def test_model_card_gets_the_scores_once(tmp_path, scores):
    card = tmp_path / "README.md"
    card.write_text("---\nlicense: other\n---\n\n# model\n\n## Settings\n\n| a | b |\n")
    add_scores_to_card(card, scores, "stage1")
    once = card.read_text()
    assert once.startswith(
        "---\nlicense: other\n---\n\n# model\n\n## Settings\n\n| a | b |\n\n## Evaluation\n\n| benchmark"
    )
    heading = next(line for line in once.splitlines() if line.startswith("| benchmark"))
    assert [cell.strip() for cell in heading.strip("| ").split("|")] == (
        ["benchmark", "questions", "constant", "base", "stage1", "difference"]
    )
    assert "-50.0 (-100.0 to" in once and "first, rare (column)" in once
    add_scores_to_card(card, scores, "stage1")
    assert card.read_text() == once
    card.write_text(once + "\n## Known limits\n\nmany\n")
    add_scores_to_card(card, scores, "base")
    assert card.read_text().count("## Evaluation") == 1 and "## Known limits\n\nmany\n" in card.read_text()
