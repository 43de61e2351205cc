"""One of two gloo ranks that gather many ZeRO-3 weights at once; run as a process by test_gather.py.

    python gather_ranks.py RANK PORT

Prints how many weights were incomplete after DeepSpeed's gather, and how many after `gather`.
"""

from __future__ import annotations

import os
import sys

import torch

from medssr_dist.training.backend import cpu_patches
from medssr_dist.training.weights.sync import gather

ROUNDS = 40
SIZES = (1500, 4, 3)  # small weights come last and arrive first; the last one is padded


def main() -> None:
    rank, port = sys.argv[1:]
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    torch.set_num_threads(1)
    cpu_patches.apply()
    import deepspeed

    deepspeed.init_distributed("gloo")
    zero = {"stage": 3, "stage3_param_persistence_threshold": 0}
    with deepspeed.zero.Init(config_dict_or_path={"zero_optimization": zero, "train_batch_size": 2}):
        model = torch.nn.ModuleList(torch.nn.Linear(size, size, bias=False) for size in SIZES)
    weights, wrong = list(model.parameters()), 0
    for turn in range(ROUNDS):
        for number, weight in enumerate(weights):
            weight.ds_tensor.fill_(turn + number)
        with deepspeed.zero.GatheredParameters(weights):
            wrong += sum(not bool((w == turn + number).all()) for number, w in enumerate(weights))
    print(wrong, count_wrong_in_one_gather(weights, int(rank)))


def count_wrong_in_one_gather(weights: list[torch.nn.Parameter], rank: int) -> int:
    """Gather weights whose elements count 0, 1, 2, ... over both shards; rank 1 must get none."""
    for weight in weights:
        size = weight.ds_tensor.numel()
        weight.ds_tensor.copy_(torch.arange(rank * size, (rank + 1) * size) % 251)
    whole = gather(weights)
    if rank:
        return len(whole)
    counting = [torch.arange(size * size).view(size, size) % 251 for size in SIZES]
    return sum(not torch.equal(found.long(), count) for found, count in zip(whole, counting, strict=True))


if __name__ == "__main__":
    main()
