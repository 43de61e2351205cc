"""linear_logprob with the vocabulary split over two processes gives the results of one process."""

from __future__ import annotations

import torch
from kernel_shards import RANKS, VOCABULARIES, losses, shard_run, whole


def test_two_processes_give_what_one_does(tmp_path):
    torch.multiprocessing.spawn(shard_run, (str(tmp_path),), nprocs=RANKS)
    shards = [torch.load(tmp_path / f"{rank}.pt") for rank in range(RANKS)]
    for vocabulary in VOCABULARIES:
        given = whole(vocabulary)
        for place, truth in enumerate(losses(given, given.weight)):
            parts = [shard[vocabulary][place] for shard in shards]
            if place in (3, 6):  # gradients of the weight: a shard's own rows
                parts = [torch.cat(parts)]
            for part in parts:
                torch.testing.assert_close(part, truth, rtol=1e-4, atol=1e-6)
