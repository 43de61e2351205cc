"""Synthesis, vote and trainer run concurrently: however small the buffers are, they never deadlock."""

import itertools
import json
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stream_parts import draw_steps, label, make_prompts, never, question, until

from medssr_dist.data.jsonl import JsonlLedger, read_jsonl
from medssr_dist.run import stream
from medssr_dist.run.background import ThreadStep
from medssr_dist.run.stream import (
    ALL_TAKEN,
    QuestionFeed,
    follow_kept_labels,
    has_ended,
    has_room,
    mark_end,
    publish_taken,
)
from medssr_dist.training.rollout.examples import Example, PromptLoader


@pytest.fixture(autouse=True)
def quick_polls(monkeypatch):
    monkeypatch.setattr(stream, "_POLL_S", 0.001)


class Streams:
    """The three steps, each by the rules of the real one, and the largest lag of each follower."""

    def __init__(self, folder, buffer, question_buffer, window, kept, seed):
        self.questions, self.labels = folder / "questions.jsonl", folder / "labeled.jsonl"
        self.buffer, self.question_buffer, self.window, self.kept = buffer, question_buffer, window, kept
        self.feed = QuestionFeed(self.questions, lambda: has_ended(self.questions))
        self.random, self.trained = random.Random(seed), []
        self.kept_so_far = self.taken = self.accepted = self.label_lag = self.question_lag = 0

    def synthesize(self, should_stop):
        with JsonlLedger(self.questions) as ledger:
            while self.accepted < len(self.kept) and not should_stop():
                if self.accepted - self.feed.given > self.question_buffer:
                    time.sleep(0.0005)
                    continue
                ledger.append(question(self.accepted).model_dump())
                self.accepted += 1
                self.question_lag = max(self.question_lag, self.accepted - self.feed.given)
        mark_end(self.questions, self.accepted)

    def vote(self, should_stop):
        """Like the vote: start in order if there is room, decide in any order, label in order."""
        begun, decided, done = [], set(), 0
        with JsonlLedger(self.labels) as ledger:
            while not (self.feed.ended and not begun) and not should_stop():
                if len(begun) < self.window and has_room(self.labels, self.kept_so_far, self.buffer):
                    found = self.feed.next()
                    begun += [found] if found else []
                if undecided := [each for each in begun if each.id not in decided]:
                    decided.add(self.random.choice(undecided).id)
                while begun and begun[0].id in decided:
                    ledger.append(label(begun.pop(0), self.kept[done]).model_dump())
                    self.kept_so_far += self.kept[done]
                    done += 1
                    if self.taken != ALL_TAKEN:
                        self.label_lag = max(self.label_lag, self.kept_so_far - self.taken)
        mark_end(self.labels, self.kept_so_far)

    def train(self, should_stop, per_step=1, steps=0):
        def tell(taken):
            self.taken = taken
            publish_taken(self.labels, taken)

        def examples(start):
            return ((place, Example(found.question, "A")) for place, found in follow_kept_labels(self.labels, start))

        for step in draw_steps(PromptLoader(examples, make_prompts(), 1000, tell), per_step, steps):
            self.trained += [json.loads(drawn.label)["id"] for drawn in step]
            time.sleep(self.random.choice([0, 0.002]))


@settings(max_examples=60)
@given(
    buffer=st.integers(1, 4),
    question_buffer=st.integers(1, 4),
    window=st.integers(1, 6),
    per_step=st.integers(1, 9),
    steps=st.integers(0, 4),
    kept=st.lists(st.booleans(), max_size=20),
    seed=st.integers(0, 99),
)
def test_small_buffers_never_cause_a_deadlock(
    tmp_path_factory, buffer, question_buffer, window, per_step, steps, kept, seed
):
    kept = [True, *kept]
    streams = Streams(tmp_path_factory.mktemp("streams"), buffer, question_buffer, window, kept, seed)
    running = [
        ThreadStep(streams.synthesize, never),
        ThreadStep(streams.vote, never),
        ThreadStep(lambda stop: streams.train(stop, per_step, steps), never),
    ]
    until(lambda: all(step.check() for step in running))
    ids = [question(number).id for number, keep in enumerate(kept) if keep]
    total = steps * per_step or -(-len(ids) // per_step) * per_step
    assert streams.trained == list(itertools.islice(itertools.cycle(ids), total))
    assert len(list(read_jsonl(streams.labels))) == len(kept)
    assert streams.question_lag <= question_buffer + 1
    assert streams.label_lag <= buffer + window  # questions that were started are finished
