"""How often a stage writes a checkpoint where the config does not say so."""

from __future__ import annotations

import math

_BYTES_PER_STEP, _FEWEST_STEPS, _MOST_STEPS = 4e9, 10, 50


def choose_save_steps(checkpoint_bytes: float) -> int:
    """Return after how many steps a checkpoint of this size is written where `save_steps` is 0.

    At 4 GB for each step, writing takes a few seconds of a step on a parallel file system, and what a power cut loses
    stays below an hour of an 8B model on one node.

    Example: choose_save_steps(98e9) == 25
    """
    return min(_MOST_STEPS, max(_FEWEST_STEPS, math.ceil(checkpoint_bytes / _BYTES_PER_STEP)))
