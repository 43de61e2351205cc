"""The price of a model: from the config, else from the dated table that comes with the package, else unknown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from medssr_dist.config.synthesis import Price, Synthesis

_TABLE = Path(__file__).with_name("prices.yaml")


@dataclass(frozen=True)
class KnownPrice:
    """A price and where it comes from. Example: KnownPrice(Price(prompt=2, completion=8), "table, 2026-05-07")."""

    price: Price
    origin: str

    def cost(self, prompt_tokens: float, completion_tokens: float) -> float:
        """Return the US dollars for these tokens."""
        return (prompt_tokens * self.price.prompt + completion_tokens * self.price.completion) / 1e6


def find_price(synthesis: Synthesis, model: str) -> KnownPrice | None:
    """Return the price of a model, or None if it is unknown. A provider before the name (`openai/`) is left out."""
    if model in synthesis.prices:
        return KnownPrice(synthesis.prices[model], "synthesis.prices")
    return _read_table().get(model.rpartition("/")[2])


def describe_cost(synthesis: Synthesis, models: Sequence[str], prompt_tokens: float, reply_tokens: float) -> str:
    """Return the cost of a number of tokens at the highest price of these models, with the origin of the price.

    Example: '$12.30 (gpt-4.1: table, 2026-05-07)', or 'unknown: no price of my-model; set synthesis.prices'
    """
    found = {model: find_price(synthesis, model) for model in models}
    if unknown := [model for model, price in found.items() if price is None]:
        return f"unknown: no price of {', '.join(unknown)}; set synthesis.prices"
    known = {model: price for model, price in found.items() if price}
    if not known:
        return "unknown: no model"
    model, price = max(known.items(), key=lambda item: item[1].cost(prompt_tokens, reply_tokens))
    return f"${price.cost(prompt_tokens, reply_tokens):,.2f} ({model}: {price.origin})"


@cache
def _read_table() -> dict[str, KnownPrice]:
    rows = yaml.safe_load(_TABLE.read_text(encoding="utf-8"))["models"]
    return {
        model: KnownPrice(Price(prompt=row["prompt"], completion=row["completion"]), f"table, {row['seen']}")
        for model, row in rows.items()
    }
