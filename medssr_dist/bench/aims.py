"""Aims of a benchmark: what is measured, the value to reach, and the table that compares the two."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

Figures = TypeVar("Figures")
Value = float | bool | None


@dataclass(frozen=True)
class Aim(Generic[Figures]):
    """One aim of a benchmark.

    >>> aim = Aim("coordinator, votes/s", ">= 10,000", lambda figures: (figures.votes_per_s,), at_least(10_000))

    Attributes:
        title, text: what is measured, and the aim in words, as the table shows them.
        read: returns the measured values from the figures; None: not measured.
        is_met: judges these values.
    """

    title: str
    text: str
    read: Callable[[Figures], tuple[Value, ...]]
    is_met: Callable[..., bool]


def at_least(bound: float) -> Callable[[Value], bool]:
    """Return a judge of one value, which must be `bound` or more. A value that was not measured fails."""
    return lambda value: value is not None and value >= bound


def at_most(bound: float) -> Callable[[Value], bool]:
    """Return a judge of one value, which must be `bound` or less. A value that was not measured fails."""
    return lambda value: value is not None and value <= bound


def format_value(value: Value) -> str:
    """Return the value as the table shows it: "-" for None, true or false, fractions with five digits."""
    if value is None or isinstance(value, bool):
        return {None: "-", True: "true", False: "false"}[value]
    return f"{value:,.5g}" if isinstance(value, float) else f"{value:,}"


def format_aims(aims: tuple[Aim[Figures], ...], figures: Figures) -> list[str]:
    """Return the lines of the table: a header, then each aim with its measured values and whether it is met."""
    lines = [f"{'':<44}{'measured':>20}{'aim':>14}"]
    for aim in aims:
        values = aim.read(figures)
        verdict = "met" if aim.is_met(*values) else "NOT MET"
        lines.append(f"{aim.title:<44}{', '.join(map(format_value, values)):>20}{aim.text:>14}  {verdict}")
    return lines
