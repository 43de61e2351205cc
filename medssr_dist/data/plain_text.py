"""Replies as plain text: one form of every sign, no markup, single spaces, so that patterns on them stay simple."""

from __future__ import annotations

import re

_SIGNS: dict[int, int | str | None] = {
    code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)
}  # full-width letters, digits and punctuation
_SIGNS |= {
    ord(sign): plain for plain, signs in {"'": "‘’‚‛′", '"': "“”„«»「」『』", "-": "‐‑‒–—―−"}.items() for sign in signs
}
_SIGNS |= {ord("。"): ". ", ord("、"): ", ", ord("।"): ".", ord("؟"): "?", ord("【"): "[", ord("】"): "]"}
_SIGNS |= {ord("〔"): "[", ord("〕"): "]", ord("〈"): "<", ord("〉"): ">", ord("İ"): "I", ord("→"): ":", ord("⇒"): ":"}
_SIGNS |= dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff\u00ad✅✓✔☑👉🎯\ufe0f"))
_LATEX_GROUP = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|math(?:bf|it|rm|sf|tt|bb|cal)|operatorname|bf|rm|underline)\s?\{([^{}]*)\}"
)
_LATEX_SIGN = re.compile(r"\\[()\[\],;:! ]|\\q?quad\b|~")
_HTML = re.compile(r"</?(?:b|i|u|em|strong|p|div|span|center|mark|br)(?: [^<>]{0,60})?/?>", re.IGNORECASE)
_UNDERSCORES = re.compile(r"(?<![^\W_])_+|_+(?![^\W_])")


def make_plain(text: str) -> str:
    """Return `text` with plain signs, without Markdown, HTML and LaTeX markup, each line stripped, no empty lines.

    >>> make_plain("**Answer：** $\\\\text{B}$\\n\\n*done*")
    'Answer: B\\ndone'
    """
    if not text.isascii():
        text = text.translate(_SIGNS)
    for sign in "*`$":
        text = text.replace(sign, "")
    if "\\" in text:
        text = _LATEX_GROUP.sub(r"\1", _LATEX_GROUP.sub(r"\1", text))
        text = _LATEX_SIGN.sub(" ", text)
    if "<" in text:
        text = _HTML.sub(" ", text)
    if "_" in text:
        text = _UNDERSCORES.sub("", text)
    lines = (" ".join(line.split()).lstrip("> ") for line in text.splitlines())
    return "\n".join(line for line in lines if line)


def lower(text: str) -> str:
    """Return `text` in lower case, with each character at its place."""
    lowered = text.lower()
    if len(lowered) != len(text):  # a few signs, for instance "ŉ", grow
        lowered = "".join(sign.lower() if len(sign.lower()) == 1 else sign for sign in text)
    return lowered
