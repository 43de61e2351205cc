"""The benchmark of the reader of answers: its replies, its aims, its cuts, absent readers."""

from dataclasses import replace
from pathlib import Path

import pytest

from medssr_dist.bench.answers.run import AIMS, OURS, cut_replies, load_labelled_replies, measure_answers
from medssr_dist.data.answers import extract_answer
from medssr_dist.errors import InputError


def test_labelled_replies():
    replies = load_labelled_replies()
    assert len(replies) >= 400 and len({reply.style for reply in replies}) >= 12
    assert len({reply.id for reply in replies}) == len(replies)
    assert all(reply.answer is None or reply.answer in reply.options for reply in replies)


def test_the_aims_hold():
    figures = measure_answers(cuts=5, rounds=1)
    assert [aim.title for aim in AIMS if not aim.is_met(*aim.read(figures))] == []
    assert figures.readers[OURS].total.replies == len(load_labelled_replies())
    assert set(figures.readers) | set(figures.missing) == {OURS, "lm_eval", "inspect_ai"}


def test_cuts_lie_before_the_final_statement():
    whole = {reply.id: reply for reply in load_labelled_replies() if reply.final}
    for cut in cut_replies(list(whole.values()), cuts=3):
        reply = whole[cut.id.rsplit("-", 1)[0]]
        assert reply.text.startswith(cut.text) and len(cut.text) < reply.final and cut.answer is None


def test_truncation_adds_no_letters():
    for reply in cut_replies(load_labelled_replies(), cuts=3):
        known = extract_answer(reply.text, reply.options, truncated=True).letter
        assert known in (None, extract_answer(reply.text, reply.options).letter)


def test_a_peers_python_that_does_not_start():
    with pytest.raises(InputError, match="--peers-python /absent/python does not start"):
        measure_answers(Path("/absent/python"), cuts=1, rounds=1)


def test_shorter_reasoning_has_fewer_places():
    reply = replace(load_labelled_replies()[0], text="0123456789abcd The answer is A.", final=14)
    assert sorted(len(cut.text) for cut in cut_replies([reply], cuts=20)) == [10, 11, 12, 13]
