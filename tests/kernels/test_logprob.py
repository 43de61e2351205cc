"""linear_logprob on the CPU, in torch and in Triton under its interpreter."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st
from kernel_cases import BACKENDS, DTYPES, REAL, SMALL, Case, check_linear_logprob, inputs, outputs_of
from torch.utils._python_dispatch import TorchDispatchMode

from medssr_dist.kernels import linear_logprob, reference, torch_ops, triton_ops
from medssr_dist.kernels.linear_logprob import empty_stats, finish_stats


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_error_is_at_most_twice_torch_s_own(case, dtype, backend):
    check_linear_logprob(case, dtype, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", REAL, ids=str)
def test_vocabularies_of_real_models(case, dtype, backend):
    check_linear_logprob(case, dtype, backend)


def run(given, backend, *, slopes=None, **settings):
    """[logp, entropy, d hidden, d weight], with gradients through both outputs."""
    if slopes is not None:
        given = given._replace(slopes=slopes)
    return outputs_of(
        lambda hidden, weight: linear_logprob(
            hidden, weight, given.target, mask=given.mask, return_entropy=True, backend=backend, **settings
        ),
        given,
        True,
        given.hidden.dtype,
    )


def assert_same(found, expected, tolerance=2e-5):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def test_gradcheck_in_float64():
    given = inputs(Case(5, 4, 600, masked=True), torch.float64)
    hidden, weight = given.hidden.requires_grad_(), given.weight[::30].contiguous().requires_grad_()
    target = given.target % weight.shape[0]

    def function(hidden, weight):
        return linear_logprob(hidden, weight, target, temperature=0.7, mask=given.mask, return_entropy=True)

    assert torch.autograd.gradcheck(function, (hidden, weight))


@settings(deadline=None, max_examples=25)
@drawn(
    tokens=st.integers(0, 9),
    hidden=st.integers(1, 17),
    vocabulary=st.integers(1, 700),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_any_shape_and_mask(tokens, hidden, vocabulary, seed, data):
    torch.manual_seed(seed)
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=tokens, max_size=tokens)), dtype=torch.bool)
    given = inputs(Case(tokens, hidden, vocabulary), torch.float32)._replace(mask=mask)
    expected = outputs_of(
        lambda hidden, weight: reference.linear_logprob(hidden, weight, given.target, mask=mask),
        given,
        True,
        torch.float64,
    )
    for backend in BACKENDS:
        found = run(given, backend, workspace_bytes=1)
        assert_same([part.double() for part in found], expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_number_of_slices_does_not_change_results(backend):
    given = inputs(Case(6, 16, 1500), torch.float32)
    assert_same(run(given, backend, workspace_bytes=1), run(given, backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_all_logits_far_below_zero(backend):
    given = inputs(Case(4, 8, 900), torch.float32)
    shifted = (
        torch.cat([given.hidden, torch.ones(4, 1)], dim=1),
        torch.cat([given.weight, -1000 * torch.ones(900, 1)], 1),
    )
    logp, entropy = linear_logprob(*shifted, given.target, return_entropy=True, backend=backend, workspace_bytes=1)
    expected = reference.linear_logprob(given.hidden, given.weight, given.target)
    assert_same((logp, entropy), expected, tolerance=2e-3)  # logits of 1,000 have steps of 6e-5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("tokens", [0, 1, 3])
def test_no_rows_to_compute(tokens, backend):
    given = inputs(Case(tokens, 5, 300), torch.bfloat16)
    given = given._replace(mask=torch.zeros(tokens), target=torch.full((tokens,), -100))
    found = run(given, backend)
    assert [part.dtype for part in found] == [torch.float32, torch.float32, torch.bfloat16, torch.bfloat16]
    assert all(bool((part == 0).all()) for part in found)
    assert found[3].shape == given.weight.shape


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_of_the_vocabulary_is_never_read(backend):
    given = inputs(Case(5, 8, 700), torch.float32)
    padded = torch.cat([given.weight, torch.full((61, 8), torch.nan)])
    expected = run(given, backend)
    found = run(given._replace(weight=padded), backend, vocab_size=700)
    assert_same(found[:3], expected[:3], tolerance=0)
    assert_same([found[3][:700]], [expected[3]], tolerance=0)
    assert bool((found[3][700:] == 0).all())


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_without_upstream_gradient_are_dropped_exactly(backend):
    given = inputs(Case(7, 8, 700), torch.float32)
    slopes = torch.randn(2, 7)
    slopes[:, [1, 4]] = 0
    given.hidden[1] = torch.nan  # would spoil every row of d weight, were it multiplied by zero
    found = run(given, backend, slopes=tuple(slopes))
    kept = [0, 2, 3, 5, 6]
    alone = given._replace(hidden=given.hidden[kept], target=given.target[kept])
    expected = run(alone, backend, slopes=tuple(slopes[:, kept]))
    assert_same([found[2][kept], found[3]], expected[2:], tolerance=0)
    assert bool((found[2][[1, 4]] == 0).all())


@pytest.mark.parametrize("backend", BACKENDS)
def test_strides_are_followed(backend):
    given = inputs(Case(6, 10, 400), torch.float32)
    strided = given._replace(
        hidden=given.hidden.t().contiguous().t(),
        weight=torch.stack([given.weight, given.weight], dim=2)[..., 0],
        target=torch.stack([given.target, given.target], dim=1)[:, 0],
        slopes=tuple(torch.stack([slope, slope], dim=1)[:, 0] for slope in given.slopes),
    )
    outputs = []
    for case in (given, strided):
        hidden, weight = case.hidden.detach().requires_grad_(), case.weight.detach().requires_grad_()
        logp, entropy = linear_logprob(hidden, weight, case.target, return_entropy=True, backend=backend)
        torch.autograd.backward([logp, entropy], list(case.slopes))
        outputs.append([logp.detach(), entropy.detach(), hidden.grad, weight.grad])
    assert_same(outputs[1], outputs[0])


@pytest.mark.parametrize("wanted", ["hidden", "weight", "neither"])
def test_only_inputs_that_require_it_get_a_gradient(wanted):
    given = inputs(Case(4, 6, 300), torch.float32)
    hidden = given.hidden.requires_grad_(wanted == "hidden")
    weight = given.weight.requires_grad_(wanted == "weight")
    logp = linear_logprob(hidden, weight, given.target)
    assert logp.requires_grad == (wanted != "neither")
    if wanted != "neither":
        logp.sum().backward()
        leaf = {"hidden": hidden, "weight": weight}[wanted]
        expected = torch.autograd.grad(reference.linear_logprob(hidden, weight, given.target)[0].sum(), leaf)[0]
        assert_same([leaf.grad], [expected])


def test_either_output_alone_gives_its_own_gradient():
    given = inputs(Case(4, 6, 300), torch.float32)
    hidden = given.hidden.requires_grad_()
    for place in (0, 1):
        ours = linear_logprob(hidden, given.weight, given.target, return_entropy=True)[place]
        expected = reference.linear_logprob(hidden, given.weight, given.target)[place]
        assert_same(torch.autograd.grad(ours.sum(), hidden), torch.autograd.grad(expected.sum(), hidden))


@pytest.mark.parametrize("columns", [700, 701, 704])
def test_row_kernels_touch_their_own_columns_alone(columns):
    """On a view of longer rows: reads and writes are wider than the slice, results are not."""
    wide = torch.randn(3, 960)
    wide[:, columns:] = torch.nan
    target = torch.tensor([0, columns - 1, columns + 5])
    results = []
    for operations in (torch_ops, triton_ops):
        logits = wide.clone()
        stats = empty_stats(3, logits)
        operations.row_stats(logits[:, :columns], target, stats, 0.7, True)
        row = finish_stats(stats, 0.7)
        slopes = torch.ones(3)
        operations.row_gradient(logits[:, :columns], target, row.maximum, row.log_sum, row.entropy, slopes, slopes, 0.7)
        assert bool(logits[:, columns:].isnan().all())
        results.append([stats[:3], stats[3, :2], logits[:, :columns]])
        assert stats[3, 2] == -torch.inf  # a target of another slice
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


class LargestTensor(TorchDispatchMode):
    """Records the elements of the largest storage that any operation returned."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for part in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(part, torch.Tensor):
                self.elements = max(self.elements, part.untyped_storage().nbytes() // part.element_size())
        return result


@pytest.mark.parametrize("backend", BACKENDS)
def test_logits_of_all_rows_and_columns_are_never_held(backend):
    tokens, vocabulary, columns = 32, 16_384, 1024
    given = inputs(Case(tokens, 8, vocabulary), torch.float32)
    hidden, weight = given.hidden.requires_grad_(), given.weight.requires_grad_()
    with LargestTensor() as largest:
        logp, entropy = linear_logprob(
            hidden, weight, given.target, return_entropy=True, backend=backend, workspace_bytes=4 * tokens * columns
        )
        (logp + entropy).sum().backward()
    assert largest.elements == weight.numel()  # the gradient; the slice of logits is a quarter of it
    assert tokens * vocabulary > 2 * largest.elements
