"""Which replies become questions: `Screen` runs the checks in order; each check has its own small module."""

from medssr_dist.synthesis.checks.screen import Screen, TeacherReply

__all__ = ["Screen", "TeacherReply"]
