"""Which component stalls a stage, by the last heartbeats; and a rank that is missing in the weight sync."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest

from medssr_dist.training.rollout.rollout_engine import RolloutEngine
from medssr_dist.training.rollout.token_versions import SampleVersions
from medssr_dist.training.stall_watch import LastBeat, find_stalled

LIMIT_S = 100.0


def make_beat(component: str, doing: str = "work", beats: int = 5, age_s: float = 200.0) -> LastBeat:
    return LastBeat(component, doing, beats, age_s, node="n", pid=1)


def find_names(*beats: LastBeat) -> list[str]:
    return [found.component for found in find_stalled(list(beats), LIMIT_S)]


def test_a_stage_with_progress_is_not_stalled():
    assert find_names() == []
    assert find_names(make_beat("rollout engine 0"), make_beat("training rank 0", age_s=1)) == []


def test_a_component_that_waits_for_work_is_ignored():
    """Either the stage waits for labels, or one engine for the next batch."""
    assert find_names(make_beat("rollout engine 0", doing=""), make_beat("training rank 0", doing="")) == []
    assert find_names(make_beat("rollout engine 0", doing="", age_s=1), make_beat("rollout engine 1")) == [
        "rollout engine 1"
    ]


def test_the_slowest_of_waiting_ranks_is_named():
    ranks = [
        make_beat("training rank 0", beats=9),
        make_beat("training rank 1", beats=8),
        make_beat("training rank 2", beats=9),
    ]
    assert find_names(*ranks, make_beat("controller", "step 3", beats=2)) == ["training rank 1"]


def test_the_controller_is_named_if_only_it_is_busy():
    assert find_names(make_beat("controller", "step 3"), make_beat("training rank 0", doing="")) == ["controller"]


def test_an_engine_is_busy_before_its_first_token():
    """Otherwise an engine that hangs with its first request would count as idle."""
    beats = []

    class Hanging(RolloutEngine):
        def __init__(self):
            self._open, self._syncing, self._is_interrupted = {}, False, False
            self._heartbeat = SimpleNamespace(beat=beats.append)
            self.llm = SimpleNamespace(generate=self.hang)

        async def hang(self, *request):
            await asyncio.Event().wait()
            yield

    async def ask():
        await asyncio.wait_for(Hanging()._generate([1, 2], SimpleNamespace(n=1), SampleVersions(1, 0)), timeout=0.1)

    with pytest.raises(TimeoutError):
        asyncio.run(ask())
    assert beats == ["1 prompts", ""]


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
    from medssr_dist.training.engine_failures import SyncError
    from medssr_dist.training.weights.sync import SyncSettings, WeightSync
    sync = WeightSync(torch.nn.Linear(2, 2), SyncSettings(bucket_bytes=100, timeout_s=5.0, workers=1))
    try:
        sync.send(1)
    except SyncError as error:
        print(error, flush=True)
"""


def test_a_rank_missing_in_the_weight_sync_is_named():
    pytest.importorskip("vllm")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    ranks = [subprocess.Popen([sys.executable, "-c", _RANK, str(rank), port], **pipes) for rank in range(2)]
    output, errors = ranks[0].communicate(timeout=600)
    ranks[1].communicate(timeout=600)  # closes its stdin, so that it ends
    assert "training ranks are missing" in output, errors[-3000:]
    assert "1" in output.split("missing:")[1]
