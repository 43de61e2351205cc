"""`medssr bench labels`: label sources compared, and the promise of the calibrated threshold tested, on real votes.

The mini policy votes on questions with a known answer in three ways (`vote_arms.py`): as they are, with shuffled
options, and with paraphrases. Each rule then makes its labels from the same votes. The threshold is calibrated on 200
random slices of the questions, and its promise is checked on all others. The votes lie beside the result, in a folder
with its name; the same command takes those that are missing.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from medssr_dist.bench.labels.label_figures import (
    LetterFigures,
    PromiseFigures,
    SourceFigures,
    label_all,
    measure_letters,
    measure_promise,
    measure_source,
)
from medssr_dist.bench.labels.vote_arms import ARMS, take_votes
from medssr_dist.bench.result_file import write_result
from medssr_dist.config.label_settings import MAJORITY
from medssr_dist.data.wilson import format_part, format_percent

_RULES = {
    "plain": (MAJORITY, "length", "logprob"),
    "shuffled": (MAJORITY, "length", "logprob", "agreement"),
    "paraphrased": (MAJORITY, "length", "logprob", "agreement"),
}
_THRESHOLD = 0.5
_PRECISIONS, _CONFIDENCE, _LOWEST = (0.4, 0.45, 0.5, 0.55, 0.6, 0.9), 0.95, 0.25


@dataclass(frozen=True)
class LabelScale:
    """Sizes of the comparison."""

    questions: int
    samples: int
    splits: int
    slice: int  # questions of each slice


FULL = LabelScale(questions=1200, samples=16, splits=200, slice=300)
QUICK = LabelScale(questions=40, samples=8, splits=20, slice=20)


@dataclass(frozen=True)
class LabelBenchFigures:
    """The content of the result file, after date, commit, machine and versions.

    Attributes:
        threshold: of the share of valid votes, for `sources[...].kept`.
        letters: by arm.
    """

    questions: int
    samples: int
    threshold: float
    quick: bool
    letters: dict[str, LetterFigures]
    sources: tuple[SourceFigures, ...]
    promises: tuple[PromiseFigures, ...]


def bench_labels(json_path: Path, quick: bool = False) -> None:
    """Take the votes that are missing, write `json_path` and print the tables."""
    json_path, scale = Path(json_path), QUICK if quick else FULL
    voted = take_votes(json_path.with_suffix(".runs"), scale.questions, scale.samples)
    labels = {(arm, rule): label_all(voted[arm], rule, _THRESHOLD) for arm in ARMS for rule in _RULES[arm]}
    plain = labels["plain", MAJORITY]
    figures = LabelBenchFigures(
        questions=scale.questions,
        samples=scale.samples,
        threshold=_THRESHOLD,
        quick=quick,
        letters={arm: measure_letters(voted[arm]) for arm in ARMS},
        sources=tuple(
            measure_source(arm, rule, found, None if found is plain else plain) for (arm, rule), found in labels.items()
        ),
        promises=tuple(
            measure_promise(arm, labels[arm, MAJORITY], precision, _CONFIDENCE, scale.splits, scale.slice, _LOWEST)
            for arm in ARMS
            for precision in _PRECISIONS
        ),
    )
    write_result(json_path, asdict(figures))
    print("\n".join(format_label_tables(figures)))


def format_label_tables(figures: LabelBenchFigures) -> list[str]:
    """Return the tables of letters, sources and promises as lines."""
    lines = ["votes: letters off an even spread, as written / as the question's own; right"]
    lines += [
        f"  {arm:<14}{format_percent(each.imbalance_shown):>8} /{format_percent(each.imbalance_own):>7}"
        f"{format_percent(each.right):>9}"
        for arm, each in figures.letters.items()
    ]
    lines.append(f"labels: right; right of those kept at {figures.threshold}; gain over plain majority; letters off")
    for source in figures.sources:
        gain = source.gain
        shown = f"{100 * gain.value:+.1f} ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})" if gain else "-"
        lines.append(
            f"  {source.arm:<13}{source.rule:<11}{format_percent(source.right.share):>7}"
            f"{format_part(source.kept.count, source.kept.of):>22}{shown:>24}{format_percent(source.imbalance):>8}"
        )
    slice_size = figures.promises[0].slice
    lines.append(
        f"promise: precision wanted; slices of {slice_size} with a threshold; slices that kept it; of those with one"
    )
    lines += [
        f"  {each.arm:<13}{each.precision:>5.2f}{each.certified:>5} of {each.splits}"
        f"{format_percent(each.holds.share):>9}{format_percent(each.holds_where_certified.share):>9}"
        for each in figures.promises
    ]
    return lines
