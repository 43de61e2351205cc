"""Rollouts kept for reading: samples.jsonl in the stage's folder, a few of every step."""

from __future__ import annotations

import json
from pathlib import Path

from medssr_dist.jsonl import JsonlLedger


class SampleBook:
    """Appends rollouts of a step to `file`, evenly spread over its prompts.

    Args:
        count: rollouts of a step that are kept; 0 = none.
    """

    def __init__(self, file: Path, tokenizer, count: int):
        self._file, self._tokenizer, self._count = file, tokenizer, count

    def keep(self, rollouts: list, step: int) -> None:
        """Write down some of the Experiences of `step`, each of one sequence [1, T] and its mask [1, T - 1]."""
        kept = rollouts[:: max(1, len(rollouts) // self._count)][: self._count] if self._count else []
        if kept:
            with JsonlLedger(self._file) as ledger:
                ledger.append(*(self._row(rollout, step) for rollout in kept))

    def _row(self, rollout, step: int) -> dict:
        label = json.loads(rollout.labels[0])
        actions = rollout.sequences[0, 1:][rollout.action_mask[0].bool()]
        row = {
            "step": step,
            "question_id": label["id"],
            "prompt": rollout.prompts[0],
            "response": self._tokenizer.decode(actions, skip_special_tokens=True),
            "label": label["answer"],
            "reward": float(rollout.rewards[0]),
            "truncated": bool(rollout.truncated[0]),
        }
        if "policy_lag" in rollout.info:  # OpenRLHF's own generator does not know it
            row["policy_lag"] = int(rollout.info["policy_lag"][0])
        return row
