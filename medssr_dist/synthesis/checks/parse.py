"""Parses the text of a reply into a stem and options, or into a rejection with its reason.

1. A reply that is cut, or that the API has refused, is no question, whatever it holds.
2. The thoughts of a reasoning model are cut off; thoughts that do not end mean that no question was written.
3. The question is searched for as JSON (alone, in a code fence or within text), then as a plain stem with labelled
   options. If there are several versions, the last counts; if the last cannot be read, none does.
4. Labels of options and invisible characters are taken off, and the texts are checked: none empty, none twice, the
   answer not told. The content is checked by the other modules of `checks`.
"""

from __future__ import annotations

import re

from medssr_dist.data.records import LETTERS
from medssr_dist.data.thoughts import cut_thoughts
from medssr_dist.synthesis.checks.answer_leaks import find_leak
from medssr_dist.synthesis.checks.json_questions import read_json_question
from medssr_dist.synthesis.checks.loose_json import FoundObject, find_objects, mend_escapes
from medssr_dist.synthesis.checks.option_labels import strip_labels
from medssr_dist.synthesis.checks.plain_questions import split_lettered, strip_chatter
from medssr_dist.synthesis.checks.reply_parts import Draft, RawQuestion, RejectedReply, Rejection
from medssr_dist.synthesis.checks.wording import remove_invisible

OPTION_CHARS = 400

# How APIs name the end of a reply, in lower case. Other words, such as "stop", are no fault.
_CUT = frozenset({"length", "max_tokens", "max_output_tokens", "model_length", "model_context_window_exceeded"})
_REFUSED = frozenset(
    {"content_filter", "refusal", "safety", "recitation", "blocklist", "prohibited_content", "spii", "sensitive"}
)
_JSON_STEM = re.compile(r"[\"'“”‘’{,]\s*(?:question|stem)[\"'“”‘’]?\s*:", re.IGNORECASE)
_REFUSAL = re.compile(
    r"\W*(?:I['’]?m sorry|I am sorry|sorry|I apologi[sz]e|I can(?:not|['’]t)|I am (?:unable|not able)|I['’]m (?:unable|"
    r"not able)|unfortunately,? I)\b",
    re.IGNORECASE,
)
_BOLD = re.compile(r"\*\*(?=[^\s*])([^*]{1,1000})(?<=\S)\*\*")
_ORGANISM = re.compile(r"(?<![*_])([*_])([A-Z]\. [a-z]{3,30})\1(?![*_])")  # in italics
_LABEL_BEFORE = re.compile(r"(?:^|\W)(?:[A-Ja-j]|\d)[.):\]]\W{0,3}$")
_NO_TEXT = re.compile(r"nan|null|undefined|n/a|tbd|[.…_?\s-]*", re.IGNORECASE)


def read_reply(text: str, finish_reason: str = "") -> Draft | Rejection:
    """Parse one reply.

    Args:
        finish_reason: why the reply ended, as the API says; "" if it does not say.

    Returns:
        The draft, or a rejection whose reason is truncated, refused, still_thinking, not_parsable, empty,
        garbled, bare_letters, unclear_labels, options_in_stem, option_count, duplicate_options, answer_leaked or
        option_too_long.
    """
    try:
        _check_end(finish_reason)
        found = _find_question(_cut_thoughts(text))
        draft = _build_draft(found)
        _check(draft, found)
        return draft
    except RejectedReply as reject:
        return reject.rejection


def _check_end(finish_reason: str) -> None:
    end = finish_reason.casefold().partition(":")[0]
    if end in _CUT:
        raise RejectedReply("truncated", f"the reply reached the limit of tokens (finish_reason {finish_reason!r})")
    if end in _REFUSED:
        raise RejectedReply("refused", f"the API withheld the reply (finish_reason {finish_reason!r})")


def _cut_thoughts(text: str) -> str:
    said = cut_thoughts(text)
    if said.is_open:
        raise RejectedReply("still_thinking", "the reply ends within the thoughts of the model")
    if not said.text.strip():
        raise RejectedReply("empty", "the reply is empty")
    return said.text


def _find_question(text: str) -> RawQuestion:
    """Return the last version of the question in a reply."""
    mended = mend_escapes(text)
    found = [(each, question) for each in find_objects(mended) if (question := read_json_question(each.value))]
    if found:
        return _add_surroundings(mended, [each for each, _ in found], found[-1][1])
    if _JSON_STEM.search(text):
        raise RejectedReply("not_parsable", "the JSON of the question is broken, is cut, or lacks stem or options")
    question = split_lettered(text)
    if question is None and _REFUSAL.match(text):
        raise RejectedReply("refused", f"the model says {text[:80]!r}")
    if question is None:
        raise RejectedReply("not_parsable", "neither JSON with question and options nor a stem with labelled options")
    return question


def _add_surroundings(text: str, objects: list[FoundObject], question: RawQuestion) -> RawQuestion:
    """Return the question of the last object with the text around it. Raises RejectedReply if a version follows it."""
    begin = objects[-2].end if len(objects) > 1 else 0
    before, after = text[begin : objects[-1].start], text[objects[-1].end :]
    if ":" in after and _JSON_STEM.search(after):
        raise RejectedReply("not_parsable", "the last version of the question is broken or cut")
    later = split_lettered(after)
    if later:
        raise RejectedReply("not_parsable", "labelled lines follow the question: another version, or an explanation")
    return RawQuestion(
        question.stem, question.options, question.leak, "\n".join(filter(None, (before, question.rest, after)))
    )


def _build_draft(found: RawQuestion) -> Draft:
    """Return the texts of the question, cleaned and without labels and markup."""
    options = tuple(_strip_italics(_clean(option, " ")) for option in found.options)
    if len(options) > 1:
        options = strip_labels(options)
        if all(map(_BOLD.fullmatch, options)):
            options = tuple(option[2:-2] for option in options)
    stem = _strip_italics(_BOLD.sub(r"\1", strip_chatter(_clean(found.stem, "\n"))))
    return Draft(_cut_listed_options(stem, options), options)


def _cut_listed_options(stem: str, options: tuple[str, ...]) -> str:
    """Return `stem` without the options, if it lists them too: their order there would not be the shuffled one.

    Raises:
        RejectedReply: it lists them within a line.
    """
    try:
        listed = split_lettered(stem)
    except RejectedReply:  # a list of other things
        listed = None
    if listed and listed.stem and not listed.rest.strip():
        texts = {_clean(option, " ").casefold() for option in listed.options}
        if texts == {option.casefold() for option in options}:
            return listed.stem
    places = [(stem.find(option), option) for option in options if len(option) > 1]
    labelled = [
        option for place, option in places if place > 0 and _LABEL_BEFORE.search(stem[max(0, place - 8) : place])
    ]
    if len(labelled) > 1:
        raise RejectedReply("options_in_stem", f"the stem lists the options too: {labelled}")
    return stem


def _strip_italics(text: str) -> str:
    """Return `text` without the marks around organisms. Example: "*E. coli*" -> "E. coli"."""
    return _ORGANISM.sub(r"\2", text) if "*" in text or "_" in text else text


def _check(draft: Draft, found: RawQuestion) -> None:
    stem, options = draft
    count = len(options)
    if found.leak:
        raise RejectedReply("answer_leaked", f"the reply has {found.leak}")
    if _NO_TEXT.fullmatch(stem) or any(map(_NO_TEXT.fullmatch, options)):
        raise RejectedReply("empty", "the stem or an option is empty")
    if "\ufffd" in stem + "".join(options):
        raise RejectedReply("garbled", "letters were lost: the reply is not in UTF-8, or the model broke them")
    if not 2 <= count <= len(LETTERS):
        raise RejectedReply("option_count", f"{count} options; a question has 2-{len(LETTERS)}")
    if len({option.casefold().rstrip(".") for option in options}) < count:
        raise RejectedReply("duplicate_options", f"options are not distinct: {list(options)}")
    if leak := find_leak(stem, options, found.rest):
        raise RejectedReply("answer_leaked", leak)
    if max(map(len, options)) > OPTION_CHARS:
        raise RejectedReply("option_too_long", f"an option has more than {OPTION_CHARS} characters")


def _clean(text: str, line_break: str) -> str:
    """Return text that can be written as UTF-8 and shows all its characters, with single spaces, no empty lines."""
    text = remove_invisible(text.encode("utf-8", "replace").decode("utf-8"))
    lines = (" ".join(line.split()) for line in text.splitlines())
    return line_break.join(filter(None, lines))
