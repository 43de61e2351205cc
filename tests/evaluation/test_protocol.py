"""Both passes of the evaluation with a pool that records its requests: what is asked, stored, and asked no more."""

import json

import pytest
from evaluation_examples import (
    EVALUATION,
    PROMPTS,
    QUESTIONS,
    TEXTS,
    TINY,
    CharacterTokenizer,
    RecordingPool,
    answer_a,
    answer_second_pass_only,
    make_character_prompts,
    read_prompt,
    run_policy,
)

from medssr_dist.config.schema import Evaluation
from medssr_dist.data.jsonl import JsonlLedger, read_jsonl
from medssr_dist.data.prompt_forms import load_prompt_form
from medssr_dist.data.prompt_renderer import PromptRenderer
from medssr_dist.data.records import Question
from medssr_dist.errors import InputError
from medssr_dist.evaluation.policy_answers import SecondPassKey
from medssr_dist.evaluation.protocol import hash_sampling
from medssr_dist.run.paths import EvaluationPaths


def letters(answers, question, gold=("A",)):
    return {name: found.letters for name, found in answers.list_letters(question, gold).items()}


def test_first_pass_sends_one_request_per_question(tmp_path):
    pool = RecordingPool(answer_a)
    answers = run_policy(tmp_path, pool)
    assert set(answers.first) == {(q.id, g) for q in QUESTIONS for g in range(3)}
    assert all(letters(answers, q) == {"ours": ("A",) * 3, "paper": ("A",) * 3} for q in QUESTIONS)
    assert len({answer.seed for answer in answers.first.values()}) == 15
    assert len(pool.requests) == 5 and answers.second == {}
    request = pool.requests[0]
    assert (request.n, request.temperature, request.top_p, request.top_k) == (3, 0.6, 0.95, 20)
    assert (request.max_tokens, request.choices) == (32, ())


def test_each_protocol_has_its_own_second_pass(tmp_path):
    truths = ["A", "B", "D", "A", "A"]
    questions = [q.model_copy(update={"truth": truth}) for q, truth in zip(QUESTIONS, truths, strict=True)]
    pool = RecordingPool(answer_second_pass_only)
    answers = run_policy(tmp_path, pool, {"set": questions})
    assert all((r.temperature, r.max_tokens, r.n) == (0.0, 1, 1) for r in pool.second)
    ours = [r for r in pool.second if read_prompt(r).endswith("I do not know\n\nThe answer is (")]
    paper = [r for r in pool.second if read_prompt(r).endswith("I do not know.\nGive one option only.\nThe answer is ")]
    assert len(ours) == len(paper) == 15 and len(pool.second) == 30
    assert {r.choices for r in ours} == {("A", "B"), ("A", "B", "C"), ("A", "B", "C", "D")}
    assert {r.choices for r in paper} == {("A", "B", "D")}
    for question in questions:
        last = list(question.options)[-1]
        assert letters(answers, question, "ABD") == {"ours": (last,) * 3, "paper": ("D",) * 3}
    assert answers.tokens == 15 * 4 + 30 * 4


def test_second_pass_of_the_paper_is_a_further_turn(tmp_path):
    """Where the prompt has turns: the reply ends, and a user turn asks for one option."""
    pool = RecordingPool(answer_second_pass_only)
    run_policy(tmp_path, pool, {"set": QUESTIONS[:1]}, prompts=make_character_prompts("turns"))
    ends = {read_prompt(r).partition("<assistant>")[2] for r in pool.second}
    assert ends == {
        "I do not know\n\nThe answer is (",
        "I do not know <user> Give one option only. The answer is  <assistant>",
    }


def test_second_pass_closes_thoughts_that_were_cut(tmp_path):
    pool = RecordingPool(lambda request, seed: "A" if request.choices else "<think>Perhaps the answer is B, or")
    answers = run_policy(tmp_path, pool, {"set": QUESTIONS[:1]})
    ends = {read_prompt(r)[-40:] for r in pool.second}
    assert any(end.endswith("or\n</think>\n\nThe answer is (") for end in ends)
    assert letters(answers, QUESTIONS[0])["ours"] == ("A",) * 3


def test_second_pass_closes_thoughts_that_the_prompt_opened(tmp_path):
    class ThinkingTokenizer(CharacterTokenizer):
        def apply_chat_template(self, *args, **kwargs):
            return super().apply_chat_template(*args, **kwargs) + "<think>\n"

    prompts = PromptRenderer(ThinkingTokenizer("turns"), load_prompt_form("direct"))
    pool = RecordingPool(lambda request, seed: "A" if request.choices else "The answer is B, or")
    answers = run_policy(tmp_path, pool, {"set": QUESTIONS[:1]}, prompts=prompts)
    ends = {read_prompt(r).partition("<assistant>")[2] for r in pool.second}
    assert ends == {"<think>\nThe answer is B, or\n</think>\n\nThe answer is ("}
    assert letters(answers, QUESTIONS[0]) == {"ours": ("A",) * 3, "paper": ("B",) * 3}


def test_protocols_may_miss_different_answers(tmp_path):
    """'The answer is (B)' is read by ours alone; 'The answer is not clear' is N for the paper, which is wrong."""
    texts = ["The answer is (B).", "The answer is not clear.", "The answer is B."]
    pool = RecordingPool(lambda request, seed: "A" if request.choices else texts[seed - request.seed])
    question = Question.make("Q", TEXTS, source="set", truth="A")
    answers = run_policy(tmp_path, pool, {"set": [question]})
    assert letters(answers, question) == {"ours": ("B", "A", "B"), "paper": ("A", "N", "B")}
    found = answers.list_letters(question, ("A",))
    assert (found["ours"].recovered, found["paper"].recovered) == ((1,), (0,))
    assert len(pool.second) == 2


def test_question_of_two_benchmarks_gets_the_letters_of_both(tmp_path):
    other = Question.make("Other", TEXTS, source="set", truth="D")
    benchmarks = {"one": [QUESTIONS[2]], "two": [QUESTIONS[2], other]}
    answers = run_policy(tmp_path, RecordingPool(answer_second_pass_only), benchmarks)
    assert letters(answers, QUESTIONS[2], "A")["paper"] == ("A",) * 3
    assert letters(answers, QUESTIONS[2], "AD")["paper"] == ("D",) * 3
    assert len(answers.first) == 6


def test_answer_stays_invalid_without_room_for_a_second_pass(tmp_path):
    answers = run_policy(tmp_path, RecordingPool(lambda request, seed: ""))
    assert letters(answers, QUESTIONS[0]) == {"ours": (None,) * 3, "paper": (None,) * 3}
    again = RecordingPool(answer_a)
    assert run_policy(tmp_path, again).second == answers.second
    assert again.requests == []


def test_killed_evaluation_repeats_no_request(tmp_path):
    whole = run_policy(tmp_path / "whole", RecordingPool(answer_second_pass_only))
    asked = []
    for stops_after in (2, 3, 1, 4, 6):
        pool = RecordingPool(answer_second_pass_only, stops_after)
        with pytest.raises(KeyboardInterrupt):
            run_policy(tmp_path, pool)
        asked += pool.requests
    last = RecordingPool(answer_second_pass_only)
    found = run_policy(tmp_path, last)
    assert (found.first, found.second) == (whole.first, whole.second)
    keys = [request.key for request in asked + last.requests]
    assert len(keys) == len(set(keys)) == 5 + 30
    for file, count in ((EvaluationPaths(tmp_path).answers, 15), (EvaluationPaths(tmp_path).second_passes, 30)):
        assert len(list(read_jsonl(file))) == count


def test_torn_ledger_line_is_requested_again_alone(tmp_path):
    whole = run_policy(tmp_path, RecordingPool(answer_a))
    ledger = EvaluationPaths(tmp_path).answers
    data = ledger.read_bytes()
    ledger.write_bytes(data[:-20])
    pool = RecordingPool(answer_a)
    assert run_policy(tmp_path, pool).first == whole.first
    assert [(request.n, request.seed) for request in pool.requests] == [(1, json.loads(data.splitlines()[-1])["seed"])]
    assert len(list(read_jsonl(ledger))) == 15


def test_ledger_of_an_older_version_is_used(tmp_path):
    """Its lines have letters, and a second line with the letter of the second pass, under our protocol alone."""
    whole = run_policy(tmp_path / "whole", RecordingPool(answer_second_pass_only))
    rows = list(read_jsonl(EvaluationPaths(tmp_path / "whole").answers))
    first = [row | {"letter": None, "method": None, "second_pass": False} for row in rows]
    options = {question.id: question.options for question in QUESTIONS}
    found = {"method": "second_pass", "second_pass": True, "tokens": 8}
    second = [row | found | {"letter": list(options[row["question_id"]])[-1]} for row in rows]
    with JsonlLedger(EvaluationPaths(tmp_path).answers) as ledger:
        ledger.append(*first, *second)
    pool = RecordingPool(answer_second_pass_only)
    answers = run_policy(tmp_path, pool)
    assert answers.first == whole.first
    assert all(letters(answers, q) == letters(whole, q) for q in QUESTIONS)
    assert len(pool.requests) == len(pool.second) == 15, "only the paper's second pass is missing"


def test_invalid_line_of_a_ledger_is_named(tmp_path):
    run_policy(tmp_path, RecordingPool(answer_second_pass_only))
    file = EvaluationPaths(tmp_path).second_passes
    row = next(read_jsonl(file))
    with JsonlLedger(file) as ledger:
        ledger.append(row | {"protocol": "theirs"})
    with pytest.raises(InputError, match=r"second_pass\.jsonl: protocol: Input should be 'ours' or 'paper'"):
        run_policy(tmp_path, RecordingPool(answer_a))


def test_more_generations_reuse_the_stored_ones(tmp_path):
    three = run_policy(tmp_path, RecordingPool(answer_a))
    pool = RecordingPool(answer_a)
    five = run_policy(tmp_path, pool, evaluation=Evaluation(generations=5, max_tokens=32))
    assert all(request.n == 2 for request in pool.requests)
    assert {key: answer for key, answer in five.first.items() if answer.generation < 3} == three.first


@pytest.mark.parametrize("change", [{"policy": "p2"}, {"random_seed": 2}, {"evaluation": Evaluation(generations=3)}])
def test_other_policy_seed_or_sampling_is_evaluated_again(tmp_path, change):
    run_policy(tmp_path, RecordingPool(answer_a))
    pool = RecordingPool(answer_a)
    run_policy(tmp_path, pool, **change)
    assert len(pool.requests) == 5


def test_the_choice_of_protocol_asks_nothing_again(tmp_path):
    run_policy(tmp_path, RecordingPool(answer_second_pass_only))
    pool = RecordingPool(answer_a)
    run_policy(tmp_path, pool, evaluation=EVALUATION.model_copy(update={"protocol": "paper"}))
    assert pool.requests == []


def test_sampling_hash_depends_on_chat_template_length_and_type():
    before = hash_sampling(EVALUATION, TINY, PROMPTS, 1)
    assert before != hash_sampling(EVALUATION, TINY, make_character_prompts("x"), 1)
    for changes in ({"max_model_len": 128}, {"dtype": "float32"}):
        other = TINY.model_copy(update=changes)
        assert before != hash_sampling(EVALUATION, other, PROMPTS, 1)


def test_repeated_question_is_answered_once(tmp_path):
    pool = RecordingPool(answer_a)
    assert len(run_policy(tmp_path, pool, {"set": [*QUESTIONS, QUESTIONS[0]]}).first) == 15
    assert len(pool.requests) == 5


def test_missing_answer_raises_instead_of_counting_as_wrong(tmp_path):
    answers = run_policy(tmp_path, RecordingPool(answer_second_pass_only))
    del answers.second[SecondPassKey(QUESTIONS[0].id, 1, "ours", "AB")]
    with pytest.raises(KeyError):
        answers.list_letters(QUESTIONS[0], ("A",))
