"""Which replies become questions: `Screen` runs the checks in order; each check has its own small module."""

from medssr_dist.synthesis.checks.screen import Screen

__all__ = ["Screen"]
