"""The offline teacher: an OpenAI-compatible endpoint on loopback that composes questions by rules.

It replaces a paid API in the demo and the tests. It is not a language model, and its answers state that.
"""

from medssr_dist.offline_teacher.server import open_endpoints, start_teacher

__all__ = ["open_endpoints", "start_teacher"]
