"""How good the labels of a vote are: what a user needs to choose the threshold t, in one pass over the labels.

Adaptive voting leaves votes untaken, so of some labels only an interval [least, most] of the confidence is
known, and at another threshold than the run's own it may be open whether they would be kept. Nothing is
guessed there: every figure that hangs on it is given as the least and the most that it can be, equal where
all is known. `rejected` labels (voting.adaptive=kept) have no winner: below t each may turn out to be a tie,
right or wrong. Under voting.adaptive=statistical, outcome and answer count as they were labelled.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import ValidationError
from tqdm import tqdm

from medssr_dist.config.schema import Voting
from medssr_dist.data.jsonl import write_json
from medssr_dist.data.records import LETTERS, Label, Question
from medssr_dist.data.wilson import part, percent, share_of, wilson
from medssr_dist.errors import InputError
from medssr_dist.run.paths import VotingPaths

Truth = Callable[[Question], str | None]
_FINEST = 50  # steps of the threshold, and bins of the histogram, where K is larger
_VALID_STEPS = 20  # the same for winner's votes / valid votes, which are not multiples of 1 / K


def write_quality(folder: Path, labels_file: Path, voting: Voting, truth: Truth) -> dict:
    """Read `labels_file` as a stream; write quality.json and quality.png into `folder`; return the figures.

    Raises:
        InputError: a line that is not a label, or a full disk.
    """
    from medssr_dist.voting.quality_plots import plot_quality

    size = labels_file.stat().st_size
    with tqdm(total=size, desc="quality of labels", unit="B", unit_scale=True, delay=2) as bar:
        quality = measure_quality(_read_labels(labels_file, bar), voting, truth)
    write_json(VotingPaths(folder).quality, quality)
    plot_quality(quality, VotingPaths(folder).quality_plot)
    return quality


def _read_labels(labels_file: Path, bar: tqdm) -> Iterator[Label]:
    with open(labels_file, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                yield Label.model_validate_json(line)
            except ValidationError as error:
                reason = error.errors()[0]["msg"]
                raise InputError(f"{labels_file} line {number} is not a label of this version ({reason})") from None
            bar.update(len(line))


def measure_quality(labels: Iterable[Label], voting: Voting, truth: Truth) -> dict:
    """The figures of quality.json, in constant memory. Shares are 0..1, None where there is nothing to share.

    Args:
        truth: the known answer of a question, or None; it is only counted, never used as a label.
    Returns:
        Counts (`questions`, one for each outcome, `kept`; of the kept: `truth_known`, `agree_with_truth`; of the
        votes taken: `votes`, `invalid_votes`, `truncated_votes`, `tokens`), and
        precision: of the kept labels with a truth, with Wilson's 95% interval; by_kind: the same, rare and common.
        saved: votes that needed not be taken; rates: saved, invalid, truncated; votes_taken: questions by votes.
        histogram: by denominator, questions by confidence in `edges`: `no_winner` (ties, no valid vote; never
        kept), `exact`, and labels known as an interval, once by its least and once by its most.
        curve: at each threshold the labels `open`, `kept`, `kept_share`, `precision` (see `_precision`).
        letters: see `_Letters.figures`.
    """
    found = _Pass(voting)
    for label in labels:
        found.add(label, truth(label.question))
    return found.figures()


class _Case(NamedTuple):
    """What the curve needs of a label that has, or may have, a winner. Thresholds by index, ascending."""

    rare: bool
    kept_below: int  # kept at the thresholds before this one
    open_below: int  # at those from kept_below up to this one it is open; after that, not kept
    answer: Literal["right", "wrong", "either", "unknown"]


@dataclass
class _Pass:
    """Everything that is counted; its size hangs on K and the thresholds, not on the labels."""

    voting: Voting
    outcomes: Counter = field(default_factory=Counter)
    kinds: Counter = field(default_factory=Counter)  # rare -> questions
    cases: Counter[_Case] = field(default_factory=Counter)
    votes: Counter = field(default_factory=Counter)
    taken: Counter[int] = field(default_factory=Counter)
    with_truth: int = 0

    def __post_init__(self) -> None:
        by_vote = min(self.voting.samples, _FINEST)
        steps = by_vote if self.voting.confidence == "requested" else _VALID_STEPS
        self.thresholds = sorted({*(i / steps for i in range(steps + 1)), self.voting.threshold})
        self.own = bisect_left(self.thresholds, self.voting.threshold)
        # A bar of its own for each possible number of votes, where they are few enough.
        centred = [(i - 0.5) / by_vote for i in range(by_vote + 2)]
        even = [i / _VALID_STEPS for i in range(_VALID_STEPS + 1)]
        few = self.voting.samples <= _FINEST
        self.histograms = {"requested": _Histogram(centred if few else even), "valid": _Histogram(even)}
        self.letters = _Letters()

    def add(self, label: Label, truth: str | None) -> None:
        self.outcomes[label.outcome] += 1
        self.kinds[label.question.rare] += 1
        self.with_truth += truth is not None
        self.votes.update(
            requested=label.requested,
            taken=label.taken,
            valid=label.valid,
            truncated=label.truncated,
            tokens=label.tokens,
        )
        self.letters.add(label, truth)
        if label.outcome != "quarantined":  # its votes are lost, not saved, and it has no confidence
            self.votes["saved"] += label.requested - label.taken
            self.taken[label.taken] += 1
            self.histograms["requested"].add(label, label.confidence_requested)
            self.histograms["valid"].add(label, label.confidence_valid)
        if label.outcome in ("labeled", "rejected"):
            self.cases[self._case(label, truth)] += 1

    def _case(self, label: Label, truth: str | None) -> _Case:
        least, most = label.confidence_requested if self.voting.confidence == "requested" else label.confidence_valid
        kept_below = bisect_right(self.thresholds, least) if label.outcome == "labeled" else 0
        open_below = bisect_right(self.thresholds, most)
        if label.kept:  # decided at the run's threshold, hence at all below it
            kept_below = max(kept_below, self.own + 1)
            open_below = max(open_below, kept_below)
        else:
            open_below = min(open_below, self.own)
            kept_below = min(kept_below, open_below)
        if truth is None:
            answer = "unknown"
        elif label.outcome == "rejected":
            answer = "either"
        else:
            answer = "right" if label.answer == truth else "wrong"
        return _Case(label.question.rare, kept_below, open_below, answer)

    def figures(self) -> dict:
        voting, questions = self.voting, self.outcomes.total()
        return {
            "samples": voting.samples,
            "threshold": voting.threshold,
            "confidence": voting.confidence,
            "adaptive": voting.adaptive,
            "questions": questions,
            "labeled": self.outcomes["labeled"],
            "ties": self.outcomes["tie"],
            "all_invalid": self.outcomes["all_invalid"],
            "rejected": self.outcomes["rejected"],
            "quarantined": self.outcomes["quarantined"],
            **self._kept(questions),
            **self._votes(),
            "histogram": {name: histogram.figures() for name, histogram in self.histograms.items()},
            "curve": self._curve(questions, self.cases),
            "letters": self.letters.figures(),
        }

    def _kept(self, questions: int) -> dict:
        kinds = {"rare": self._kind(True), "common": self._kind(False)}
        kept = sum(kind["kept"] for kind in kinds.values())
        right, known = (sum(kind["precision"][name] for kind in kinds.values()) for name in ("count", "of"))
        return {
            "kept": kept,
            "kept_share": _ratio(kept, questions),
            "with_truth": self.with_truth,
            "truth_known": known,
            "agree_with_truth": right,
            "precision": share_of(right, known),
            "by_kind": kinds,
        }

    def _kind(self, rare: bool) -> dict:
        cases = Counter({case: count for case, count in self.cases.items() if case.rare == rare})
        kept = Counter()
        for case, count in cases.items():
            if case.kept_below > self.own:
                kept[case.answer] += count
        return {
            "questions": self.kinds[rare],
            "kept": kept.total(),
            "precision": share_of(kept["right"], kept["right"] + kept["wrong"]),
            "curve": self._curve(self.kinds[rare], cases),
        }

    def _votes(self) -> dict:
        votes, taken = self.votes, self.votes["taken"]
        return {
            "votes": taken,
            "votes_requested": votes["requested"],
            "votes_saved": votes["saved"],
            "invalid_votes": taken - votes["valid"],
            "truncated_votes": votes["truncated"],
            "rates": {
                "saved": _ratio(votes["saved"], votes["requested"]),
                "invalid": _ratio(taken - votes["valid"], taken),
                "truncated": _ratio(votes["truncated"], taken),
            },
            "votes_taken": {str(number): self.taken[number] for number in sorted(self.taken)},
            "tokens": votes["tokens"],
        }

    def _curve(self, questions: int, cases: Counter[_Case]) -> list[dict]:
        curve = []
        for index, threshold in enumerate(self.thresholds):
            kept, maybe = Counter(), Counter()
            for case, count in cases.items():
                if index < case.kept_below:
                    kept[case.answer] += count
                elif index < case.open_below:
                    maybe[case.answer] += count
            least, most = kept.total(), kept.total() + maybe.total()
            curve.append(
                {
                    "threshold": threshold,
                    "open": maybe.total(),
                    "kept": {"least": least, "most": most},
                    "kept_share": {"least": _ratio(least, questions), "most": _ratio(most, questions)},
                    "precision": _precision(kept, maybe),
                }
            )
        return curve


def _precision(kept: Counter, maybe: Counter) -> dict | None:
    """Share of right answers among the kept labels with a truth; None if none of them can be kept.

    Least: all open labels that may be wrong are kept and no right one; most: the other way round. `low` is
    the lower bound of the least's 95% Wilson interval, `high` the upper one of the most's. `known` labels
    with a truth are kept for certain, `open` more of them perhaps.
    """
    known = kept["right"] + kept["wrong"]
    least = kept["right"], known + maybe["wrong"] + maybe["either"]
    hits = maybe["right"] + maybe["either"]
    most = kept["right"] + hits, known + hits
    shares = [count / of for count, of in (least, most) if of]
    if not shares:
        return None
    open_ = maybe["right"] + maybe["wrong"] + maybe["either"]
    bounds = {"low": wilson(*least)[0], "high": wilson(*most)[1]}
    return {"least": shares[0], "most": shares[-1], **bounds, "known": known, "open": open_}


class _Histogram:
    """Questions by confidence; a value on an inner edge belongs to the bin above, the last edge to the last bin."""

    def __init__(self, edges: list[float]):
        self.edges = edges
        self.counts = {name: [0] * (len(edges) - 1) for name in ("no_winner", "exact", "least", "most")}

    def add(self, label: Label, confidence: tuple[float, float]) -> None:
        least, most = confidence
        if label.outcome in ("tie", "all_invalid"):
            self._count("no_winner", least)
        elif least == most:
            self._count("exact", least)
        else:
            self._count("least", least)
            self._count("most", most)

    def _count(self, name: str, value: float) -> None:
        self.counts[name][min(bisect_right(self.edges, value), len(self.edges) - 1) - 1] += 1

    def figures(self) -> dict:
        return {"edges": self.edges, **self.counts}


class _Letters:
    """Whether the policy favours letters, whatever stands beside them."""

    def __init__(self) -> None:
        self.offered: Counter[int] = Counter()  # options of a question -> valid votes on such questions
        self.votes: Counter[str] = Counter()
        self.kept: Counter[str] = Counter()
        self.votes_known: Counter[str] = Counter()  # of the questions with a truth
        self.truth: Counter[str] = Counter()  # letter of the truth -> valid votes on those questions
        self.right: Counter[str] = Counter()  # of these, the right ones

    def add(self, label: Label, truth: str | None) -> None:
        self.offered[len(label.question.options)] += label.valid
        self.votes.update(label.counts)
        if label.kept:
            self.kept[label.answer] += 1
        if truth is not None:
            self.votes_known.update(label.counts)
            self.truth[truth] += label.valid
            self.right[truth] += label.counts.get(truth, 0)

    def figures(self) -> dict:
        """Of the votes taken, of which adaptive voting takes more where they differ.

        By letter, the valid votes for it, their share and `even`, the share if no letter were favoured.

        `kept`: kept answers. Over the questions with a truth: `share_known` against `truth`, the share if all
        votes were right, and `right`, of the votes on questions whose truth is this letter.
        imbalance: half the sum of |share - even|: the share of the votes that would have to name other letters.
        right, right_by_letter: share of right votes, over all votes and as the mean over the truth's letters;
        the latter gains nothing from favouring the letter that is the truth most often.
        """
        valid, known = self.votes.total(), self.truth.total()
        letters = {}
        for index, letter in enumerate(LETTERS[: max(self.offered, default=0)]):
            even = sum(votes / options for options, votes in self.offered.items() if index < options)
            letters[letter] = {
                "votes": self.votes[letter],
                "share": _ratio(self.votes[letter], valid),
                "even": _ratio(even, valid),
                "kept": self.kept[letter],
                "share_known": _ratio(self.votes_known[letter], known),
                "truth": _ratio(self.truth[letter], known),
                "right": _ratio(self.right[letter], self.truth[letter]),
            }
        of_each = [one["right"] for one in letters.values() if one["right"] is not None]
        return {
            "by_letter": letters,
            "imbalance": sum(abs(one["share"] - one["even"]) for one in letters.values()) / 2 if valid else None,
            "right": _ratio(self.right.total(), known),
            "right_by_letter": _ratio(sum(of_each), len(of_each)),
        }


def _ratio(part: float, whole: int) -> float | None:
    return part / whole if whole else None


def format_quality(quality: dict) -> list[tuple[str, str]]:
    """(label, text) rows for the closing table."""
    questions, votes = quality["questions"], quality["votes"]
    outcomes = [f"labeled {part(quality['labeled'], questions)}", f"ties {quality['ties']:,}"]
    outcomes.append(f"no valid vote {quality['all_invalid']:,}")
    outcomes += [f"{name} {quality[name]:,}" for name in ("rejected", "quarantined") if quality[name]]
    saved, requested = quality["votes_saved"], quality["votes_requested"]
    return [
        ("outcome", ", ".join(outcomes)),
        ("kept", f"{part(quality['kept'], questions)} at {format_threshold(quality)}"),
        ("truth", _truth_line(quality)),
        (
            "votes",
            f"{votes:,} taken, {part(saved, requested)} saved; of those taken "
            f"{percent(quality['rates']['invalid'])} invalid, {percent(quality['rates']['truncated'])} truncated",
        ),
        ("letters", _letters_line(quality["letters"])),
    ]


def format_threshold(quality: dict) -> str:
    """Example: "winner's votes / requested votes >= 0.5"."""
    return f"winner's votes / {quality['confidence']} votes >= {quality['threshold']:g}"


def _truth_line(quality: dict) -> str:
    precision = quality["precision"]
    if not precision["of"]:
        return "known of no kept label"
    low, high = percent(precision["low"]), percent(precision["high"])
    kinds = [(name, quality["by_kind"][name]["precision"]) for name in ("rare", "common")]
    split = [f"{name} {part(one['count'], one['of'])}" for name, one in kinds if one["of"]]
    text = f"{part(precision['count'], precision['of'])} of the kept labels with a truth agree (95%: {low} to {high})"
    return f"{text}; {', '.join(split)}" if len(split) > 1 else text


def _letters_line(letters: dict) -> str:
    if letters["imbalance"] is None:
        return "no valid vote"
    by_letter = letters["by_letter"]
    excess = {letter: one["share"] - one["even"] for letter, one in by_letter.items()}
    shown = [
        f"{word} {letter} with {percent(by_letter[letter]['share'])} of the votes (even: "
        f"{percent(by_letter[letter]['even'])})"
        for word, letter in (("most", max(excess, key=excess.get)), ("least", min(excess, key=excess.get)))
    ]
    return f"favoured {', '.join(shown)}; {percent(letters['imbalance'])} of the votes off an even spread"
