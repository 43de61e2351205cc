"""The prompt loader: it draws every example, and a restart continues the order."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stream_parts import draw_steps, example, make_prompts

from medssr_dist.data.records import Label, Question
from medssr_dist.errors import InputError
from medssr_dist.run.stream import ALL_TAKEN
from medssr_dist.training.rollout.examples import (
    DrawnPrompt,
    PromptLoader,
    make_annotated_examples,
    make_labeled_examples,
    shuffle,
)

EXAMPLES = [example(n) for n in range(5)]
PROMPTS = make_prompts()
ROOM = len(PROMPTS.render(EXAMPLES[0].question).ids)


def make_loader(examples=EXAMPLES, **options) -> PromptLoader:
    """Make a loader of a list of examples, or of a stream that can be read once."""

    def after(start):
        listed = examples[start:] if isinstance(examples, list) else examples
        return enumerate(listed, start=start + 1)

    return PromptLoader(after, PROMPTS, ROOM, **options)


def number_of(drawn: DrawnPrompt) -> int:
    """Return the N of 'Question N'."""
    return int(drawn.text.split()[1])


def draw_numbers(loader: PromptLoader, per_step: int = 4, steps: int = 0) -> list[int]:
    """Return the N of 'Question N' of each prompt, in all remaining steps."""
    return [number_of(drawn) for step in draw_steps(loader, per_step, steps) for drawn in step]


def draw(loader: PromptLoader, count: int) -> list[int]:
    """Return the N of the next `count` prompts."""
    return [number_of(loader.draw(wrap=True)) for _ in range(count)]


def test_a_prompt_comes_with_its_label():
    drawn = make_loader().draw(wrap=False)
    rendered = PROMPTS.render(EXAMPLES[0].question)
    assert (drawn.text, tuple(drawn.ids)) == (rendered.text, rendered.ids)
    expected = {"answer": "B", "options": {"A": "yes", "B": "no"}, "id": EXAMPLES[0].question.id, "confidence": None}
    assert json.loads(drawn.label) == expected


def test_one_pass_fills_its_last_step_from_the_start():
    assert draw_numbers(make_loader()) == [0, 1, 2, 3, 4, 0, 1, 2]
    assert draw_numbers(make_loader(), per_step=5) == [0, 1, 2, 3, 4]
    assert draw_numbers(make_loader(), per_step=12) == [0, 1, 2, 3, 4] * 2 + [0, 1]


def test_fixed_steps_wrap_around_or_stop_early():
    assert draw_numbers(make_loader(), steps=3) == [0, 1, 2, 3, 4] * 2 + [0, 1]
    assert draw_numbers(make_loader(), steps=1) == [0, 1, 2, 3]


def test_fixed_steps_draw_no_more_than_they_need():
    taken = []
    endless = (example(n) for n in itertools.count())
    assert draw_numbers(make_loader(endless, on_taken=taken.append), steps=2) == list(range(8))
    assert taken[:9] == list(range(9)) and taken[-1] == ALL_TAKEN  # the vote no longer waits for the trainer
    assert next(endless) == example(8)


def test_prompts_are_drawn_before_the_stream_ends():
    def growing():
        yield from EXAMPLES[:2]
        raise AssertionError("read on before the first two were drawn")

    assert draw(make_loader(growing()), 2) == [0, 1]


def test_on_taken_counts_each_example_once():
    taken = []
    draw_numbers(make_loader(on_taken=taken.append))
    assert taken == [0, 1, 2, 3, 4, 5, ALL_TAKEN]


def test_too_long_prompts_are_skipped_but_count_as_taken():
    examples = [example(0, words=1), example(1), example(2, words=9), example(3), example(4, words=1)]
    taken = []
    found = make_loader(examples, on_taken=taken.append)
    assert draw_numbers(found, per_step=2) == [1, 3]
    assert (found.skipped, found.taken) == (3, 2)
    assert taken == [0, 1, 2, 3, 4, 5, ALL_TAKEN]  # otherwise the vote would wait for ever


@pytest.mark.parametrize("examples", [[], [example(0, words=1)]])
def test_training_without_examples_is_refused(examples):
    with pytest.raises(InputError, match="no example to train on"):
        draw_numbers(make_loader(examples))


@given(
    count=st.integers(1, 12),
    per_step=st.integers(1, 5),
    steps=st.integers(0, 5),
    too_long=st.sets(st.integers(0, 11)),
    data=st.data(),
)
def test_a_restart_draws_exactly_the_remaining_prompts(count, per_step, steps, too_long, data):
    examples = [example(n, words=int(n in too_long and n > 0)) for n in range(count)]
    whole = draw_numbers(make_loader(examples), per_step, steps)
    assert len(whole) % per_step == 0
    if steps:
        assert len(whole) == steps * per_step
    else:
        assert set(whole) == {n for n in range(count) if n == 0 or n not in too_long}
    stop = data.draw(st.integers(0, len(whole) // per_step))
    first = make_loader(examples)
    taken_steps = list(itertools.islice(draw_steps(first, per_step, steps), stop))
    before = [number_of(drawn) for step in taken_steps for drawn in step]
    second = restart(first, examples)
    assert before + draw_numbers(second, per_step, steps) == whole
    uninterrupted = make_loader(examples)
    draw_numbers(uninterrupted, per_step, steps)
    assert second.skipped == uninterrupted.skipped


def restart(stopped: PromptLoader, examples, **options) -> PromptLoader:
    """Return a new loader with the state of the stopped one, as a checkpoint holds it."""
    again = make_loader(examples, **options)
    again.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
    return again


@pytest.mark.parametrize("steps", [0, 3, 7])
@pytest.mark.parametrize("save_steps", [1, 2, 3])
def test_killed_after_every_step_no_example_is_lost(steps, save_steps):
    """Steps after the last checkpoint are taken again, with the same prompts."""
    examples, per_step = [example(n, words=int(n in (2, 5))) for n in range(13)], 3
    whole = draw_numbers(make_loader(examples), per_step, steps)
    trained, checkpoint, killed_at = [], make_loader(examples).state_dict(), set()
    while len(trained) < len(whole):
        process = make_loader(examples)
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


def test_a_restart_reads_no_earlier_example():
    stopped = make_loader()
    draw(stopped, 3)
    starts = []

    def after(start):
        starts.append(start)
        return enumerate(EXAMPLES[start:], start=start + 1)

    again = PromptLoader(after, PROMPTS, ROOM)
    again.load_state_dict(stopped.state_dict())
    again.draw(wrap=False)
    assert starts == [3]


def test_a_restart_reports_all_examples_taken_so_far():
    stopped, taken = make_loader(), []
    draw(stopped, 3)
    restart(stopped, EXAMPLES, on_taken=taken.append).draw(wrap=False)
    assert taken == [3, 4]


def test_time_spent_waiting_for_examples_is_measured():
    clock = iter([0.0, 2.0, 10.0, 10.5, 20.0, 20.25])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("medssr_dist.training.rollout.examples.time.monotonic", lambda: next(clock))
        found = make_loader(EXAMPLES[:2])
        draw_numbers(found, per_step=2)
    assert found.waited_s == 2.75


def make_label(number: int, answer: str) -> Label:
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


def test_pseudo_labels_train_on_the_majority_not_the_truth():
    found = list(make_labeled_examples([make_label(0, "A"), make_label(1, "B")]))
    assert [item.answer for item in found] == ["A", "B"]
    assert [item.question.truth for item in found] == ["B", "B"]


def test_annotated_questions_train_on_the_truth():
    assert [item.answer for item in make_annotated_examples([item.question for item in EXAMPLES])] == ["B"] * 5
    unknown = Question.make("Which?", ["yes", "no"], source="medqa", source_id="dev-7")
    with pytest.raises(InputError, match="medqa item dev-7 has no answer"):
        make_annotated_examples([unknown])


def test_shuffle_is_seeded_and_loses_nothing():
    assert shuffle(EXAMPLES, 1) == shuffle(EXAMPLES, 1)
    assert any(shuffle(EXAMPLES, seed) != EXAMPLES for seed in range(5))
    assert sorted(item.question.id for item in shuffle(EXAMPLES, 3)) == sorted(i.question.id for i in EXAMPLES)
