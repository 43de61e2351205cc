"""Quality of labels: hand-computed figures, bounds of adaptive voting, files, plots, closing table."""

import tracemalloc
from collections import Counter
from functools import cache
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stored_votes import write_labels

from medssr_dist.config.voting import Voting
from medssr_dist.data.jsonl import JsonlLedger, read_json, read_jsonl
from medssr_dist.data.records import LETTERS, Label, Question
from medssr_dist.data.wilson import Share, wilson_interval
from medssr_dist.errors import InputError
from medssr_dist.voting.quality import measure_quality, write_quality
from medssr_dist.voting.quality_plots import draw_quality
from medssr_dist.voting.quality_records import (
    CountBounds,
    LabelQuality,
    PrecisionBounds,
    VoteRates,
)
from medssr_dist.voting.quality_text import format_quality


def question(truth: str | None = None, options: int = 4, **fields) -> Question:
    texts = [f"option {letter}" for letter in LETTERS[:options]]
    return Question.make("Which one?", texts, source="synthetic", truth=truth, **fields)


def outcome_of(counts: dict[str, int]) -> tuple[str, str | None]:
    top = sorted(counts, key=counts.get, reverse=True)
    if not top:
        return "all_invalid", None
    alone = len(top) == 1 or counts[top[0]] > counts[top[1]]
    return ("labeled", top[0]) if alone else ("tie", None)


def confidences(counts: dict[str, int], samples: int) -> dict[str, float]:
    top, valid = max(counts.values(), default=0), sum(counts.values())
    return {"requested": top / samples, "valid": top / valid if valid else 0.0}


def label(votes: str, voting: Voting, of: Question, interval=None, truncated=0, **changes) -> Label:
    """The label of `votes`, one letter per vote and '-' = invalid: all K, or fewer with known intervals."""
    counts = dict(sorted(Counter(votes.replace("-", "")).items()))
    outcome, answer = outcome_of(counts)
    found = {name: (share, share) for name, share in confidences(counts, voting.samples).items()}
    found |= interval or {}
    kept = outcome == "labeled" and found[voting.confidence][0] >= voting.threshold
    fields = {
        "outcome": outcome,
        "answer": answer,
        "counts": counts,
        "requested": voting.samples,
        "taken": len(votes),
        "valid": sum(counts.values()),
        "truncated": truncated,
        "tokens": 10 * len(votes),
        "kept": kept,
        "confidence_requested": found["requested"],
        "confidence_valid": found["valid"],
    }
    return Label(question=of, policy="p", sampling="s", **(fields | changes))


def truth_of(of: Question) -> str | None:
    return of.truth


FOUR = Voting(samples=4, threshold=0.75, adaptive="lossless")
INTERVAL = {"requested": (0.75, 1.0), "valid": (0.75, 1.0)}


def every_outcome() -> list[Label]:
    lost = {"outcome": "quarantined", "answer": None, "kept": False, "reason": "two engines died"}
    rejected = {"outcome": "rejected", "answer": None, "kept": False}
    half = {"requested": (0.25, 0.5), "valid": (0.25, 0.5)}
    return [
        label("AAAA", FOUR, question("A", rare=True)),
        label("AAA", FOUR, question("B", rare=True), INTERVAL),
        label("BBB-", FOUR, question("B"), truncated=1),
        label("BBB", FOUR, question(), INTERVAL),
        label("CCDB", FOUR, question("C")),
        label("AABB", FOUR, question("A")),
        label("----", FOUR, question("A")),
        label("ABC", FOUR, question("D"), half, **rejected),
        label("A", FOUR, question("A"), **lost),
    ]


def test_counts_of_every_outcome():
    found = measure_quality(iter(every_outcome()), FOUR, truth_of)
    counts = {"questions": 9, "labeled": 5, "ties": 1, "all_invalid": 1, "rejected": 1, "quarantined": 1, "kept": 4}
    counts |= {"truth_known": 3, "agree_with_truth": 2, "with_truth": 8, "kept_share": 4 / 9}
    counts |= {"votes": 30, "votes_requested": 36, "votes_saved": 3, "invalid_votes": 5, "truncated_votes": 1}
    counts |= {"tokens": 300, "votes_taken": {3: 3, 4: 5}}
    assert {name: getattr(found, name) for name in counts} == counts
    assert found.rates == VoteRates(saved=3 / 36, invalid=5 / 30, truncated=1 / 30)
    low, high = wilson_interval(2, 3)
    assert found.precision == Share(share=2 / 3, low=low, high=high, count=2, of=3)
    rare, common = found.by_kind.rare, found.by_kind.common
    assert (rare.questions, rare.kept, rare.precision.count, rare.precision.of) == (2, 2, 1, 2)
    assert (common.questions, common.kept, common.precision.count, common.precision.of) == (7, 2, 1, 1)


def test_the_histogram_separates_known_and_open_confidences():
    found = measure_quality(every_outcome(), FOUR, truth_of).histogram
    requested = found.requested
    assert requested.edges == (-0.125, 0.125, 0.375, 0.625, 0.875, 1.125), "a bin for each number of votes"
    assert requested.no_winner == (1, 0, 1, 0, 0)
    assert requested.exact == (0, 0, 1, 1, 1)
    assert requested.least == (0, 1, 0, 2, 0)
    assert requested.most == (0, 0, 1, 0, 2)
    assert len(found.valid.edges) == 21
    assert found.valid.exact[19] == 2, "3 of 3 valid votes and 4 of 4"
    for each in (found.requested, found.valid):
        assert sum(each.no_winner) + sum(each.exact) + sum(each.least) == 8, "all but the quarantined question"


def test_the_curve_counts_open_labels():
    curve = {point.threshold: point for point in measure_quality(every_outcome(), FOUR, truth_of).curve}
    assert list(curve) == [0, 0.25, 0.5, 0.75, 1]
    assert [curve[t].kept for t in (0.5, 0.75, 1)] == [
        CountBounds(least=5, most=6),
        CountBounds(least=4, most=4),
        CountBounds(least=1, most=3),
    ]
    assert [curve[t].open for t in curve] == [1, 1, 1, 0, 2]
    low, high = wilson_interval(3, 5)[0], wilson_interval(4, 5)[1]
    half = PrecisionBounds(least=3 / 5, most=4 / 5, low=low, high=high, known=4, open=1)
    assert curve[0.5].precision == half, "the rejected question may be a tie, wrong, or right"
    low, high = wilson_interval(1, 2)[0], wilson_interval(1, 1)[1]
    whole = PrecisionBounds(least=1 / 2, most=1.0, low=low, high=high, known=1, open=1)
    assert curve[1].precision == whole, "of the two open labels one is wrong, and the other has no truth"


def test_a_label_with_an_open_interval_counts_as_decided():
    voting = Voting(samples=4, threshold=0.75, adaptive="statistical")
    wide = {"requested": (0.5, 1.0), "valid": (0.5, 1.0)}
    labels = [label("AA", voting, question("A"), wide, kept=True), label("BB", voting, question("A"), wide, kept=False)]
    found = measure_quality(labels, voting, truth_of)
    assert [(point.kept.least, point.kept.most) for point in found.curve] == [
        (2, 2),
        (2, 2),
        (2, 2),
        (1, 1),
        (0, 1),
    ]
    assert (found.kept, found.agree_with_truth) == (1, 1)


@pytest.mark.parametrize("confidence", ["requested", "valid"])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 1.0])
def test_the_curve_agrees_with_the_counts_at_the_runs_threshold(confidence, threshold):
    voting = Voting(samples=10, threshold=threshold, confidence=confidence, adaptive="never")
    votes = ["AAABCDABCD", "AAA-------", "ABC-------", "AAAAAAAAAA", "BBBBBBBAAA"]
    found = measure_quality([label(each, voting, question("A")) for each in votes], voting, truth_of)
    (own,) = [point for point in found.curve if point.threshold == threshold]
    assert own.kept == CountBounds(least=found.kept, most=found.kept)
    assert own.precision.least == own.precision.most == found.precision.share
    assert found.kept == sum(label(each, voting, question()).kept for each in votes)


@cache
def completions(votes: str, samples: int) -> list[tuple[str, str | None, tuple[tuple[str, float], ...]]]:
    """Outcome, answer and confidences of each completion of the votes."""
    found = set()
    for rest in product("ABC-", repeat=samples - len(votes)):
        counts = Counter((votes + "".join(rest)).replace("-", ""))
        found.add((*outcome_of(counts), tuple(confidences(counts, samples).items())))
    return list(found)


def stopped_early(votes: str, voting: Voting, of: Question) -> Label:
    """The label of the first votes after which all completions agree in what `voting.adaptive` requires."""
    for taken in range(1, voting.samples + 1):
        ends = completions(votes[:taken], voting.samples)
        kept = {end[0] == "labeled" and dict(end[2])[voting.confidence] >= voting.threshold for end in ends}
        results = {end[:2] for end in ends}
        rejected = len(results) > 1 and voting.adaptive == "kept" and kept == {False}
        if len(kept) == 1 and (len(results) == 1 or rejected):
            break
    interval = {
        name: (min(dict(end[2])[name] for end in ends), max(dict(end[2])[name] for end in ends))
        for name in ("requested", "valid")
    }
    outcome, answer = ("rejected", None) if rejected else results.pop()
    return label(votes[:taken], voting, of, interval, outcome=outcome, answer=answer, kept=kept.pop())


@settings(max_examples=60)
@given(
    votes=st.lists(st.text("ABC-", min_size=5, max_size=5), min_size=1, max_size=6),
    truths=st.lists(st.sampled_from(["A", "B", None]), min_size=6, max_size=6),
    threshold=st.sampled_from([0.0, 0.3, 0.5, 0.6, 0.9, 1.0]),
    confidence=st.sampled_from(["requested", "valid"]),
    adaptive=st.sampled_from(["lossless", "kept"]),
)
def test_the_bounds_of_adaptive_voting_hold_the_full_vote(votes, truths, threshold, confidence, adaptive):
    voting = Voting(samples=5, threshold=threshold, confidence=confidence, adaptive=adaptive)
    questions = [question(truth, options=3) for truth, _ in zip(truths, votes, strict=False)]
    full = measure_quality(map(label, votes, [voting] * len(votes), questions), voting, truth_of)
    early = measure_quality(map(stopped_early, votes, [voting] * len(votes), questions), voting, truth_of)
    for name in ("kept", "truth_known", "agree_with_truth", "precision"):
        assert getattr(early, name) == getattr(full, name)
    assert early.votes + early.votes_saved == full.votes == early.votes_requested
    for wide, exact in zip(early.curve, full.curve, strict=True):
        assert exact.open == 0
        assert wide.kept.least <= exact.kept.least <= wide.kept.most
        if exact.precision:
            assert wide.precision.least <= exact.precision.least <= wide.precision.most
            assert wide.precision.low <= exact.precision.low + 1e-12  # for rounding
            assert wide.precision.high >= exact.precision.high - 1e-12
        if wide.threshold == threshold:
            assert wide.open == 0 and wide.precision == exact.precision


def test_letters_are_compared_with_the_options_and_the_truth():
    voting = Voting(samples=4, threshold=0, adaptive="never")
    labels = [
        label("AAAB", voting, question("A", options=4)),
        label("AAAA", voting, question("A", options=2)),
        label("AAB-", voting, question("B", options=2)),
        label("AACC", voting, question(options=4)),
    ]
    found = measure_quality(labels, voting, truth_of).letters
    shares = {letter: (one.votes, one.even * 15, one.kept) for letter, one in found.by_letter.items()}
    assert shares == {
        "A": (11, pytest.approx(8 / 4 + 7 / 2), 3),
        "B": (2, pytest.approx(8 / 4 + 7 / 2), 0),
        "C": (2, pytest.approx(2), 0),
        "D": (0, pytest.approx(2), 0),
    }
    assert found.imbalance == pytest.approx((11 - 5.5) / 15)
    one = found.by_letter["A"]
    assert (one.share_known, one.truth, one.right) == (9 / 11, 8 / 11, 7 / 8)
    assert found.right == 8 / 11
    assert found.right_by_letter == pytest.approx((7 / 8 + 1 / 3) / 2), "always naming A gains nothing"


def test_memory_does_not_grow_with_the_labels():
    voting = Voting(samples=8, adaptive="never")

    def peak(count: int) -> int:
        tracemalloc.start()
        measure_quality((label("AAAAAB-C", voting, question("A")) for _ in range(count)), voting, truth_of)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(10)
    assert peak(1000) < peak(100) + 50_000


ten_letters = Voting(samples=64, threshold=0.1, adaptive="never")
CASES = {
    "every outcome": (every_outcome(), FOUR, truth_of),
    "no truth": (every_outcome(), FOUR, lambda of: None),
    "no label": ([], FOUR, truth_of),
    "one label": ([label("BBB", FOUR, question(), INTERVAL)], FOUR, truth_of),
    "one vote": ([label("-", Voting(samples=1), question("A"))], Voting(samples=1), truth_of),
    "ten letters": ([label((LETTERS * 7)[:64], ten_letters, question("J", 10))], ten_letters, truth_of),
    "valid": (every_outcome(), FOUR.model_copy(update={"confidence": "valid"}), truth_of),
}


@pytest.mark.parametrize("name", CASES)
def test_files_and_panels(name, tmp_path):
    labels, voting, truth = CASES[name]
    folder = tmp_path / "quality"
    folder.mkdir()
    found = write_quality(folder, write_labels(tmp_path / "voting", labels), voting, truth)
    stored = read_json(folder / "quality.json")
    assert found == measure_quality(labels, voting, truth) == LabelQuality.model_validate(stored)
    assert stored == found.model_dump(mode="json")
    assert (folder / "quality.png").read_bytes().startswith(b"\x89PNG")
    assert {one.name for one in folder.iterdir()} == {"quality.json", "quality.png"}
    panels = draw_quality(found).axes
    assert len(panels) == 6
    for panel in panels:
        assert panel.get_xlabel() and panel.get_ylabel() and panel.get_title(loc="left")
        assert any("n = " in text.get_text() for text in panel.texts)
    assert all(text for _, text in format_quality(found))


def test_a_line_that_is_not_a_label_is_named(tmp_path):
    file = write_labels(tmp_path, every_outcome()[:1])
    (row,) = read_jsonl(file)
    with JsonlLedger(file) as ledger:
        ledger.append(row | {"confidence_valid": 0.5})
    with pytest.raises(InputError, match="labeled.jsonl line 2 is not a label"):
        write_quality(tmp_path, file, FOUR, truth_of)
    assert not (tmp_path / "quality.json").exists()


def test_rows_of_the_closing_table():
    lines = dict(format_quality(measure_quality(every_outcome(), FOUR, truth_of)))
    assert lines == {
        "outcome": "labeled 5 of 9 (55.6%), ties 1, no valid vote 1, rejected 1, quarantined 1",
        "kept": "4 of 9 (44.4%) at winner's votes / requested votes >= 0.75",
        "truth": "2 of 3 (66.7%) of the kept labels with a truth agree (95%: 20.8% to 93.9%; by chance 25.0%); "
        "rare 1 of 2 (50.0%), "
        "common 1 of 1 (100.0%)",
        "votes": "30 taken, 3 of 36 (8.3%) saved; of those taken 16.7% invalid, 3.3% truncated",
        "letters": "favoured most A with 44.0% of the votes (even: 25.0%), least D with 4.0% of the votes (even: "
        "25.0%); 34.0% of the votes off an even spread",
    }
    unknown = dict(format_quality(measure_quality(every_outcome(), FOUR, lambda of: None)))
    assert unknown["truth"] == "known of no kept label"
