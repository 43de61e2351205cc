"""The evaluation protocol with a pool that records its requests; scores and report of its answers."""

import json
import random

import pytest
from stream_parts import make_prompts

from medssr_dist.config.schema import Evaluation
from medssr_dist.data.jsonl import read_jsonl
from medssr_dist.data.records import Question
from medssr_dist.errors import InputError
from medssr_dist.evaluation.benchmarks import read_benchmarks
from medssr_dist.evaluation.protocol import SECOND_PASS, evaluate_policy, hash_sampling
from medssr_dist.evaluation.score_report import render_table, write_report
from medssr_dist.evaluation.scores import BenchmarkFacts, Score, build_scores, read_scores, score_policy
from medssr_dist.inference.requests import Completion

PROMPTS = make_prompts()
EVALUATION = Evaluation(generations=3, max_tokens=32)
QUESTIONS = [
    Question.make(f"Question {i}", ["one", "two", "three", "four"][: 2 + i % 3], source="set", truth="A", rare=i == 0)
    for i in range(5)
]


class RecordingPool:
    """A pool that answers with `reply(request, seed)`, in shuffled order, and can stop after some requests."""

    def __init__(self, reply, stops_after: int | None = None):
        self.reply, self.stops_after, self.requests = reply, stops_after, []

    def generate(self, requests):
        requests = list(requests)
        random.Random(0).shuffle(requests)
        for request in requests:
            if self.stops_after is not None and len(self.requests) == self.stops_after:
                raise KeyboardInterrupt
            self.requests.append(request)
            seeds = range(request.seed, request.seed + request.n)
            yield request.key, [Completion.from_text(request, s, self.reply(request, s), 4, False) for s in seeds]


def answer_a(request, seed):
    return "A" if request.choices else "The answer is (A)."


def answer_second_pass_only(request, seed):
    return request.choices[-1] if request.choices else "I do not know"


def run(tmp_path, pool, questions=QUESTIONS, evaluation=EVALUATION, random_seed=1, policy="p1"):
    return evaluate_policy(pool, PROMPTS, questions, evaluation, random_seed, tmp_path / "a.jsonl", policy=policy)


def test_first_pass_sends_one_request_per_question(tmp_path):
    pool = RecordingPool(answer_a)
    answers = run(tmp_path, pool)
    assert [(a.question_id, a.generation) for a in answers] == [(q.id, g) for q in QUESTIONS for g in range(3)]
    assert all(a.letter == "A" and a.method == "statement" and not a.second_pass for a in answers)
    assert len({a.seed for a in answers}) == 15
    assert len(pool.requests) == 5
    request = pool.requests[0]
    assert (request.n, request.temperature, request.top_p, request.top_k) == (3, 0.6, 0.95, 20)
    assert (request.max_tokens, request.choices) == (32, ())


def test_second_pass_is_greedy_over_the_letters_of_the_question(tmp_path):
    pool = RecordingPool(answer_second_pass_only)
    answers = run(tmp_path, pool)
    second = [request for request in pool.requests if request.choices]
    assert len(second) == 15
    assert {request.choices for request in second} == {("A", "B"), ("A", "B", "C"), ("A", "B", "C", "D")}
    assert all((r.temperature, r.max_tokens, r.n) == (0.0, 1, 1) for r in second)
    continued = PROMPTS.extend(PROMPTS.render(QUESTIONS[0]), "I do not know", SECOND_PASS)
    assert continued.text.endswith("I do not know" + SECOND_PASS)
    assert continued.ids in {tuple(request.prompt) for request in second}
    by_id = {q.id: q for q in QUESTIONS}
    assert all(a.letter == list(by_id[a.question_id].options)[-1] for a in answers)
    assert all(a.method == "second_pass" and a.second_pass and a.tokens == 8 for a in answers)


def test_answer_stays_invalid_without_room_for_a_second_pass(tmp_path):
    answers = run(tmp_path, RecordingPool(lambda request, seed: ""))
    assert all(a.letter is None and a.method is None and a.second_pass for a in answers)
    again = RecordingPool(answer_a)
    assert run(tmp_path, again) == answers
    assert again.requests == []


def test_killed_evaluation_repeats_no_request(tmp_path):
    whole = run(tmp_path / "whole", RecordingPool(answer_second_pass_only))
    asked = []
    for stops_after in (2, 3, 1, 4, 6):
        pool = RecordingPool(answer_second_pass_only, stops_after)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, pool)
        asked += pool.requests
    last = RecordingPool(answer_second_pass_only)
    assert run(tmp_path, last) == whole
    keys = [request.key for request in asked + last.requests]
    assert len(keys) == len(set(keys)) == 5 + 15


def test_torn_ledger_line_is_requested_again_alone(tmp_path):
    whole = run(tmp_path, RecordingPool(answer_a))
    ledger = tmp_path / "a.jsonl"
    data = ledger.read_bytes()
    ledger.write_bytes(data[:-20])
    pool = RecordingPool(answer_a)
    assert run(tmp_path, pool) == whole
    assert [(request.n, request.seed) for request in pool.requests] == [(1, seed_of_last_line(whole, data))]
    assert len(list(read_jsonl(ledger))) == 15


def seed_of_last_line(answers, data: bytes) -> int:
    last = json.loads(data.splitlines()[-1])
    return next(a.seed for a in answers if (a.question_id, a.generation) == (last["question_id"], last["generation"]))


def test_more_generations_reuse_the_stored_ones(tmp_path):
    three = run(tmp_path, RecordingPool(answer_a))
    pool = RecordingPool(answer_a)
    five = run(tmp_path, pool, evaluation=Evaluation(generations=5, max_tokens=32))
    assert all(request.n == 2 for request in pool.requests)
    assert [a for a in five if a.generation < 3] == three


@pytest.mark.parametrize("change", [{"policy": "p2"}, {"random_seed": 2}, {"evaluation": Evaluation(generations=3)}])
def test_other_policy_seed_or_sampling_is_evaluated_again(tmp_path, change):
    run(tmp_path, RecordingPool(answer_a))
    pool = RecordingPool(answer_a)
    run(tmp_path, pool, **change)
    assert len(pool.requests) == 5


def test_sampling_hash_depends_on_the_chat_template():
    assert hash_sampling(EVALUATION, PROMPTS, 1) != hash_sampling(EVALUATION, make_prompts("x"), 1)


def test_repeated_question_is_answered_once(tmp_path):
    pool = RecordingPool(answer_a)
    assert len(run(tmp_path, pool, questions=[*QUESTIONS, QUESTIONS[0]])) == 15
    assert len(pool.requests) == 5


def answer_mixed(request, seed):
    """Return A, B and no letter for generations 0, 1 and 2; in the second pass A, but nothing for question 1."""
    if request.choices:
        return "" if request.key.startswith(QUESTIONS[1].id) else "A"
    return ["The answer is (A).", "The answer is (B).", "unsure"][seed - request.seed]


def make_scores(tmp_path):
    benchmarks = {"first": QUESTIONS[:2], "second": QUESTIONS[2:]}
    given = {
        "base": run(tmp_path, RecordingPool(answer_a)),
        "stage1": run(tmp_path, RecordingPool(answer_mixed), policy="p2"),
    }
    return build_scores(benchmarks, given, EVALUATION, 1, {"base": 2.0, "stage1": 4.0})


def test_scores_equal_those_computed_by_hand(tmp_path):
    scores = make_scores(tmp_path)
    base, stage1 = scores.policies["base"], scores.policies["stage1"]
    assert base.benchmarks["first"] == Score(
        questions=2,
        answers=6,
        accuracy=1.0,
        std=0.0,
        per_generation=(1.0, 1.0, 1.0),
        recovered=0,
        invalid=0,
        truncated=0,
        letters={"A": 6},
    )
    first, second = stage1.benchmarks["first"], stage1.benchmarks["second"]
    assert first.per_generation == (1.0, 0.0, 0.5)
    assert (first.accuracy, first.std) == (0.5, 0.5)
    assert (first.recovered, first.invalid, first.letters) == (1, 1, {"A": 3, "B": 2, "none": 1})
    assert second.per_generation == (1.0, 0.0, 1.0)
    assert stage1.macro.per_generation == (1.0, 0.0, 0.75)
    assert stage1.macro.accuracy == pytest.approx(7 / 12, abs=1e-6)
    assert (stage1.rare.questions, stage1.rare.per_generation) == (1, (1.0, 0.0, 1.0))
    assert (stage1.tokens, stage1.seconds) == (15 * 4 + 5 * 4, 4.0)
    assert scores.benchmarks["first"] == BenchmarkFacts(questions=2, rare=1, truth_letters={"A": 2})


def test_scores_json_keeps_its_keys_and_reads_back(tmp_path):
    scores = make_scores(tmp_path)
    write_report(scores, tmp_path)
    written = json.loads((tmp_path / "scores.json").read_text())
    assert list(written) == ["schema_version", "protocol", "benchmarks", "policies"]
    assert written["protocol"] == {
        "generations": 3,
        "temperature": 0.6,
        "top_p": 0.95,
        "top_k": 20,
        "max_tokens": 32,
        "random_seed": 1,
        "std": "sample, over generations",
    }
    assert written["benchmarks"]["first"] == {"questions": 2, "rare": 1, "truth_letters": {"A": 2}}
    stage1 = written["policies"]["stage1"]
    assert list(stage1) == ["benchmarks", "macro", "rare", "tokens", "seconds"]
    assert stage1["benchmarks"]["first"] == {
        "questions": 2,
        "answers": 6,
        "accuracy": 0.5,
        "std": 0.5,
        "per_generation": [1.0, 0.0, 0.5],
        "recovered": 1,
        "invalid": 1,
        "truncated": 0,
        "letters": {"A": 3, "B": 2, "none": 1},
    }
    assert stage1["macro"] == {"accuracy": 0.583333, "std": 0.520416, "per_generation": [1.0, 0.0, 0.75]}
    assert read_scores(tmp_path / "scores.json") == scores


def test_scores_json_with_a_missing_field_is_refused(tmp_path):
    write_report(make_scores(tmp_path), tmp_path)
    file = tmp_path / "scores.json"
    written = json.loads(file.read_text())
    del written["policies"]["base"]["macro"]
    file.write_text(json.dumps(written))
    with pytest.raises(InputError, match=r"scores\.json: policies\.base\.macro: Field required"):
        read_scores(file)


def test_one_generation_has_zero_std_and_no_rare_score(tmp_path):
    one = Evaluation(generations=1)
    answers = run(tmp_path, RecordingPool(answer_a), evaluation=one)
    score = score_policy({"set": QUESTIONS[1:]}, answers, 1, 1.0)
    assert (score.benchmarks["set"].std, score.rare) == (0.0, None)


def test_missing_answer_raises_instead_of_counting_as_wrong(tmp_path):
    answers = run(tmp_path, RecordingPool(answer_a))[1:]
    with pytest.raises(KeyError):
        score_policy({"set": QUESTIONS}, answers, 3, 1.0)


def test_report_writes_json_table_and_plot(tmp_path):
    scores = make_scores(tmp_path)
    write_report(scores, tmp_path / "out")
    assert read_scores(tmp_path / "out" / "scores.json") == scores
    assert (tmp_path / "out" / "scores.png").read_bytes().startswith(b"\x89PNG")
    table = (tmp_path / "out" / "scores.md").read_text()
    assert table == render_table(scores)
    lines = table.splitlines()
    assert [cell.strip() for cell in lines[0].strip("|").split("|")] == ["benchmark", "questions", "base", "stage1"]
    assert "50.0 ± 50.0 (16.7%)" in lines[2] and lines[2].startswith("| first")
    assert lines[4].startswith("| macro average") and lines[5].startswith("| rare diseases")
    assert len({len(line) for line in lines[:6]}) == 1


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
