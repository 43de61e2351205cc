"""How rollout engines fail: in a weight sync, by the death of their process, or again and again."""

from __future__ import annotations

import ray


class SyncError(Exception):
    """The weights did not reach every engine; the message names the missing ranks or engines."""


class EngineDiedError(SyncError):
    """An engine died during a sync; the message names it."""


class EngineLostError(Exception):
    """An engine died several times without finishing a prompt in between; the message names it."""


def is_engine_death(error: Exception) -> bool:
    """Return whether the error means that an engine's actor, or vLLM's process behind it, has died or was killed."""
    from vllm.v1.engine.exceptions import EngineDeadError

    died = (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError, EngineDeadError, EngineDiedError)
    return isinstance(error, died) or isinstance(getattr(error, "cause", None), died)
