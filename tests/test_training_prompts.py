"""The prompt loader: every example trained on, in an order that a restart goes on with."""

import itertools
import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medssr_dist.answers import chat_prompt
from medssr_dist.errors import InputError
from medssr_dist.records import Label, Question
from medssr_dist.training.prompts import Example, PromptLoader, from_labels, from_questions, shuffled


class Tokenizer:
    """One token a word."""

    chat_template = None

    def __call__(self, text, add_special_tokens):
        assert add_special_tokens is False
        return {"input_ids": text.split()}


def example(number: int, words: int = 0) -> Example:
    stem = f"Question {number}" + " word" * words
    return Example(Question.make(stem, ["yes", "no"], source="set", truth="B"), "B")


EXAMPLES = [example(n) for n in range(5)]
ROOM = len(chat_prompt(Tokenizer(), EXAMPLES[0].question).split())


def loader(examples=EXAMPLES, per_step=4, steps=0, **options) -> PromptLoader:
    return PromptLoader(lambda: iter(examples), Tokenizer(), ROOM, per_step, steps, **options)


def numbers(batches) -> list[int]:
    """The N of 'Question N' of each batch of one prompt."""
    return [int(prompts[0].split()[1]) for _, prompts, _, _ in batches]


def test_a_batch_is_what_openrlhf_unpacks():
    sources, prompts, labels, images = next(iter(loader()))
    assert prompts == [chat_prompt(Tokenizer(), EXAMPLES[0].question)]
    assert json.loads(labels[0]) == {"answer": "B", "options": {"A": "yes", "B": "no"}, "id": EXAMPLES[0].question.id}
    assert (len(sources), images) == (1, [None])


def test_one_pass_fills_the_last_step_from_the_start():
    assert numbers(loader()) == [0, 1, 2, 3, 4, 0, 1, 2]
    assert numbers(loader(per_step=5)) == [0, 1, 2, 3, 4]
    assert numbers(loader(per_step=12)) == [0, 1, 2, 3, 4] * 2 + [0, 1]


def test_fixed_steps_wrap_around_or_stop_early():
    assert numbers(loader(steps=3)) == [0, 1, 2, 3, 4] * 2 + [0, 1]
    assert numbers(loader(steps=1)) == [0, 1, 2, 3]
    assert (len(loader(steps=3)), len(loader())) == (12, 0)


def test_fixed_steps_take_no_more_from_a_stream_than_they_need():
    taken = []
    endless = (example(n) for n in itertools.count())
    assert numbers(loader(endless, steps=2, on_taken=taken.append)) == list(range(8))
    assert taken == [*range(1, 9), sys.maxsize]  # nobody need wait for room any more
    assert next(endless) == example(8)


def test_prompts_come_before_the_stream_has_ended():
    def growing():
        yield from EXAMPLES[:2]
        raise AssertionError("asked for more before the first two were used")

    batches = iter(loader(growing()))
    assert numbers([next(batches), next(batches)]) == [0, 1]


def test_on_taken_counts_what_left_the_stream_not_the_repeats():
    taken = []
    list(loader(on_taken=taken.append))
    assert taken == [1, 2, 3, 4, 5]


def test_too_long_prompts_are_skipped_counted_and_told_as_taken():
    examples = [example(0, words=1), example(1), example(2, words=9), example(3), example(4, words=1)]
    taken = []
    found = loader(examples, per_step=2, on_taken=taken.append)
    assert numbers(found) == [1, 3]
    assert (found.skipped, found.taken) == (3, 2)
    assert taken[-1] == 5  # else the voters wait for room that a skipped label never makes


@pytest.mark.parametrize("examples", [[], [example(0, words=1)]])
def test_nothing_to_train_on_is_said(examples):
    with pytest.raises(InputError, match="no example to train on"):
        list(loader(examples))


@given(
    count=st.integers(1, 12),
    per_step=st.integers(1, 5),
    steps=st.integers(0, 5),
    too_long=st.sets(st.integers(0, 11)),
    data=st.data(),
)
def test_a_restart_gives_exactly_the_remaining_prompts(count, per_step, steps, too_long, data):
    examples = [example(n, words=int(n in too_long and n > 0)) for n in range(count)]
    whole = numbers(loader(examples, per_step, steps))
    assert len(whole) % per_step == 0
    if steps:
        assert len(whole) == steps * per_step
    else:
        assert set(whole) == {n for n in range(count) if n == 0 or n not in too_long}
    stop = data.draw(st.integers(0, len(whole)))
    first = loader(examples, per_step, steps)
    before = numbers(itertools.islice(first, stop))
    state = json.loads(json.dumps(first.state_dict()))
    second = loader(examples, per_step, steps)
    second.load_state_dict(state)
    assert before + numbers(second) == whole


def test_a_restart_reports_all_that_was_taken_before():
    taken = []
    again = loader(on_taken=taken.append)
    again.load_state_dict({"taken": 3})
    next(iter(again))
    assert taken[-1] == 4


def label(number: int, answer: str) -> Label:
    return Label(
        question=example(number).question, outcome="labeled", answer=answer, counts={answer: 2}, requested=2, valid=2,
        confidence_requested=1.0, confidence_valid=1.0, kept=True, policy="p", sampling="s",
    )  # fmt: skip


def test_pseudo_labels_train_on_the_majority_and_never_on_the_truth():
    found = list(from_labels([label(0, "A"), label(1, "B")]))
    assert [item.answer for item in found] == ["A", "B"]
    assert [item.question.truth for item in found] == ["B", "B"]


def test_human_questions_train_on_the_truth():
    assert [item.answer for item in from_questions([item.question for item in EXAMPLES])] == ["B"] * 5
    unknown = Question.make("Which?", ["yes", "no"], source="medqa", source_id="dev-7")
    with pytest.raises(InputError, match="medqa item dev-7 has no answer"):
        from_questions([unknown])


def test_shuffled_is_seeded_and_loses_nothing():
    assert shuffled(EXAMPLES, 1) == shuffled(EXAMPLES, 1)
    assert any(shuffled(EXAMPLES, seed) != EXAMPLES for seed in range(5))
    assert sorted(item.question.id for item in shuffled(EXAMPLES, 3)) == sorted(i.question.id for i in EXAMPLES)
