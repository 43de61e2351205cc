"""The row and token operations of torch_ops.py as Triton kernels, with the same functions and arguments, in fp32.

All are bound by memory bandwidth. row_stats reads each element of the workspace once; row_gradient reads and writes it
once. A block has 4,096 columns and 8 warps: 16 elements a thread, in 16-byte accesses. That needs few enough registers
for several blocks on each multiprocessor, so that the loads of one block overlap the reductions of another. Row offsets
are 64-bit, because N * V exceeds 2^31.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from medssr_dist.kernels.grpo_options import GrpoOptions
from medssr_dist.kernels.matmul import round_up
from medssr_dist.kernels.torch_ops import KL_LIMIT, LOG_RATIO_LIMIT

LARGEST_BLOCK = 4096
TOKEN_BLOCK = 1024
GROUP_BLOCK = 64
_KL = {"k1": 1, "k2": 2, "k3": 3}
_ADVANTAGE = {"group_norm": 0, "mean_only": 1, "rloo": 2}


def _launch(columns: int) -> tuple[int, int]:
    """Return (block, warps) for rows of so many columns."""
    block = min(LARGEST_BLOCK, triton.next_power_of_2(columns))
    return block, max(1, block // 512)


def _padded(logits: torch.Tensor) -> int:
    """Return how many columns of a row are read and written: a multiple of 16, for wide accesses, where there is room.

    The elements after the last column are read, ignored and written back unchanged.
    """
    rows, columns = logits.shape
    padded = round_up(columns, 16)
    end = logits.storage_offset() + (rows - 1) * logits.stride(0) + padded
    room = logits.untyped_storage().nbytes() // logits.element_size()
    return padded if padded <= logits.stride(0) and end <= room else columns


@triton.jit
def _row_stats_kernel(
    logits_ptr,
    row_stride,
    target_ptr,
    stats_ptr,
    rows,
    columns,
    padded,
    scale,
    ENTROPY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * row_stride
    stats_ptr += row
    maximum = tl.load(stats_ptr)
    total = tl.load(stats_ptr + rows)
    dot = tl.load(stats_ptr + 2 * rows)
    target = tl.load(target_ptr + row)
    if (target >= 0) & (target < columns):
        tl.store(stats_ptr + 3 * rows, tl.load(logits_ptr + target).to(tl.float32))
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < columns
        x = tl.load(logits_ptr + column, mask=column < padded, other=0.0).to(tl.float32)
        x = tl.where(inside, x, -float("inf"))
        larger = tl.maximum(maximum, tl.max(x, 0))
        shift = tl.where(total > 0, (maximum - larger) * scale, 0.0)
        decay = tl.exp(shift)
        z = (x - larger) * scale
        powers = tl.exp(z)
        if ENTROPY:
            dot = decay * (dot + total * shift) + tl.sum(powers * tl.where(inside, z, 0.0), 0)
        total = total * decay + tl.sum(powers, 0)
        maximum = larger
    tl.store(stats_ptr, maximum)
    tl.store(stats_ptr + rows, total)
    if ENTROPY:
        tl.store(stats_ptr + 2 * rows, dot)


def row_stats(logits: torch.Tensor, target: torch.Tensor, stats: torch.Tensor, scale: float, entropy: bool) -> None:
    """See torch_ops.row_stats."""
    rows, columns = logits.shape
    block, warps = _launch(columns)
    with torch.cuda.device_of(logits):
        _row_stats_kernel[(rows,)](
            logits,
            logits.stride(0),
            target.contiguous(),
            stats,
            rows,
            columns,
            _padded(logits),
            scale,
            ENTROPY=entropy,
            BLOCK=block,
            num_warps=warps,
        )


@triton.jit
def _row_gradient_kernel(
    logits_ptr,
    row_stride,
    target_ptr,
    maximum_ptr,
    log_sum_ptr,
    entropy_ptr,
    grad_logp_ptr,
    grad_entropy_ptr,
    columns,
    padded,
    scale,
    ENTROPY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    logits_ptr += row * row_stride
    x = tl.load(logits_ptr + column, mask=column < padded, other=0.0).to(tl.float32)
    log_p = (x - tl.load(maximum_ptr + row)) * scale - tl.load(log_sum_ptr + row)
    grad_logp = tl.load(grad_logp_ptr + row)
    slope = grad_logp
    if ENTROPY:
        slope += tl.load(grad_entropy_ptr + row) * (log_p + tl.load(entropy_ptr + row))
    chosen = tl.where(column == tl.load(target_ptr + row), grad_logp, 0.0)
    gradient = tl.where(column < columns, (chosen - tl.exp(log_p) * slope) * scale, x)
    tl.store(logits_ptr + column, gradient.to(logits_ptr.dtype.element_ty), mask=column < padded)


def row_gradient(
    logits: torch.Tensor,
    target: torch.Tensor,
    maximum: torch.Tensor,
    log_sum: torch.Tensor,
    entropy: torch.Tensor,
    grad_logp: torch.Tensor,
    grad_entropy: torch.Tensor | None,
    scale: float,
) -> None:
    """See torch_ops.row_gradient. The blocks are independent; a second grid axis spreads few rows over the device."""
    rows, columns = logits.shape
    block, warps = _launch(columns)
    grad_logp = grad_logp.contiguous()
    grad_entropy = None if grad_entropy is None else grad_entropy.contiguous()
    with torch.cuda.device_of(logits):
        _row_gradient_kernel[(rows, triton.cdiv(columns, block))](
            logits,
            logits.stride(0),
            target.contiguous(),
            maximum,
            log_sum,
            entropy,
            grad_logp,
            grad_entropy,
            columns,
            _padded(logits),
            scale,
            ENTROPY=grad_entropy is not None,
            BLOCK=block,
            num_warps=warps,
        )


@triton.jit
def _scale_kernel(tensor_ptr, factor_ptr, elements, BLOCK: tl.constexpr):
    factor = tl.load(factor_ptr).to(tl.float32)
    if factor != 1.0:
        place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = place < elements
        value = tl.load(tensor_ptr + place, mask=inside).to(tl.float32) * factor
        tl.store(tensor_ptr + place, value.to(tensor_ptr.dtype.element_ty), mask=inside)


def scale_by(tensor: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """See torch_ops.scale_by. The kernel reads the factor, so the host does not wait for it."""
    if tensor.numel():
        block, warps = _launch(tensor.numel())
        with torch.cuda.device_of(tensor):
            _scale_kernel[(triton.cdiv(tensor.numel(), block),)](
                tensor, factor, tensor.numel(), BLOCK=block, num_warps=warps
            )
    return tensor


@triton.jit
def _reference_kl(distance, drift, KL: tl.constexpr, UNBIASED: tl.constexpr, LIMIT: tl.constexpr):
    if KL == 1:
        value = distance
        slope = tl.full(distance.shape, 1.0, tl.float32)
    elif KL == 2:
        value = distance * distance / 2
        slope = distance
    else:
        bounded = tl.maximum(distance, -LIMIT)
        inverse = tl.exp(-bounded)
        value = inverse - 1 + bounded
        slope = tl.where(bounded == distance, 1 - inverse, 0.0)
    held = tl.minimum(tl.maximum(value, -LIMIT), LIMIT)
    if UNBIASED:
        slope = tl.minimum(tl.exp(drift), LIMIT) * distance
    else:
        slope = tl.where(held == value, slope, 0.0)
    return held, slope


@triton.jit
def _grpo_tokens_kernel(
    logp_ptr,
    old_ptr,
    log_ratio_ptr,
    advantages_ptr,
    importance_ptr,
    ref_ptr,
    entropy_ptr,
    mask_ptr,
    policy_weight_ptr,
    penalty_weight_ptr,
    sums_ptr,
    d_policy_ptr,
    d_kl_ptr,
    tokens,
    lowest,
    highest,
    dual_clip,
    SEQUENCE: tl.constexpr,
    IMPORTANCE: tl.constexpr,
    REFERENCE: tl.constexpr,
    ENTROPY: tl.constexpr,
    DUAL: tl.constexpr,
    KL: tl.constexpr,
    UNBIASED: tl.constexpr,
    KL_LIMIT: tl.constexpr,
    RATIO_LIMIT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = token < tokens
    live = tl.load(mask_ptr + token, mask=inside, other=0.0) != 0
    logp = tl.load(logp_ptr + token, mask=live, other=0.0)
    drift = logp - tl.load(old_ptr + token, mask=live, other=0.0)
    policy_weight = tl.load(policy_weight_ptr + token, mask=live, other=0.0)
    penalty_weight = tl.load(penalty_weight_ptr + token, mask=live, other=0.0)
    advantage = tl.load(advantages_ptr + token, mask=live, other=0.0)
    if SEQUENCE:
        log_ratio = tl.load(log_ratio_ptr + token, mask=live, other=0.0)
        moving = live
    else:
        log_ratio = tl.minimum(tl.maximum(drift, -RATIO_LIMIT), RATIO_LIMIT)
        moving = live & (log_ratio == drift)
    ratio = tl.exp(log_ratio)
    plain = ratio * advantage
    bounded = tl.minimum(tl.maximum(ratio, lowest), highest) * advantage
    clipped = bounded < plain
    gain = tl.minimum(plain, bounded)
    slope = tl.where(clipped, 0.0, -plain)
    if DUAL:
        floor = dual_clip * advantage
        floored = (advantage < 0) & (gain < floor)
        gain = tl.where(floored, floor, gain)
        slope = tl.where(floored, 0.0, slope)
    weight = policy_weight
    if IMPORTANCE:
        weight *= tl.load(importance_ptr + token, mask=live, other=0.0)
    tl.store(d_policy_ptr + token, tl.where(moving, weight * slope, 0.0), mask=inside)
    sums_ptr += tl.program_id(0) * 9
    tl.store(sums_ptr, tl.sum(-gain * weight, 0))
    kl_sum = 0.0
    reference_sum = 0.0
    kl_slope = tl.zeros([BLOCK], tl.float32)
    if REFERENCE:
        distance = tl.where(live, logp - tl.load(ref_ptr + token, mask=live, other=0.0), 0.0)
        kl, kl_slope = _reference_kl(distance, drift, KL, UNBIASED, KL_LIMIT)
        kl_sum = tl.sum(penalty_weight * kl, 0)
        reference_sum = tl.sum(distance, 0)
    tl.store(d_kl_ptr + token, penalty_weight * kl_slope, mask=inside)
    entropy_sum = 0.0
    if ENTROPY:
        entropy_sum = tl.sum(penalty_weight * tl.load(entropy_ptr + token, mask=live, other=0.0), 0)
    tl.store(sums_ptr + 1, kl_sum)
    tl.store(sums_ptr + 2, entropy_sum)
    tl.store(sums_ptr + 3, tl.sum(tl.where(live & clipped, 1.0, 0.0), 0))
    tl.store(sums_ptr + 4, tl.sum(tl.where(live, ratio, 0.0), 0))
    tl.store(sums_ptr + 5, -tl.sum(drift, 0))
    tl.store(sums_ptr + 6, reference_sum)
    tl.store(sums_ptr + 7, tl.max(tl.where(live, ratio, -float("inf")), 0))
    tl.store(sums_ptr + 8, tl.max(tl.where(live, -ratio, -float("inf")), 0))


def grpo_tokens(
    logp: torch.Tensor,
    old_logp: torch.Tensor,
    log_ratio: torch.Tensor | None,
    advantages: torch.Tensor,
    importance: torch.Tensor | None,
    ref_logp: torch.Tensor | None,
    entropy: torch.Tensor | None,
    mask: torch.Tensor,
    policy_weight: torch.Tensor,
    penalty_weight: torch.Tensor,
    options: GrpoOptions,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See torch_ops.grpo_tokens."""
    given = (logp, old_logp, log_ratio, advantages, importance, ref_logp, entropy, mask, policy_weight, penalty_weight)
    inputs = [None if each is None else each.contiguous() for each in given]
    programs = max(1, triton.cdiv(logp.numel(), TOKEN_BLOCK))
    partial = logp.new_empty(programs, 9)
    d_policy, d_kl = (torch.empty_like(logp, memory_format=torch.contiguous_format) for _ in range(2))
    with torch.cuda.device_of(logp):
        _grpo_tokens_kernel[(programs,)](
            *inputs,
            partial,
            d_policy,
            d_kl,
            logp.numel(),
            1 - options.clip_low,
            1 + options.clip_high,
            options.dual_clip or 0.0,
            SEQUENCE=log_ratio is not None,
            IMPORTANCE=importance is not None,
            REFERENCE=ref_logp is not None,
            ENTROPY=entropy is not None,
            DUAL=options.dual_clip is not None,
            KL=_KL[options.kl_estimator],
            UNBIASED=options.kl_unbiased,
            KL_LIMIT=KL_LIMIT,
            RATIO_LIMIT=LOG_RATIO_LIMIT,
            BLOCK=TOKEN_BLOCK,
        )
    sums = partial.sum(0)
    sums[7:9] = partial[:, 7:9].amax(0)
    return sums, d_policy, d_kl


@triton.jit
def _group_advantage_kernel(
    rewards_ptr, offsets_ptr, advantage_ptr, std_ptr, flat_ptr, epsilon, MODE: tl.constexpr, BLOCK: tl.constexpr
):
    group = tl.program_id(0)
    start = tl.load(offsets_ptr + group)
    length = (tl.load(offsets_ptr + group + 1) - start).to(tl.int32)
    rewards_ptr += start
    advantage_ptr += start
    total = 0.0
    largest = -float("inf")
    smallest = float("inf")
    for first in range(0, length, BLOCK):
        place = first + tl.arange(0, BLOCK)
        inside = place < length
        reward = tl.load(rewards_ptr + place, mask=inside, other=0.0)
        total += tl.sum(reward, 0)
        largest = tl.maximum(largest, tl.max(tl.where(inside, reward, -float("inf")), 0))
        smallest = tl.minimum(smallest, tl.min(tl.where(inside, reward, float("inf")), 0))
    mean = total / length.to(tl.float32)
    squares = 0.0
    for first in range(0, length, BLOCK):
        place = first + tl.arange(0, BLOCK)
        inside = place < length
        centred = tl.where(inside, tl.load(rewards_ptr + place, mask=inside, other=0.0) - mean, 0.0)
        squares += tl.sum(centred * centred, 0)
    others = tl.maximum(length - 1, 1).to(tl.float32)
    flat = largest == smallest
    std = tl.where(flat, 0.0, tl.sqrt_rn(squares / others))
    factor = 1.0
    if MODE == 0:
        factor = 1.0 / (std + epsilon)
    if MODE == 2:
        factor = length.to(tl.float32) / others
    for first in range(0, length, BLOCK):
        place = first + tl.arange(0, BLOCK)
        inside = place < length
        centred = tl.load(rewards_ptr + place, mask=inside, other=0.0) - mean
        tl.store(advantage_ptr + place, tl.where(flat, 0.0, centred * factor), mask=inside)
    tl.store(std_ptr + group, std)
    tl.store(flat_ptr + group, flat)


def group_advantage(
    rewards: torch.Tensor, offsets: torch.Tensor, mode: str, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See torch_ops.group_advantage. One program computes one group."""
    groups = offsets.numel() - 1
    advantage = torch.empty_like(rewards)
    std = rewards.new_empty(groups)
    flat = torch.empty(groups, dtype=torch.bool, device=rewards.device)
    if groups:
        with torch.cuda.device_of(rewards):
            _group_advantage_kernel[(groups,)](
                rewards, offsets, advantage, std, flat, epsilon, MODE=_ADVANTAGE[mode], BLOCK=GROUP_BLOCK, num_warps=1
            )
    return advantage, std, flat


INTERPRETED = not isinstance(_row_stats_kernel, triton.runtime.JITFunction)
