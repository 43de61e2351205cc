"""One rank of linear_logprob with the vocabulary split over two processes; test_tensor_parallel.py starts it."""

from __future__ import annotations

import torch
import torch.distributed as dist
from kernel_cases import Case, inputs, outputs_of

from medssr_dist.kernels import GrpoOptions, linear_grpo_loss, linear_logprob

CASE = Case(9, 12, 1000, temperature=0.6, masked=True)
SIZE = 971  # of the vocabulary without padding
VOCABULARIES = (1000, 2000)  # with padding: the second shard has some, or nothing else
RANKS = 2


def whole(vocabulary: int):
    given = inputs(CASE, torch.float32)
    padding = torch.full((vocabulary - SIZE, CASE.hidden), torch.nan)
    return given._replace(weight=torch.cat([given.weight[:SIZE], padding]), target=given.target % SIZE)


def losses(given, weight, **settings):
    """Return [logp, entropy, d hidden, d weight, loss, d hidden, d weight]."""
    settings |= {"temperature": CASE.temperature, "mask": given.mask, "vocab_size": SIZE}
    results = outputs_of(
        lambda hidden, weight: linear_logprob(
            hidden, weight, given.target, return_entropy=True, workspace_bytes=1, **settings
        ),
        given._replace(weight=weight),
        True,
        torch.float32,
    )
    hidden, weight = given.hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    loss, _ = linear_grpo_loss(
        hidden, weight, given.target, given.slopes[0], options=GrpoOptions(entropy_coef=0.1), **settings
    )
    loss.backward()
    return [*results, loss.detach(), hidden.grad, weight.grad]


def shard_run(rank: int, folder: str) -> None:
    """Compute the results of process `rank` for each vocabulary and save them in a file of that rank."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS)
    results = {}
    for vocabulary in VOCABULARIES:
        given = whole(vocabulary)
        height = vocabulary // RANKS
        start = rank * height
        shard = given.weight[start : start + height].clone()
        results[vocabulary] = losses(given, shard, tp_group=dist.group.WORLD, vocab_start=start)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()
