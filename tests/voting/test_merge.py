"""Merging the votes of several runs: each once, only those that the run needs, in any order."""

import pytest
from config_builder import make_config
from hypothesis import given, settings
from hypothesis import strategies as st
from ledger_writer import label, question, vote
from stored_votes import stored_votes, write_questions

from medssr_dist.cli import main
from medssr_dist.config.load import dump_config
from medssr_dist.data.jsonl import write_json
from medssr_dist.errors import InputError
from medssr_dist.run.directory import RunDir, hold_run
from medssr_dist.voting import merge as merging
from medssr_dist.voting import segments
from medssr_dist.voting.ledger import VoteLedger, derive_seeds, read_ledger_counts
from medssr_dist.voting.merge import MergeCounts, merge_votes

K, SEED = 4, 42


@pytest.fixture(autouse=True)
def small_segments(monkeypatch):
    monkeypatch.setattr(segments, "SEGMENT_QUESTIONS", 4)


def sample(number, offset, **identity):
    """The vote on question `number` with one of the run's seeds; outside 0..K-1, with another seed."""
    return vote(number, derive_seeds(question(number).id, SEED, K)[0] + offset, **identity)


def make_run(root, order, votes=(), decided=0, keep_text=True, **identity):
    """A run on the questions `order` with `votes` (question, offset), of which the first `decided` have labels."""
    run = RunDir(root)
    write_questions(run.synthesis.questions, map(question, order))
    with open(run.synthesis.questions, "a") as file:
        file.write('{"torn')
    config = make_config(voting={"samples": K, "keep_text": keep_text}, runtime={"random_seed": SEED})
    write_json(run.config_file, dump_config(config))
    with VoteLedger(run.voting.folder, identity.get("policy", "p"), identity.get("sampling", "s")) as ledger:
        for number, offset in votes:
            ledger.add_votes(order.index(number), [sample(number, offset, **identity)])
        for position in range(decided):
            ledger.add_label(position, label(order[position], **identity))
    return root


def pairs(*numbers):
    return [(number, offset) for number in numbers for offset in range(K)]


def keys(root):
    return sorted(vote.key for vote in stored_votes(root / "voting"))


def contents(root):
    return {file.name: file.read_bytes() for file in sorted((root / "voting" / "votes").iterdir())}


def test_a_run_takes_the_votes_that_it_lacks(tmp_path, capsys):
    run = make_run(tmp_path / "run", range(10), [(0, 0), (5, 1)])
    other = make_run(tmp_path / "other", [9, 5, 0, 77], [(9, 3), (5, 1), (5, 2), (0, 0), (77, 0)])
    (counts,) = merge_votes(run, [other])
    assert counts == MergeCounts(taken=2, present=2, not_needed=1)
    assert keys(run) == sorted(sample(*pair).key for pair in [(0, 0), (5, 1), (9, 3), (5, 2)])
    with VoteLedger(run / "voting", "p", "s") as ledger:
        assert set(ledger.known_votes(5, question(5))) == {sample(5, 1).seed, sample(5, 2).seed}
        assert ledger.known_votes(9, question(9)) == {sample(9, 3).seed: sample(9, 3)}
    assert f"{other}: 2 taken, 2 there already, 1 on questions that have a label" in capsys.readouterr().out


def test_questions_with_a_label_get_no_more_votes(tmp_path):
    run = make_run(tmp_path / "run", range(6), [(0, 0), (4, 0)], decided=5)
    other = make_run(tmp_path / "other", range(6), pairs(*range(6)))
    assert merge_votes(run, [other]) == [MergeCounts(taken=4, not_needed=20)]
    assert read_ledger_counts(run / "voting") == (5, 2, 6)


def test_votes_of_another_policy_or_sampling_stay_out(tmp_path):
    run = make_run(tmp_path / "run", range(3))
    others = [
        make_run(tmp_path / "policy", range(3), pairs(0), policy="other"),
        make_run(tmp_path / "sampling", range(3), pairs(1, 2), sampling="other"),
    ]
    assert merge_votes(run, others) == [MergeCounts(other_sampling=4), MergeCounts(other_sampling=8)]
    assert keys(run) == []


def test_votes_with_other_seeds_stay_out(tmp_path):
    """From a run with more samples, or with another random seed."""
    run = make_run(tmp_path / "run", range(3))
    other = make_run(tmp_path / "other", range(3), [(1, K - 1), (1, K), (1, -1)])
    assert merge_votes(run, [other]) == [MergeCounts(taken=1, other_seed=2)]
    assert keys(run) == [sample(1, K - 1).key]


def test_packed_segments_and_texts_are_taken_too(tmp_path):
    other = make_run(tmp_path / "other", range(9), decided=0)
    with VoteLedger(other / "voting", "p", "s") as ledger:
        for number in range(9):
            ledger.add_votes(number, [sample(number, 0, text="why")])
        for number in range(9):
            ledger.add_label(number, label(number))
    assert (other / "voting" / "votes" / "00000.jsonl.gz").exists()
    for keep_text, text in ((True, "why"), (False, "")):
        run = make_run(tmp_path / str(keep_text), range(9), keep_text=keep_text)
        assert merge_votes(run, [other]) == [MergeCounts(taken=9)]
        assert {vote.text for vote in stored_votes(run / "voting")} == {text}


def test_the_other_run_may_be_voting(tmp_path):
    """Its last line is incomplete, and its process holds the lock."""
    run = make_run(tmp_path / "run", range(3))
    other = make_run(tmp_path / "other", range(3), pairs(0))
    with open(other / "voting" / "votes" / "00000.jsonl", "ab") as file, hold_run(RunDir(other)):
        file.write('{"question_id": "é'.encode()[:-1])
        file.flush()
        assert merge_votes(run, [other]) == [MergeCounts(taken=4)]


SUBSETS = st.lists(st.tuples(st.integers(0, 8), st.integers(0, K - 1)), max_size=20)


@given(SUBSETS, SUBSETS, SUBSETS, st.permutations(range(9)), st.integers(0, 9))
@settings(max_examples=25)
def test_order_and_repetition_of_merging_change_nothing(tmp_path_factory, own, first, second, order, decided):
    root = tmp_path_factory.mktemp("merge")
    others = [make_run(root / "a", range(9), first), make_run(root / "b", order, second, decided)]
    orders = {"ab": others, "ba": others[::-1], "aabb": [others[0], *others, others[1]]}
    found = {}
    for name, sources in orders.items():
        run = make_run(root / name, list(range(9)), own, min(decided, 4))
        merge_votes(run, sources)
        found[name] = keys(run)
        before = contents(run)
        for again in merge_votes(run, sources):
            assert again.taken == 0
        assert contents(run) == before
    wanted = {*own, *(pair for pair in first + second if pair[0] >= min(decided, 4))}
    assert found["ab"] == found["ba"] == found["aabb"] == sorted(sample(*pair).key for pair in wanted)


@given(SUBSETS, SUBSETS)
@settings(max_examples=15)
def test_merging_both_ways_makes_both_the_same(tmp_path_factory, first, second):
    root = tmp_path_factory.mktemp("merge")
    one, two = make_run(root / "one", range(9), first), make_run(root / "two", range(9)[::-1], second)
    merge_votes(one, [two])
    merge_votes(two, [one])
    assert keys(one) == keys(two)
    assert len(set(keys(one))) == len(keys(one)) == len({*first, *second})


def test_an_interrupted_merge_can_be_repeated(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", range(9))
    other = make_run(tmp_path / "other", range(9), pairs(*range(9)))
    releases = []

    def full(ledger):
        releases.append(ledger)
        if len(releases) == 2:
            raise InputError("no space left")
        ledger.commit()

    with monkeypatch.context() as patch:
        patch.setattr(VoteLedger, "release", full)
        with pytest.raises(InputError, match="no space left"):
            merge_votes(run, [other])
    merge_votes(run, [other])
    assert keys(run) == keys(other)


def test_a_merge_into_a_run_in_use_is_refused(tmp_path):
    run = make_run(tmp_path / "run", range(3))
    other = make_run(tmp_path / "other", range(3), pairs(0))
    with hold_run(RunDir(run)), pytest.raises(InputError, match="in use by another medssr process"):
        merge_votes(run, [other])
    assert keys(run) == []


def test_a_broken_line_is_named(tmp_path):
    run = make_run(tmp_path / "run", range(3))
    other = make_run(tmp_path / "other", range(3), pairs(0))
    file = other / "voting" / "votes" / "00000.jsonl"
    file.write_bytes(b"{broken\n" + file.read_bytes())
    with pytest.raises(InputError, match=r"other/voting/votes/00000\.jsonl line 1 is not valid JSON"):
        merge_votes(run, [other])


def test_the_merge_command(tmp_path, capsys):
    run, other = make_run(tmp_path / "run", range(3)), make_run(tmp_path / "other", range(3), pairs(0, 1))
    assert main(["merge", str(run), str(other), str(other)]) == 0
    text = capsys.readouterr().out
    assert f"{other}: 8 taken" in text and f"{other}: 0 taken, 8 there already" in text
    for arguments, needle in (
        ([run, run], "is the run itself"),
        ([run, tmp_path / "none"], "holds no votes"),
        ([tmp_path / "none", other], "has not begun to vote"),
    ):
        assert main(["merge", *map(str, arguments)]) == 2
        assert needle in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
    with pytest.raises(SystemExit):
        main(["merge", "--help"])
    assert "medssr merge runs/all runs/job1" in capsys.readouterr().out


def test_memory_holds_one_segment_of_the_run_at_a_time(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", range(40))
    other = make_run(tmp_path / "other", range(40)[::-1], pairs(*range(40)))
    held, release = [], VoteLedger.release
    monkeypatch.setattr(
        merging.VoteLedger, "release", lambda ledger: held.append(len(ledger._segments)) or release(ledger)
    )
    assert merge_votes(run, [other]) == [MergeCounts(taken=160)]
    assert max(held[1:]) == 1
