"""One of two gloo ranks that gather many ZeRO-3 weights at once; run as a process by test_training_gather.py.

    python gather_ranks.py RANK PORT

Prints how many weights were not whole when DeepSpeed gave them out.
"""

from __future__ import annotations

import os
import sys

import torch

from medssr_dist.training import platform

ROUNDS = 40
SIZES = (1500, 4)  # the small one comes last and is there first


def main() -> None:
    rank, port = sys.argv[1:]
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    torch.set_num_threads(1)
    platform.apply()
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
    print(wrong)


if __name__ == "__main__":
    main()
