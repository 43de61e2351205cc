"""Which replies become questions: `Screen` runs the checks in order, each of them a small module of its own."""

from medssr_dist.synthesis.checks.screen import Screen

__all__ = ["Screen"]
