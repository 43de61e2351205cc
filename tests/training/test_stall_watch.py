"""Who holds a stage up, by what each component last told; and a rank that does not come to the weight sync."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from medssr_dist.training.stall_watch import LastBeat, find_stalled

LIMIT_S = 100.0


def mark(component: str, doing: str = "work", beats: int = 5, age_s: float = 200.0) -> LastBeat:
    return LastBeat(component, doing, beats, age_s, node="n", pid=1)


def names(*marks: LastBeat) -> list[str]:
    return [found.component for found in find_stalled(list(marks), LIMIT_S)]


def test_nothing_is_held_up_while_one_that_works_moves():
    assert names() == []
    assert names(mark("rollout engine 0"), mark("training rank 0", age_s=1)) == []


def test_one_that_waits_for_work_neither_moves_nor_stands_still():
    """The stage waits for labels, or one engine for the next batch."""
    assert names(mark("rollout engine 0", doing=""), mark("training rank 0", doing="")) == []
    assert names(mark("rollout engine 0", doing="", age_s=1), mark("rollout engine 1")) == ["rollout engine 1"]


def test_of_ranks_that_wait_for_each_other_the_one_behind_is_named():
    ranks = [mark("training rank 0", beats=9), mark("training rank 1", beats=8), mark("training rank 2", beats=9)]
    assert names(*ranks, mark("controller", "step 3", beats=2)) == ["training rank 1"]


def test_the_controller_is_named_where_it_alone_is_busy():
    assert names(mark("controller", "step 3"), mark("training rank 0", doing="")) == ["controller"]


_RANK = """
import os, sys
os.environ["MEDSSR_DEVICE"] = "cpu"
import torch
rank, port = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
if rank == 1:
    torch.distributed.new_group(backend="gloo")
    sys.stdin.read()
else:
    from medssr_dist.training.weights.sync import SyncError, SyncSettings, WeightSync
    sync = WeightSync(torch.nn.Linear(2, 2), SyncSettings(bucket_bytes=100, timeout_s=5.0, workers=1))
    try:
        sync.send(1)
    except SyncError as error:
        print(error, flush=True)
"""


def test_a_rank_that_does_not_come_to_the_weight_sync_is_named():
    pytest.importorskip("vllm")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    ranks = [subprocess.Popen([sys.executable, "-c", _RANK, str(rank), port], **pipes) for rank in range(2)]
    output, errors = ranks[0].communicate(timeout=600)
    ranks[1].communicate(timeout=600)  # closes what it waits for
    assert "training ranks are missing" in output, errors[-3000:]
    assert "1" in output.split("missing:")[1]
