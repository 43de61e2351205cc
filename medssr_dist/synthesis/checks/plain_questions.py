"""Questions in plain text: a stem, then one line for each option, labelled in order from the first label of a series.

The last such list of options counts, because a teacher that writes a better version writes it below; numbers count only
where no list has letters, because statements of the stem may be numbered. The stem begins after the list before it, or
after the last heading such as "Better version:". A line below an option belongs to it. What is unclear (text between
options, a numbered list below them, two lists without a heading between them) is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from medssr_dist.synthesis.checks.option_labels import OptionLabel, read_labels
from medssr_dist.synthesis.checks.reply_parts import RawQuestion, RejectedReply

_QUESTION_WORDS = r"question|stem|vignette|case|scenario|mcq|item|version|draft|attempt|try"
_HEADING = re.compile(
    rf"[\s#*_>-]*(?:(?:my|the|a|an|one|new|better|revised|final|improved|corrected|updated|second|third|first|clinical|"
    rf"medical|patient|multiple[- ]choice|mcq)\s+){{0,4}}(?P<kind>{_QUESTION_WORDS})(?:\s*(?:no\.?|\#)?\s*\d{{1,3}})?"
    r"\s{0,3}(?:[*_]{0,3}[:：][*_]{0,3}|[*_]{0,3}$)\s*",
    re.IGNORECASE,
)
_ENDING_HEADING = re.compile(
    r".{0,300}\b(?:new|better|revised|final|improved|corrected|updated|second|third|next) "
    rf"(?:{_QUESTION_WORDS})[*_]{{0,3}}:[*_]{{0,3}}",
    re.IGNORECASE,
)
_VERSION_WORDS = frozenset({"version", "draft", "attempt", "try"})
_LEAD_WORDS = frozenset({"question", "stem", "mcq", "item"})
_OPTIONS_HEADING = re.compile(
    r"[\s#*_>-]*(?:answer\s+)?(?:options|choices|alternatives)(?:\s+are)?\s*[:：]?\W*", re.IGNORECASE
)
_CHATTER = re.compile(
    r"\W*(?:(?:sure|certainly|of course|absolutely|okay|ok|great|understood)\b[^\n:?]{0,150}[:!.]|"
    r"(?:here|below)\b[^\n:?]{0,150}:)[\s*_]*",
    re.IGNORECASE,
)
_CONTINUED = re.compile(r".*(?:[,;–—-]|\b(?:and|or|with|of|the|to|for|by|in|plus))$", re.IGNORECASE)
_NUMBER = re.compile(r"(?:q\s?\d{0,3}|\d{1,3})[.:)]\s+(?=\S)", re.IGNORECASE)
_QUOTED = re.compile(r"\"[^\"]+\"")
_SECOND = re.compile(r"^\W*2[.)]", re.MULTILINE)
_TAG = re.compile(r"</?(?:question|stem|options?|choices?|mcq|item|output|response)>", re.IGNORECASE)
_FENCE = re.compile(r"\s*(?:```|~~~)\w*\s*$|\s*(?:[-*_]\s*){3,}$")


@dataclass
class _Run:
    """Options in order, from line `first` to before line `end`."""

    series: int
    first: int
    end: int
    options: list[str]


def split_lettered(text: str) -> RawQuestion | None:
    """Return the question in a plain text, or None if it has no list of at least two labelled options.

    Raises:
        RejectedReply: it is unclear what belongs to the question.
    """
    lines = ["" if _FENCE.match(line) else line.rstrip() for line in _TAG.sub("", text).splitlines()]
    runs = _find_runs(lines)
    lists = [run for run in runs if len(run.options) > 1]
    if not lists:
        return None
    run = next((run for run in reversed(lists) if run.series == 0), lists[-1])
    if any(later.first > run.first for later in runs):
        raise RejectedReply("not_parsable", "a list follows the options: another version, or an explanation")
    rest = _finish_options(run, lines)
    earlier = [other for other in lists[:-1] if other.series == run.series]
    begin = earlier[-1].end if earlier else 0
    stem = _find_stem("\n".join(lines[begin : run.first]), is_later=bool(earlier))
    if all(_QUOTED.fullmatch(text) for text in (stem, *run.options)):  # YAML
        stem, run.options = stem[1:-1], [text[1:-1] for text in run.options]
    return RawQuestion(stem, tuple(run.options), rest="\n".join(rest))


def _find_runs(lines: list[str]) -> list[_Run]:
    """Return the lists of labelled lines. A label out of order ends a list, and starts one if it is the first label."""
    runs: list[_Run] = []
    for number, line in enumerate(lines):
        labels = [label for label in _read_line(line) if not label.is_weak and label.text]
        following = next((label for label in labels if runs and _follows(label, runs[-1])), None)
        if following:
            runs[-1].options.append(following.text)
            runs[-1].end = number + 1
            continue
        starting = next((label for label in labels if label.place == 0), None)
        if starting:
            runs.append(_Run(starting.series, number, number + 1, [starting.text]))
    return runs


def _read_line(line: str) -> tuple[OptionLabel, ...]:
    return read_labels(line.strip().lstrip("> "))


def _follows(label: OptionLabel, run: _Run) -> bool:
    return label.series == run.series and label.place == len(run.options)


def _finish_options(run: _Run, lines: list[str]) -> list[str]:
    """Add to each option the lines that continue it. Return the lines below the options."""
    place, after_blank, rest_begins = 0, False, len(lines)
    for number in range(run.first + 1, len(lines)):
        line = lines[number].strip()
        labels = _read_line(line)
        is_inside = place < len(run.options) - 1
        if is_inside and any(label.series == run.series and label.place == place + 1 for label in labels):
            place, after_blank = place + 1, False
        elif not line:
            after_blank = True
        elif is_inside and (after_blank or any(not label.is_weak for label in labels)):
            raise RejectedReply("not_parsable", f"between two options is the text {line[:80]!r}")
        elif is_inside or (not after_blank and _continues(run.options[-1], lines[number])):
            run.options[place] += "\n" + line
        else:
            rest_begins = number
            break
    run.end = min(rest_begins, len(lines))
    rest = lines[rest_begins:]
    again = [label for line in rest for label in _read_line(line) if label.series == run.series and not label.is_weak]
    if any(label.place < len(run.options) for label in again):
        raise RejectedReply("answer_leaked", "options are named again below the list of options")
    if again:
        raise RejectedReply("not_parsable", "a label is missing in the list of options")
    return rest


def _continues(option: str, line: str) -> bool:
    """Whether a line right below the last option belongs to it."""
    return line[:1].isspace() or line[:1].islower() or _CONTINUED.fullmatch(option) is not None


def _find_stem(text: str, is_later: bool) -> str:
    """Return the stem in the text above the options, without headings and what a chat model says around it."""
    lines = text.split("\n")
    while lines and (not lines[-1].strip() or _OPTIONS_HEADING.fullmatch(lines[-1])):
        lines.pop()
    kept: list[str] = []
    has_heading = False
    for line in lines:
        if _ENDING_HEADING.fullmatch(line.strip()):
            kept, has_heading = [], True
            continue
        heading = _HEADING.match(line)
        kind = heading["kind"].lower() if heading else ""
        if kind in _VERSION_WORDS or (kind in _LEAD_WORDS and is_later and not has_heading):
            kept.clear()
        has_heading = has_heading or heading is not None
        kept.append(line[heading.end() :] if heading else line)
    if is_later and not has_heading:
        raise RejectedReply("not_parsable", "two lists of options, and no heading between them")
    return strip_chatter("\n".join(kept))


def strip_chatter(stem: str) -> str:
    """Return `stem` without "Sure! Here is a question:", headings and a number before it, and bold around all of it."""
    stem = stem.strip()
    for pattern in (_CHATTER, _CHATTER, _HEADING, _NUMBER):
        match = pattern.match(stem)
        if match and match.end() < len(stem) and not (pattern is _NUMBER and _SECOND.search(stem)):
            stem = stem[match.end() :].strip()
    is_bold = stem.startswith("**") and stem.endswith("**") and stem.count("**") == 2 and len(stem) > 4
    return stem[2:-2].strip() if is_bold else stem
