"""What the cards of data sets and models have in common: a README.md that opens with a YAML header."""

from __future__ import annotations

import yaml

CARD = "README.md"


def header_text(header: dict) -> str:
    """`header` as the YAML block that opens a card."""
    return f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---\n"
