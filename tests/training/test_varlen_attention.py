"""Attention over packed rows: equal to dense attention, and no sequence sees another."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, Qwen3Config

from medssr_dist.training.backend.options import VARLEN
from medssr_dist.training.update import varlen_attention
from medssr_dist.training.update.sequence_layout import lay_out_packed, lay_out_padded

LENGTHS = [5, 1, 9, 3]
Q, K, D = 4, 2, 8
GPU = pytest.param("cuda", marks=pytest.mark.gpu)


def draw(device: str, dtype: torch.dtype, head: int = D) -> list[torch.Tensor]:
    """Return query [1, Q, L, head], key and value [1, K, L, head]."""
    rng = torch.Generator().manual_seed(0)
    shapes = [(1, heads, sum(LENGTHS), head) for heads in (Q, K, K)]
    return [torch.randn(shape, generator=rng).to(device, dtype).requires_grad_() for shape in shapes]


def make_options(device: str) -> dict:
    limits = F.pad(torch.tensor(LENGTHS).cumsum(0), (1, 0)).int().to(device)
    return {"cu_seq_lens_q": limits, "max_length_q": max(LENGTHS)}


def attend(tensors: list[torch.Tensor], **options) -> torch.Tensor:
    return varlen_attention.attend(torch.nn.Module(), *tensors, None, scaling=D**-0.5, **options)[0]


def attend_with_mask(tensors: list[torch.Tensor], window: int | None) -> torch.Tensor:
    """Return dense attention over the whole row with a mask that separates the sequences, [1, L, Q, D]."""
    owner = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    place = torch.arange(len(owner))
    behind = place[:, None] - place[None]
    mask = (owner[:, None] == owner[None]) & (behind >= 0) & (behind < (window or len(owner)))
    query, key, value = tensors
    mask = mask.to(query.device)
    found = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=D**-0.5, enable_gqa=True)
    return found.transpose(1, 2)


def take_gradients(output: torch.Tensor, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    weights = torch.linspace(-1, 1, output.numel(), device=output.device).view_as(output)
    return torch.autograd.grad((output * weights).sum(), tensors)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("device", ["cpu", GPU])
def test_equals_dense_attention_with_a_mask(device, window):
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    tensors = draw(device, dtype)
    wide = [tensor.detach().double().requires_grad_() for tensor in tensors]
    found, expected = attend(tensors, sliding_window=window, **make_options(device)), attend_with_mask(wide, window)
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)
    for mine, theirs in zip(take_gradients(found, tensors), take_gradients(expected, wide), strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e4])
@pytest.mark.parametrize("device", ["cpu", GPU])
def test_a_poisoned_neighbour_changes_nothing(device, poison):
    """All tokens of one sequence are poisoned: outputs and gradients of the others keep every bit."""
    poisoned = slice(LENGTHS[0] + LENGTHS[1], sum(LENGTHS[:3]))
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    clean, dirty = draw(device, dtype), [tensor.detach().clone() for tensor in draw(device, dtype)]
    for tensor in dirty:
        tensor[:, :, poisoned] = poison
        tensor.requires_grad_()
    kept = torch.ones(sum(LENGTHS), dtype=torch.bool, device=device)
    kept[poisoned] = False
    outputs = [attend(tensors, **make_options(device)) for tensors in (clean, dirty)]
    assert torch.equal(outputs[0][:, kept], outputs[1][:, kept])
    gradients = [
        take_gradients(output[:, kept], tensors) for output, tensors in zip(outputs, (clean, dirty), strict=True)
    ]
    for mine, theirs in zip(*gradients, strict=True):
        assert torch.equal(mine[:, :, kept], theirs[:, :, kept])


def test_a_row_without_limits_or_with_other_parts_is_refused():
    tensors = draw("cpu", torch.float32)
    with pytest.raises(RuntimeError, match="does not pass the limits"):
        attend(tensors)
    with pytest.raises(RuntimeError, match="does not compute softcap; set training.attention=sdpa"):
        attend(tensors, softcap=30.0, **make_options("cpu"))


@pytest.fixture(scope="module")
def models() -> dict[str, torch.nn.Module]:
    """The same Qwen3 of two layers, the second with a sliding window, with our attention and with sdpa."""
    config = Qwen3Config(
        vocab_size=31,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=Q,
        num_key_value_heads=K,
        head_dim=D,
        use_sliding_window=True,
        sliding_window=3,
        max_window_layers=1,
        use_cache=False,
    )
    found = {}
    for name in (VARLEN, "sdpa"):
        torch.manual_seed(0)
        found[name] = AutoModelForCausalLM.from_config(config, attn_implementation=name).float()
    return found


def compute_logits(model: torch.nn.Module, lay_out, rows: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Return the logits of all real tokens, sequence by sequence."""
    layout = lay_out(rows, real, real[:, 1:])
    logits = model(
        layout.token_SL, attention_mask=layout.attention, position_ids=layout.position_SL, **layout.make_limits()
    ).logits
    return logits.flatten(0, 1) if lay_out is lay_out_packed else logits[real.bool()]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_model_computes_packed_rows_as_padded_ones(models, checkpointing):
    rng = torch.Generator().manual_seed(1)
    real = torch.stack([torch.arange(max(LENGTHS)) < length for length in LENGTHS]).long()
    rows = torch.randint(1, 31, real.shape, generator=rng) * real
    expected = compute_logits(models["sdpa"], lay_out_padded, rows, real)
    model = models[VARLEN].train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    for lay_out in (lay_out_packed, lay_out_padded):
        torch.testing.assert_close(compute_logits(model, lay_out, rows, real), expected, rtol=1e-4, atol=1e-5)
    gradients = []
    for each, lay_out in ((models["sdpa"], lay_out_padded), (model, lay_out_packed)):
        each.zero_grad()
        compute_logits(each, lay_out, rows, real).square().sum().backward()
        gradients.append({name: weight.grad for name, weight in each.named_parameters()})
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, rtol=1e-3, atol=1e-4, msg=name)
    model.gradient_checkpointing_disable()


def test_the_kernel_gets_sequences_as_torch_wants_them(monkeypatch):
    """What is passed to torch's kernel, which needs a GPU; its arguments are checked by its shape function."""
    tensors = [tensor.detach().to(torch.bfloat16) for tensor in draw("cpu", torch.float32)]
    seen = {}

    def kernel(query, key, value, limits, same_limits, longest, same_longest, **options):
        seen.update(options, longest=longest, heads=(query.shape[1], key.shape[1], value.shape[1]))
        assert limits is same_limits and limits.dtype == torch.int32 and longest == same_longest
        unreal = [tensor.to("meta") for tensor in (query, key, value, limits, limits)]
        fake = torch.ops.torch_attn._varlen_attn(*unreal, longest, longest)
        return torch.zeros(fake[0].shape)

    monkeypatch.setattr(varlen_attention, "_fits_kernel", lambda query: True)
    monkeypatch.setattr(varlen_attention, "varlen_attn", kernel)
    assert attend(tensors, sliding_window=3, **make_options("cpu")).shape == (1, sum(LENGTHS), Q, D)
    assert seen == {"longest": 9, "heads": (Q, K, K), "scale": D**-0.5, "window_size": (2, 0), "enable_gqa": True}
    attend(tensors, **make_options("cpu"))
    assert seen["window_size"] == (-1, 0)  # causal, without a window
