"""The offline teacher: an OpenAI-compatible endpoint on loopback that writes questions by rule.

It is a stand-in for a paid API in the demo and the tests. It is not a language model and says so.
"""

from medssr_dist.offline_teacher.server import open_endpoints, start_teacher

__all__ = ["open_endpoints", "start_teacher"]
