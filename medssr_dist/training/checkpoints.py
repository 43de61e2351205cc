"""Which of a stage's DeepSpeed checkpoints are whole: a killed run must find one that it can load.

DeepSpeed's rank 0 moves its pointer, the file `latest`, before the other ranks have written their shards, and
a killed first save leaves a folder with no pointer at all. So the trainer notes each save that every rank has
returned from, and a restart first takes away whatever is newer.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from medssr_dist.jsonl import read_json, write_atomic, write_json


def mark_whole(checkpoints: Path, step: int) -> None:
    """Note that every rank has finished its part of the checkpoint of `step`."""
    write_json(checkpoints / "whole.json", {"step": step})


def drop_torn(checkpoints: Path) -> None:
    """Delete checkpoints newer than the last whole one, and point DeepSpeed at that one."""
    note, ranks = checkpoints / "whole.json", checkpoints / "_actor"
    if not note.exists():
        shutil.rmtree(ranks, ignore_errors=True)
        return
    step = read_json(note)["step"]
    for folder in ranks.glob("global_step*"):
        if int(folder.name.removeprefix("global_step")) > step:
            shutil.rmtree(folder)
    write_atomic(ranks / "latest", f"global_step{step}")
