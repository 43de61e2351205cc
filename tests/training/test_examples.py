"""The prompt loader: every example trained on, in an order that a restart goes on with."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stream_parts import Tokenizer, draw_steps, example

from medssr_dist.data.answers import render_prompt
from medssr_dist.data.records import Label, Question
from medssr_dist.errors import InputError
from medssr_dist.run.stream import ALL_TAKEN
from medssr_dist.training.rollout.examples import PromptLoader, examples_of_labels, examples_of_questions, shuffle

EXAMPLES = [example(n) for n in range(5)]
ROOM = len(render_prompt(Tokenizer(), EXAMPLES[0].question).split())


def loader(examples=EXAMPLES, **options) -> PromptLoader:
    """`examples`: a list, or a stream that is read once."""

    def after(start):
        listed = examples[start:] if isinstance(examples, list) else examples
        return enumerate(listed, start=start + 1)

    return PromptLoader(after, Tokenizer(), ROOM, **options)


def number_of(drawn: tuple[str, str]) -> int:
    """The N of 'Question N'."""
    return int(drawn[0].split()[1])


def numbers(loader: PromptLoader, per_step: int = 4, steps: int = 0) -> list[int]:
    """The N of 'Question N' of each prompt, in all steps that are left."""
    return [number_of(drawn) for step in draw_steps(loader, per_step, steps) for drawn in step]


def draw(loader: PromptLoader, count: int) -> list[int]:
    """Draw `count` prompts."""
    return [number_of(loader.draw(wrap=True)) for _ in range(count)]


def test_a_prompt_comes_with_its_label():
    prompt, label = loader().draw(wrap=False)
    assert prompt == render_prompt(Tokenizer(), EXAMPLES[0].question)
    expected = {"answer": "B", "options": {"A": "yes", "B": "no"}, "id": EXAMPLES[0].question.id, "confidence": None}
    assert json.loads(label) == expected


def test_one_pass_fills_the_last_step_from_the_start():
    assert numbers(loader()) == [0, 1, 2, 3, 4, 0, 1, 2]
    assert numbers(loader(), per_step=5) == [0, 1, 2, 3, 4]
    assert numbers(loader(), per_step=12) == [0, 1, 2, 3, 4] * 2 + [0, 1]


def test_fixed_steps_wrap_around_or_stop_early():
    assert numbers(loader(), steps=3) == [0, 1, 2, 3, 4] * 2 + [0, 1]
    assert numbers(loader(), steps=1) == [0, 1, 2, 3]


def test_fixed_steps_take_no_more_than_they_need():
    taken = []
    endless = (example(n) for n in itertools.count())
    assert numbers(loader(endless, on_taken=taken.append), steps=2) == list(range(8))
    assert taken[:9] == list(range(9)) and taken[-1] == ALL_TAKEN  # the voters no longer wait for room
    assert next(endless) == example(8)


def test_prompts_come_before_the_stream_has_ended():
    def growing():
        yield from EXAMPLES[:2]
        raise AssertionError("asked for more before the first two were used")

    assert draw(loader(growing()), 2) == [0, 1]


def test_on_taken_counts_examples_not_their_repeats():
    taken = []
    numbers(loader(on_taken=taken.append))
    assert taken == [0, 1, 2, 3, 4, 5, ALL_TAKEN]


def test_too_long_prompts_are_skipped_and_count_as_taken():
    examples = [example(0, words=1), example(1), example(2, words=9), example(3), example(4, words=1)]
    taken = []
    found = loader(examples, on_taken=taken.append)
    assert numbers(found, per_step=2) == [1, 3]
    assert (found.skipped, found.taken) == (3, 2)
    assert taken == [0, 1, 2, 3, 4, 5, ALL_TAKEN]  # otherwise the voters wait for room that is never made


@pytest.mark.parametrize("examples", [[], [example(0, words=1)]])
def test_no_example_at_all_is_refused(examples):
    with pytest.raises(InputError, match="no example to train on"):
        numbers(loader(examples))


@given(
    count=st.integers(1, 12),
    per_step=st.integers(1, 5),
    steps=st.integers(0, 5),
    too_long=st.sets(st.integers(0, 11)),
    data=st.data(),
)
def test_a_restart_draws_exactly_the_remaining_prompts(count, per_step, steps, too_long, data):
    examples = [example(n, words=int(n in too_long and n > 0)) for n in range(count)]
    whole = numbers(loader(examples), per_step, steps)
    assert len(whole) % per_step == 0
    if steps:
        assert len(whole) == steps * per_step
    else:
        assert set(whole) == {n for n in range(count) if n == 0 or n not in too_long}
    stop = data.draw(st.integers(0, len(whole) // per_step))
    first = loader(examples)
    taken_steps = list(itertools.islice(draw_steps(first, per_step, steps), stop))
    before = [number_of(drawn) for step in taken_steps for drawn in step]
    second = restarted(first, examples)
    assert before + numbers(second, per_step, steps) == whole
    uninterrupted = loader(examples)
    numbers(uninterrupted, per_step, steps)
    assert second.skipped == uninterrupted.skipped


def restarted(stopped: PromptLoader, examples, **options) -> PromptLoader:
    """A new loader with the state that a checkpoint held."""
    again = loader(examples, **options)
    again.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
    return again


@pytest.mark.parametrize("steps", [0, 3, 7])
@pytest.mark.parametrize("save_steps", [1, 2, 3])
def test_killed_after_every_step_each_example_counts_once(steps, save_steps):
    """The steps that count are those up to the last checkpoint; later ones are taken again, with the same prompts."""
    examples, per_step = [example(n, words=int(n in (2, 5))) for n in range(13)], 3
    whole = numbers(loader(examples), per_step, steps)
    trained, checkpoint, killed_at = [], loader(examples).state_dict(), set()
    while len(trained) < len(whole):
        process = loader(examples)
        process.load_state_dict(json.loads(json.dumps(checkpoint)))
        trained = trained[: process.taken]
        for step in draw_steps(process, per_step, steps):
            trained += map(number_of, step)
            done = len(trained) // per_step
            if done % save_steps == 0:
                checkpoint = process.state_dict()
            if done not in killed_at:  # between the checkpoint and the next step
                killed_at.add(done)
                break
    assert trained == whole
    assert len(killed_at) == len(whole) // per_step
    if not steps:
        assert sorted(trained[:11]) == [n for n in range(13) if n not in (2, 5)]


def test_a_restart_reads_nothing_from_before_its_place():
    stopped = loader()
    draw(stopped, 3)
    asked = []

    def after(start):
        asked.append(start)
        return enumerate(EXAMPLES[start:], start=start + 1)

    again = PromptLoader(after, Tokenizer(), ROOM)
    again.load_state_dict(stopped.state_dict())
    again.draw(wrap=False)
    assert asked == [3]


def test_a_restart_reports_all_that_was_taken_before():
    stopped, taken = loader(), []
    draw(stopped, 3)
    restarted(stopped, EXAMPLES, on_taken=taken.append).draw(wrap=False)
    assert taken == [3, 4]


def test_time_spent_waiting_for_examples_is_measured():
    clock = iter([0.0, 2.0, 10.0, 10.5, 20.0, 20.25])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("medssr_dist.training.rollout.examples.time.monotonic", lambda: next(clock))
        found = loader(EXAMPLES[:2])
        numbers(found, per_step=2)
    assert found.waited_s == 2.75


def label(number: int, answer: str) -> Label:
    return Label(
        question=example(number).question,
        outcome="labeled",
        answer=answer,
        counts={answer: 2},
        requested=2,
        taken=2,
        valid=2,
        truncated=0,
        tokens=9,
        confidence_requested=(1.0, 1.0),
        confidence_valid=(1.0, 1.0),
        kept=True,
        policy="p",
        sampling="s",
    )


def test_pseudo_labels_train_on_the_majority_and_never_on_the_truth():
    found = list(examples_of_labels([label(0, "A"), label(1, "B")]))
    assert [item.answer for item in found] == ["A", "B"]
    assert [item.question.truth for item in found] == ["B", "B"]


def test_human_questions_train_on_the_truth():
    assert [item.answer for item in examples_of_questions([item.question for item in EXAMPLES])] == ["B"] * 5
    unknown = Question.make("Which?", ["yes", "no"], source="medqa", source_id="dev-7")
    with pytest.raises(InputError, match="medqa item dev-7 has no answer"):
        examples_of_questions([unknown])


def test_shuffled_is_seeded_and_loses_nothing():
    assert shuffle(EXAMPLES, 1) == shuffle(EXAMPLES, 1)
    assert any(shuffle(EXAMPLES, seed) != EXAMPLES for seed in range(5))
    assert sorted(item.question.id for item in shuffle(EXAMPLES, 3)) == sorted(i.question.id for i in EXAMPLES)
