"""Cards of data sets and models on the Hugging Face Hub: a README.md that starts with a YAML header."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

CARD = "README.md"


def render_header(header: Mapping[str, Any]) -> str:
    """Return the YAML block at the start of a card."""
    return f"---\n{yaml.safe_dump(dict(header), sort_keys=False, allow_unicode=True)}---\n"
