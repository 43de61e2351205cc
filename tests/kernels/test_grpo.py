"""The GRPO loss, from log-probabilities and from hidden states, against the reference and OpenRLHF's loss."""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from kernel_cases import (
    BACKENDS,
    DTYPES,
    FULL,
    OPTIONS,
    Case,
    check_grpo_loss,
    check_linear_grpo_loss,
    extras,
    grpo_grid,
    inputs,
)

from medssr_dist.kernels import GrpoOptions, grpo_loss, linear_grpo_loss, linear_logprob

CASE = Case(21, 17, 1301, temperature=0.6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", OPTIONS)
def test_grpo_loss_is_the_reference_s(name, backend):
    check_grpo_loss(OPTIONS[name], backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", OPTIONS)
def test_linear_grpo_loss_is_the_reference_s(name, backend):
    check_linear_grpo_loss(CASE, OPTIONS[name], torch.float32, backend)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocabulary", [49_152, 128_256, 151_936])
def test_linear_grpo_loss_on_vocabularies_of_real_models(vocabulary, dtype):
    check_linear_grpo_loss(Case(3, 33, vocabulary), FULL, dtype, "triton")


@pytest.mark.parametrize("runs", [1, 2, 8])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_d_weight_summed_over_runs_is_within_the_bound(dtype, runs):
    """With a budget too small for a sum in fp32, so that the sum is kept in the dtype of the weight."""
    check_linear_grpo_loss(Case(128 * runs, 24, 900), FULL, dtype, "torch", workspace_bytes=1)


def test_gradients_are_the_differences_in_float64():
    given = inputs(Case(4, 3, 40), torch.float64)
    hidden, weight = given.hidden.requires_grad_(), given.weight.requires_grad_()
    logp = linear_logprob(hidden, weight, given.target).detach()
    data = {"old_logp": logp + 0.05, "ref_logp": logp - 0.3, "options": replace(FULL, importance_level="off")}
    advantages = torch.tensor([1.0, -1.0, 0.5, -0.2], dtype=torch.float64)

    def function(hidden, weight):
        return linear_grpo_loss(hidden, weight, given.target, advantages, **data)[0]

    found = torch.autograd.grad(function(hidden, weight), (hidden, weight))
    for _ in range(8):  # gradcheck itself would run backward twice on one graph
        ways = [1e-6 * torch.randn_like(leaf) for leaf in (hidden, weight)]
        ahead, behind = (function(hidden + sign * ways[0], weight + sign * ways[1]) for sign in (1, -1))
        slope = sum((one * other).sum() for one, other in zip(found, ways, strict=True))
        torch.testing.assert_close((ahead - behind) / 2, slope, rtol=1e-5, atol=1e-14)


def openrlhf_losses() -> types.ModuleType:
    """The modules openrlhf.models.loss and .utils alone: importing their package would require flash-attn."""
    spec = importlib.util.find_spec("openrlhf")
    if spec is None:
        pytest.skip("openrlhf is not installed")
    package = types.ModuleType("openrlhf_models")
    package.__path__ = [str(Path(spec.submodule_search_locations[0]) / "models")]
    sys.modules[package.__name__] = package
    try:
        return importlib.import_module("openrlhf_models.loss"), importlib.import_module("openrlhf_models.utils")
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == package.__name__]:
            del sys.modules[name]


def openrlhf_settings(options: GrpoOptions) -> dict:
    level = {"off": "off", "token": "token", "sequence": "seq"}[options.importance_level]
    return {
        "clip_eps_low": options.clip_low,
        "clip_eps_high": options.clip_high,
        "dual_clip": options.dual_clip,
        "token_level_loss": options.aggregation == "token_mean",
        "policy_loss_type": {"token": "ppo", "sequence": "gspo"}[options.ratio],
        "is_correction_level": level,
        "is_correction_mode": options.importance_mode,
        "is_correction_gating": options.importance_gate,
        "is_correction_threshold": (options.importance_low, options.importance_high),
    }


@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "fixed_length"])
def test_policy_term_and_metrics_are_openrlhf_s(name):
    losses, _ = openrlhf_losses()
    logp, entropy, data = grpo_grid()
    logp.requires_grad_()
    options = replace(OPTIONS[name], kl_coef=0.0, entropy_coef=None)
    counts = {"dp_size": 2, "batch_num_tokens": 50.0, "global_batch_size": 7.0}
    theirs, clip, old_kl, rollout_kl, dropped = losses.PolicyLoss(**openrlhf_settings(options))(
        logp, data.old_logp, data.advantages, data.mask.float(), data.rollout_logp, **counts
    )
    loss, metrics = grpo_loss(
        logp,
        data.advantages,
        mask=data.mask,
        options=options,
        token_count=50.0,
        sequence_count=7.0,
        dp_size=2,
        **extras(data),
    )
    close = {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(loss, theirs, **close)
    torch.testing.assert_close(*(torch.autograd.grad(each, logp)[0] for each in (loss, theirs)), **close)
    torch.testing.assert_close(metrics.policy_loss, theirs.detach(), **close)
    torch.testing.assert_close(metrics.clip_share, clip, **close)
    torch.testing.assert_close(metrics.old_kl, old_kl, **close)
    if rollout_kl is not None:
        torch.testing.assert_close(metrics.rollout_kl, rollout_kl, **close)
        torch.testing.assert_close(metrics.importance_dropped, dropped, **close)


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize("distance", [0.5, 12.0])
def test_kl_term_is_openrlhf_s(estimator, unbiased, distance):
    losses, utils = openrlhf_losses()
    logp, _, data = grpo_grid()
    logp.requires_grad_()
    ref = logp.detach() + distance * torch.linspace(-1, 1, logp.numel()).view(logp.shape)
    kl = utils.compute_approx_kl(logp, ref, data.old_logp, kl_estimator=estimator, unbiased_gradient=unbiased)
    theirs = losses.aggregate_loss(kl, data.mask.float(), batch_num_tokens=50.0, dp_size=2)
    options = GrpoOptions(kl_coef=1.0, kl_estimator=estimator, kl_unbiased=unbiased)
    for backend in BACKENDS:
        loss, metrics = grpo_loss(
            logp,
            torch.zeros_like(logp),
            mask=data.mask,
            options=options,
            token_count=50.0,
            dp_size=2,
            old_logp=data.old_logp,
            ref_logp=ref,
            backend=backend,
        )
        torch.testing.assert_close(metrics.kl_loss, theirs.detach(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(
            *(torch.autograd.grad(each, logp, retain_graph=True)[0] for each in (loss, theirs)), rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("linear", [False, True])
def test_rollout_mismatch_is_measured_without_a_correction(linear):
    """Over rows in several runs; the difference that is masked is the largest."""
    given = inputs(Case(400, 8, 300), torch.float32)
    logp = linear_logprob(given.hidden, given.weight, given.target).detach()
    mask = torch.ones(400, dtype=torch.bool)
    mask[7] = False
    drift = torch.zeros(400)
    drift[[3, 5, 7, 300]] = torch.tensor([1.0, -0.9, 9.0, 0.5])
    advantages = torch.linspace(-1, 1, 400)
    data = {"mask": mask, "rollout_logp": logp + drift}
    if linear:
        head = (given.hidden, given.weight, given.target)
        loss, found = linear_grpo_loss(*head, advantages, workspace_bytes=1, **data)
        plain = linear_grpo_loss(*head, advantages, mask=mask).loss
    else:
        loss, found = grpo_loss(logp, advantages, **data)
        plain = grpo_loss(logp, advantages, mask=mask).loss
    torch.testing.assert_close(loss, plain)
    expected = {"rollout_kl": (1.0 - 0.9 + 0.5) / 399, "rollout_beyond_2x": 2 / 399, "rollout_ratio_max": math.e}
    assert {name: float(getattr(found, name)) for name in expected} == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_masked_tokens_may_hold_anything(backend):
    logp, entropy, data = grpo_grid()
    clean = [*data]
    dirty = [part if part is data.mask else torch.where(data.mask, part, torch.nan) for part in data]
    results = []
    for values, noise in ((clean, 0.0), (dirty, torch.inf)):
        given = data._replace(**dict(zip(data._fields, values, strict=True)))
        variable = torch.where(data.mask, logp, logp - noise).requires_grad_()
        loss, metrics = grpo_loss(
            variable, given.advantages, mask=given.mask, entropy=entropy, options=FULL, backend=backend, **extras(given)
        )
        results.append([loss.detach(), *torch.autograd.grad(loss, variable), *metrics])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("backend", BACKENDS)
def test_all_tokens_masked_or_none_at_all(backend):
    for shape in ((2, 3), (0, 3)):
        given = inputs(Case(shape[0] * shape[1], 5, 300), torch.bfloat16)
        hidden, weight = given.hidden.view(*shape, 5).requires_grad_(), given.weight.requires_grad_()
        loss, metrics = linear_grpo_loss(
            hidden, weight, given.target.view(shape), torch.ones(shape), mask=torch.zeros(shape), backend=backend
        )
        loss.backward()
        assert float(loss.detach()) == 0 and not any(map(float, metrics))
        assert hidden.grad.shape == hidden.shape and weight.grad.shape == weight.shape
        assert not hidden.grad.any() and not weight.grad.any()


@pytest.mark.parametrize("name", ["gspo", "sequence_mean", "sequence_mask", "fixed_length"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_ragged_sequences_are_those_of_the_padded_form(name, backend):
    logp, _, data = grpo_grid()
    options = replace(OPTIONS[name], kl_coef=0.1)
    padded = grpo_loss(logp, data.advantages, mask=data.mask, options=options, backend=backend, **extras(data))
    lengths = data.mask.sum(1)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    flat = data._replace(**{name: part[data.mask] for name, part in data._asdict().items()})
    ragged = grpo_loss(
        logp[data.mask], flat.advantages, offsets=offsets, options=options, backend=backend, **extras(flat)
    )
    torch.testing.assert_close(ragged[0], padded[0])
    torch.testing.assert_close(ragged[1], padded[1])


@pytest.mark.parametrize("level", ["off", "token", "sequence"])
def test_without_old_log_probabilities_the_step_is_on_policy(level):
    given = inputs(CASE, torch.float32)
    hidden, weight = given.hidden.view(3, 7, -1).requires_grad_(), given.weight.requires_grad_()
    logp = linear_logprob(given.hidden, given.weight, given.target).detach().view(3, 7)
    options = GrpoOptions(importance_level=level, importance_low=0.8)
    arguments = {"options": options, "rollout_logp": logp + 0.2 * torch.randn(3, 7), "mask": torch.rand(3, 7) > 0.2}
    results = []
    for old in (None, logp):
        loss, metrics = linear_grpo_loss(
            hidden,
            weight,
            given.target.view(3, 7),
            torch.randn(3, 1, generator=torch.manual_seed(0)).expand(3, 7),
            old_logp=old,
            **arguments,
        )
        results.append([loss.detach(), *torch.autograd.grad(loss, [hidden, weight]), *metrics])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert results[0][3 + 4] == 1  # mean ratio


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_upstream_gradient_scales_both(backend):
    given = inputs(CASE, torch.float32)
    hidden, weight = given.hidden.requires_grad_(), given.weight.requires_grad_()
    grads = []
    for factor in (1.0, 0.25):
        loss, _ = linear_grpo_loss(hidden, weight, given.target, torch.ones(21), backend=backend)
        grads.append(torch.autograd.grad(factor * loss, [hidden, weight]))
    for whole, quarter in zip(*grads, strict=True):
        assert torch.equal(whole / 4, quarter)


def test_gradients_are_given_away_once():
    given = inputs(CASE, torch.float32)
    loss, _ = linear_grpo_loss(given.hidden.requires_grad_(), given.weight, given.target, torch.ones(21))
    loss.backward(retain_graph=True)
    with pytest.raises(ValueError, match="first backward"):
        loss.backward()


def test_no_gradient_is_computed_where_none_is_wanted():
    given = inputs(CASE, torch.float32)
    hidden = given.hidden.requires_grad_()
    with torch.no_grad():
        loss, _ = linear_grpo_loss(hidden, given.weight, given.target, torch.ones(21))
    assert not loss.requires_grad


def test_padding_of_the_vocabulary_gets_zero_gradient():
    given = inputs(CASE, torch.float32)
    padded = torch.cat([given.weight, torch.full((61, 17), torch.nan)]).requires_grad_()
    weight = given.weight.requires_grad_()
    loss, _ = linear_grpo_loss(given.hidden, padded, given.target, torch.ones(21), vocab_size=1301)
    expected, _ = linear_grpo_loss(given.hidden, weight, given.target, torch.ones(21))
    (loss + expected).backward()
    assert torch.equal(padded.grad[:1301], weight.grad) and not padded.grad[1301:].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_strides_are_followed(backend):
    given = inputs(CASE, torch.float32)
    plain = (given.hidden, given.weight, given.target, torch.linspace(-1, 1, 21))
    strided = [torch.stack([part, part], dim=-1)[..., 0] for part in plain]
    assert not any(part.is_contiguous() for part in strided)
    results = []
    for hidden, weight, target, advantages in (plain, strided):
        leaves = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
        loss, _ = linear_grpo_loss(*leaves, target, advantages, options=GrpoOptions(), backend=backend)
        results.append([loss.detach(), *torch.autograd.grad(loss, leaves)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)
