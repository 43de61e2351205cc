"""Keys of earlier versions: in a config they are refused with what to do, in a recorded config translated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

_OWN = "training always uses this project's own implementation (`medssr bench training` compares it with OpenRLHF's)"
_LAG = "training.max_policy_lag=1 samples the next step during training, as async_rollout=true did"
_WHOLE = "rollouts are drawn from the whole distribution, because its log-probs are what is trained"


class RemovedKey(NamedTuple):
    """A key of earlier versions: the value that training now always has, and why."""

    value: str | float | bool
    reason: str

    def explain(self, key: str) -> str:
        """Return the message for a config that has the key."""
        return f"{key} was removed: {self.reason}; remove the key or the override"


REMOVED_KEYS = {
    "training.async_rollout": RemovedKey(False, _LAG),
    "training.rollout": RemovedKey("grouped", _OWN),
    "training.weight_sync": RemovedKey("packed", _OWN),
    "training.logprob": RemovedKey("kernels", _OWN),
    "training.stage1.top_p": RemovedKey(1.0, _WHOLE),
    "training.stage2.top_p": RemovedKey(1.0, _WHOLE),
}


def drop_removed_keys(settings: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Return the settings of an earlier version without the removed keys; other values of them stay.

    Args:
        settings: a config as a tree, or by dotted key.
        above: key of the section that `settings` is, with a dot behind it; "" for a whole config.

    Example: drop_removed_keys({"training.nodes": 1, "training.logprob": "kernels"}) == {"training.nodes": 1}
    """
    kept: dict[str, Any] = {}
    for name, value in _update_lag(settings, above).items():
        removed = REMOVED_KEYS.get(above + name)
        if removed is None or removed.value != value:
            kept[name] = drop_removed_keys(value, f"{above}{name}.") if isinstance(value, dict) else value
    return kept


def _update_lag(settings: Mapping[str, Any], above: str) -> Mapping[str, Any]:
    """Return settings with `async_rollout` as those of today.

    Without it the engines never sampled ahead. `max_policy_lag` then counted for surplus groups and votes alone.
    """
    names = [name for name in settings if above + name == "training.async_rollout"]
    if not names:
        return settings
    prefix = names[0].removesuffix("async_rollout")
    votes = settings.get(f"{prefix}stage1.first_rollouts") or settings.get("stage1", {}).get("first_rollouts")
    if settings[names[0]] and not settings.get(f"{prefix}over_draw"):
        return {**settings, names[0]: False, f"{prefix}max_policy_lag": 1}
    if settings.get(f"{prefix}over_draw") or votes == "votes":
        return {**settings, names[0]: False}
    return {**settings, f"{prefix}max_policy_lag": 0}
