"""The quality of a vote's labels as rows of the closing table."""

from __future__ import annotations

from typing import NamedTuple

from medssr_dist.data.label_certificate import format_certificate
from medssr_dist.data.wilson import format_part, format_percent
from medssr_dist.voting.quality_records import LabelQuality, LetterBias


class TableRow(NamedTuple):
    """A row of the closing table. Example: TableRow("kept", "4 of 9 (44.4%) at winner's votes / ... >= 0.75")"""

    label: str
    text: str


def format_quality(quality: LabelQuality, kept_wanted: int = 0) -> list[TableRow]:
    """Return the rows on outcomes, kept labels (`kept_wanted` of them were wanted), their precision, votes, letters."""
    wanted = f"; {kept_wanted:,} wanted" if kept_wanted else ""
    outcomes = [f"labeled {format_part(quality.labeled, quality.questions)}", f"ties {quality.ties:,}"]
    outcomes.append(f"no valid vote {quality.all_invalid:,}")
    further = {"rejected": quality.rejected, "quarantined": quality.quarantined}
    outcomes += [f"{name} {count:,}" for name, count in further.items() if count]
    return [
        TableRow("outcome", ", ".join(outcomes)),
        TableRow("kept", f"{format_part(quality.kept, quality.questions)} at {format_threshold(quality)}{wanted}"),
        TableRow("truth", _format_truth(quality)),
        *([TableRow("promise", format_certificate(quality.certificate))] if quality.certificate else []),
        TableRow(
            "votes",
            f"{quality.votes:,} taken, {format_part(quality.votes_saved, quality.votes_requested)} saved; of those "
            f"taken {format_percent(quality.rates.invalid)} invalid, {format_percent(quality.rates.truncated)} "
            "truncated",
        ),
        TableRow("letters", _format_letters(quality.letters)),
    ]


def format_threshold(quality: LabelQuality) -> str:
    """Example: "winner's votes / requested votes >= 0.5"."""
    if quality.certificate is None:
        return f"winner's votes / {quality.confidence} votes >= {quality.threshold:g}"
    own = [
        f"{each.threshold:.4g}{'' if each.kind == 'all' else f' ({each.kind})'}"
        for each in quality.certificate.thresholds
    ]
    return f"winner's votes / {quality.confidence} votes >= {' or '.join(own)}"


def _format_truth(quality: LabelQuality) -> str:
    precision = quality.precision
    if not precision.of:
        return "known of no kept label"
    kinds = {"rare": quality.by_kind.rare.precision, "common": quality.by_kind.common.precision}
    split = [f"{name} {format_part(share.count, share.of)}" for name, share in kinds.items() if share.of]
    text = (
        f"{format_part(precision.count, precision.of)} of the kept labels with a truth agree "
        f"(95%: {format_percent(precision.low)} to {format_percent(precision.high)}; by chance "
        f"{format_percent(quality.chance)})"
    )
    return f"{text}; {', '.join(split)}" if len(split) > 1 else text


def _format_letters(letters: LetterBias) -> str:
    excess = {
        letter: one.share - one.even
        for letter, one in letters.by_letter.items()
        if one.share is not None and one.even is not None
    }
    if letters.imbalance is None or not excess:
        return "no valid vote"
    favoured = {"most": max(excess, key=lambda letter: excess[letter])}
    favoured["least"] = min(excess, key=lambda letter: excess[letter])
    shown = [
        f"{word} {letter} with {format_percent(letters.by_letter[letter].share)} of the votes (even: "
        f"{format_percent(letters.by_letter[letter].even)})"
        for word, letter in favoured.items()
    ]
    return f"favoured {', '.join(shown)}; {format_percent(letters.imbalance)} of the votes off an even spread"
