"""Thoughts of reasoning models: cut off a reply, so that only what the model says to the user is read.

Three kinds of marks are known: tags (`<think>`, `[THINK]`, `<|begin_of_thought|>` and their like), channels of the
harmony format (`<|channel|>analysis<|message|>`), and the plain words that are left of such marks where decoding has
removed special tokens, or that a model writes as headings.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_THINK = "think"
# The words of tags that hold thoughts. Those of the first line are one kind: models mix them up.
_WORDS = r"(?P<think>think(?:ing)?|thoughts?)|reasoning|reason|reflection|scratchpad|analysis|rationale|cot"
# All begin with one of three characters, so that the search for marks is fast.
_MARK = re.compile(
    rf"""
    [<\[◁](?i:
        (?<=<)\s?(?P<end>/?)\s?(?:[a-z]{{1,12}}[:_])?(?P<tag>{_WORDS})(?:[\s_][^<>]{{0,40}})?>  # <think>, </seed:think>
        | (?<=\[)(?P<bracket_end>/?)think\]                                                    # [THINK] of Mistral
        | (?<=◁)(?P<kimi_end>/?)think▷                                                         # of Kimi
        | (?<=<)\|(?:begin_of_thought|START_THINKING)\|> | (?P<pipe_end>\|(?:end_of_thought|END_THINKING)\|>)
        | (?<=<)unused94>(?:thought)? | (?P<unused_end>unused95>)                              # of MedGemma
        | (?<=<)\|im_start\|>think | (?P<section_end>\|im_start\|>answer)                     # of s1 and m1
        | (?<=<)\|channel>thought | (?P<gemma_end>channel\|>)                                 # of Gemma 4
        | (?<=<)\|channel\|>(?P<channel>[a-z]{{1,20}})[^<]{{0,80}}(?:<\|constrain\|>[a-z]{{1,20}})?<\|message\|>
        | (?<=<)(?P<message_end>\|(?:end|return|call)\|>(?:<\|start\|>[a-z]{{0,20}})?)         # of harmony
    )""",
    re.VERBOSE,
)
_END_GROUPS = ("end", "bracket_end", "kimi_end", "pipe_end", "unused_end", "section_end", "gemma_end", "message_end")
# How thoughts in plain words begin (at the start of the reply only), and what follows them.
_PLAIN_FORMS = (
    (re.compile(r"\s*(?:assistant)?(?:analysis|commentary)(?=[A-Z\"'(*\d])"), re.compile(r"assistantfinal")),
    (re.compile(r"\s*#+ ?Thinking:?[ \t]*\n"), re.compile(r"^#+ ?Final (?:Response|Answer):?", re.MULTILINE)),
    (re.compile(r"\s*think\n"), re.compile(r"^answer\n", re.MULTILINE)),
)
# What closes thoughts in plain words, in the same order, and those that other marks than tags have opened.
_PLAIN_CLOSINGS = ("assistantfinal", "\n## Final Answer:\n", "\nanswer\n")
_CLOSINGS = (
    ("[think]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|start_thinking|>", "<|END_THINKING|>"),
    ("<unused94>", "<unused95>"),
    ("<|im_start|>think", "\n<|im_start|>answer\n"),
    ("<|channel>thought", "<channel|>"),
    ("<|channel|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
)
_PLAIN_FINAL = re.compile(r"\s*(?:assistant)?final(?=[A-Z\"'(*\d])")


_LONGEST_MARK = 100  # characters, with the space behind it


@dataclass(frozen=True)
class CutReply:
    """A reply without its thoughts.

    Example: CutReply("The answer is B.", is_open=False)

    Attributes:
        text: what was said outside thoughts, without surrounding whitespace.
        is_open: whether the reply ends inside thoughts, as a token limit leaves it. `text` then holds what was said
            before they began, which is no final word.
    """

    text: str
    is_open: bool


def cut_thoughts(reply: str) -> CutReply:
    """Cut the thoughts of a reasoning model off its reply.

    A closing mark without an opening one means that the prompt has opened the thoughts: all before it is cut.

    >>> cut_thoughts("<think>Perhaps A?</think>The answer is B.")
    CutReply(text='The answer is B.', is_open=False)
    >>> cut_thoughts("<think>Perhaps A?")
    CutReply(text='', is_open=True)
    """
    text = _cut_plain(reply)
    if text is None:
        return CutReply("", is_open=True)
    kept: list[str] = []
    opened, start = None, 0  # opened: the kind of the thoughts that are open
    for mark in _MARK.finditer(text):
        kind, is_end = _read_mark(mark)
        if opened is None:
            kept.append(text[start : mark.start()])
            if not is_end:
                opened = kind
            elif not mark["message_end"]:
                kept.clear()
            start = mark.end()
        elif is_end and kind == opened:
            opened, start = None, mark.end()
    if opened is None:
        kept.append(text[start:])
    return CutReply("".join(kept).strip(), opened is not None)


def find_opening(prompt: str) -> str:
    """Return the mark with which a prompt opens the thoughts of the reply, with the space behind it; "" if none does.

    >>> find_opening("<|im_start|>assistant\\n<think>\\n")
    '<think>\\n'
    """
    end = prompt[-_LONGEST_MARK:]
    marks = list(_MARK.finditer(end))
    if not marks or _read_mark(marks[-1])[1] or end[marks[-1].end() :].strip():
        return ""
    return end[marks[-1].start() :]


def find_closing_mark(reply: str) -> str:
    """Return the mark that closes the thoughts in which a reply ends; "" if it does not end in thoughts.

    >>> find_closing_mark("<seed:think>Perhaps A?")
    '</seed:think>'
    """
    if not cut_thoughts(reply).is_open:
        return ""
    for (opening, _), closing in zip(_PLAIN_FORMS, _PLAIN_CLOSINGS, strict=True):
        if opening.match(reply):
            return closing
    opened = [mark for mark in _MARK.finditer(reply) if not _read_mark(mark)[1]]
    text = opened[-1].group()
    if name := opened[-1]["tag"]:
        before = text[1 : text.lower().index(name.lower())].strip()  # of seed:think, what stands before think
        return f"</{before}{name}>"
    return next(closing for opening, closing in _CLOSINGS if text.lower().startswith(opening))


def _read_mark(mark: re.Match[str]) -> tuple[str, bool]:
    """Return the kind of thoughts that a mark belongs to, and whether it ends them."""
    if channel := mark["channel"]:
        return "channel", channel.lower() == "final"
    is_end = any(mark[group] for group in _END_GROUPS)
    if mark["message_end"]:
        return "channel", is_end
    tag = (mark["tag"] or _THINK).lower()
    return (_THINK if mark["think"] else tag), is_end


def _cut_plain(reply: str) -> str | None:
    """Cut thoughts that plain words surround at the start of a reply; None where they are open."""
    for opening, following in _PLAIN_FORMS:
        if begin := opening.match(reply):
            ends = [match.end() for match in following.finditer(reply, begin.end())]
            return reply[ends[-1] :] if ends else None
    begin = _PLAIN_FINAL.match(reply)
    return reply[begin.end() :] if begin else reply
