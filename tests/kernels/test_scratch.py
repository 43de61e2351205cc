"""No result depends on what memory held before: NaN in every unwritten buffer gives, bit by bit, what zeros give.

oneDNN's bf16 GEMM reads between the rows of an operand on CPUs with AMX alone, so on others the results show nothing:
what lies between the rows is looked at too.
"""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
import torch.distributed as dist
from kernel_cases import BACKENDS, DTYPES, FULL, OPTIONS, Case, extras, grpo_grid, inputs, rollout
from scratch_memory import Scratch, between_rows

from medssr_dist.kernels import group_advantage, grpo_loss, linear_grpo_loss, linear_logprob

# Of the slices of 256 that 1,000 columns make, the last has 232. Triton's interpreter takes its time for each row.
SHAPES = {
    "torch": [
        Case(*shape, vocabulary, 0.6, masked=masked)
        for shape, masked in (((33, 64), False), ((32, 63), True))
        for vocabulary in (101, 255, 256, 257, 1000, 1024)
    ],
    "triton": [Case(3, 64, 256, 0.6), Case(4, 63, 257, 0.6, masked=True), Case(3, 64, 1000, 0.6)],
}
CASES = [(backend, case) for backend in BACKENDS for case in SHAPES[backend]]
RUNS = [("torch", Case(260, 16, 257, 0.6)), ("triton", Case(130, 16, 101, 0.6))]  # a run is 128 rows or more


def logprob(case, dtype, backend, **settings):
    """[logp, entropy, d hidden, d weight]."""
    given = inputs(case, dtype)
    hidden, weight = given.hidden.requires_grad_(), given.weight.requires_grad_()
    results = linear_logprob(
        hidden,
        weight,
        given.target,
        mask=given.mask,
        temperature=case.temperature,
        return_entropy=True,
        backend=backend,
        **settings,
    )
    torch.autograd.backward(results, list(given.slopes))
    return [*results, hidden.grad, weight.grad]


def logprob_of_a_shard(case, dtype, backend):
    return logprob(case, dtype, backend, tp_group=dist.group.WORLD, workspace_bytes=1)


def step(case, dtype, backend, options=FULL, **settings):
    """[loss, d hidden, d weight]."""
    given = inputs(case, dtype)
    hidden, weight = given.hidden.requires_grad_(), given.weight.requires_grad_()
    data = rollout(torch.full((1, case.tokens), -2.0))
    loss, _ = linear_grpo_loss(
        hidden[None],
        weight,
        given.target[None],
        data.advantages,
        mask=data.mask,
        temperature=case.temperature,
        options=options,
        backend=backend,
        **extras(data),
        **settings,
    )
    loss.backward()
    return [loss, hidden.grad, weight.grad]


PATHS = {
    "logprob": logprob,
    "logprob_in_slices": partial(logprob, workspace_bytes=1),
    "logprob_of_a_shard": logprob_of_a_shard,
    "step": step,
    "step_of_sequences": partial(step, options=OPTIONS["gspo"], workspace_bytes=1),
}


@pytest.fixture(scope="module", autouse=True)
def group_of_one():
    """What a shard of the vocabulary needs: a process group, of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def filled_with(value, path, *arguments):
    """(results, what was seen) of `path` with unwritten memory holding `value`."""
    with Scratch(value) as scratch:
        return [part.detach() for part in path(*arguments)], scratch


def same_bits(path, *arguments) -> Scratch:
    """Compare; returns what was seen with NaN."""
    zeros, _ = filled_with(0.0, path, *arguments)
    found, scratch = filled_with(math.nan, path, *arguments)
    assert all(torch.equal(one, other) for one, other in zip(found, zeros, strict=True))
    return scratch


def check(path, case: Case, dtype, backend):
    scratch = same_bits(path, case, dtype, backend)
    assert scratch.gemms >= 3
    assert scratch.unsafe == 0, f"{scratch.unsafe} of {scratch.padded} operands"
    assert (scratch.padded > 0) == (case.vocabulary % 64 > 0)  # else the case shows nothing


def named(value) -> str:
    return f"{value.tokens}x{value.hidden}x{value.vocabulary}" if isinstance(value, Case) else value


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("backend", "case"), CASES, ids=named)
@pytest.mark.parametrize("path", PATHS)
def test_nan_in_unwritten_memory_reaches_no_result(path, backend, case, dtype):
    check(PATHS[path], case, dtype, backend)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("backend", "case"), RUNS, ids=named)
def test_nan_in_unwritten_memory_reaches_no_run_of_rows(backend, case, dtype):
    check(partial(step, workspace_bytes=1), case, dtype, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", OPTIONS)
def test_nan_in_unwritten_memory_reaches_no_loss(options, backend):
    def path():
        logp, entropy, data = grpo_grid()
        logp.requires_grad_()
        settings = {"options": OPTIONS[options], "backend": backend, **extras(data)}
        loss, metrics = grpo_loss(logp, data.advantages, mask=data.mask, entropy=entropy, **settings)
        return [loss, *metrics, *torch.autograd.grad(loss, logp)]

    same_bits(path)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", ["group_norm", "mean_only", "rloo"])
def test_nan_in_unwritten_memory_reaches_no_advantage(mode, backend):
    rewards, offsets = torch.rand(70), torch.tensor([0, 1, 4, 70])
    same_bits(lambda: group_advantage(rewards, offsets, mode=mode, backend=backend))


def test_what_lies_between_rows_is_found():
    memory = torch.arange(24.0)
    rows = memory.view(4, 6)[:, :4]
    assert between_rows(rows).tolist() == [[4, 5], [10, 11], [16, 17], [22, 23]]
    assert torch.equal(between_rows(rows.t()), between_rows(rows))
    assert between_rows(memory.view(4, 6)[:, 2:5]).tolist() == [[5, 6, 7], [11, 12, 13], [17, 18, 19]]
    assert between_rows(memory.view(4, 6)).numel() == between_rows(memory.view(4, 6).t()).numel() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_unwritten_memory_is_filled(dtype):
    like = torch.zeros(3, dtype=dtype)
    worst = {torch.int64: torch.iinfo(torch.int64).max, torch.bool: True}.get(dtype, math.nan)
    expected = torch.full((3,), worst, dtype=dtype)
    with Scratch(math.nan):
        made = [
            torch.empty(3, dtype=dtype),
            torch.empty_like(like),
            like.new_empty(3),
            like.new_empty_strided((3,), (1,)),
            torch.empty_strided((3,), (1,), dtype=dtype),
        ]
    assert all(torch.equal(each.nan_to_num(7), expected.nan_to_num(7)) for each in made)
