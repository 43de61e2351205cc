"""Operations of an update against counts by hand and by torch; the weights of a plain checkpoint."""

from __future__ import annotations

import pytest
import torch
from zero_cases import VOCABULARY, save_tiny_llama

from medssr_dist.training.update.flops import ModelWork, compute_mfu, count_model_work, find_peak_flops
from medssr_dist.training.weights.lora import list_weights


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def model(request, tmp_path_factory):
    from transformers import AutoModelForCausalLM

    folder = save_tiny_llama(tmp_path_factory.mktemp("model"), request.param)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")


def add_adapters(model):
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(model, LoraConfig(r=3, lora_alpha=6, target_modules="all-linear"))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:  # it is initialised to zero
                weight.copy_(torch.randn(weight.shape, generator=generator) / 10)
    return adapted


def test_flops_match_the_count_of_torch(model):
    from torch.utils.flop_counter import FlopCounterMode

    lengths = torch.tensor([20, 20])
    ids = torch.randint(0, VOCABULARY, (2, 20))
    with FlopCounterMode(display=False) as counter:
        model(ids).logits.sum().backward()
    model.zero_grad()
    work = count_model_work(model)
    ours = work.count_update_flops(lengths, actions=40)
    # torch counts the whole square of attention, twice the causal half. It does not count norms.
    squares = 6 * work.attention * 2 * 20**2
    norms = 6 * 40 * sum(weight.numel() for weight in model.parameters() if weight.dim() == 1)
    assert counter.get_total_flops() == pytest.approx(ours + squares - norms, rel=1e-4)


def test_frozen_weights_cost_no_weight_gradient():
    full = ModelWork(body=100, body_trained=100, head=10, head_trained=10, attention=4)
    frozen = ModelWork(body=100, body_trained=3, head=10, head_trained=0, attention=4)
    lengths = torch.tensor([5, 3])
    assert full.count_update_flops(lengths, 2) == 8 * 600 + 2 * 60 + 24 * 34
    assert frozen.count_update_flops(lengths, 2) == 8 * (400 + 6) + 2 * 40 + 24 * 34


def test_model_work_counts_adapters_as_trained(tmp_path):
    from transformers import AutoModelForCausalLM

    model = add_adapters(AutoModelForCausalLM.from_pretrained(save_tiny_llama(tmp_path, tied=True)))
    work = count_model_work(model)
    adapters = sum(weight.numel() for name, weight in model.named_parameters() if "lora_" in name)
    assert (work.body_trained, work.head_trained) == (adapters, 0)
    assert work.head == VOCABULARY * 48
    assert work.attention == 2 * 48


def test_mfu_and_peak(monkeypatch):
    assert compute_mfu(flops=4e12, seconds=2.0, ranks=2, peak=4e12) == 0.25
    assert find_peak_flops(100.0, "float32") == 1e14
    assert find_peak_flops(0.0, "float32") is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name, peak in (("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA T1000", None)):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda name=name: name)
        assert find_peak_flops(0.0, "bfloat16") == peak


def test_weights_of_a_plain_model_are_its_parameters(model):
    found = list_weights(model)
    assert [each.name for each in found] == [name for name, _ in model.named_parameters()]
    assert all(
        each.value().data_ptr() == weight.data_ptr() for each, weight in zip(found, model.parameters(), strict=True)
    )


def test_adapters_are_merged_under_the_checkpoints_names(tmp_path):
    from transformers import AutoModelForCausalLM

    folder = save_tiny_llama(tmp_path, tied=False)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    names = [name for name, _ in plain.named_parameters()]
    adapted = add_adapters(plain)
    found = {each.name: each.value().clone() for each in list_weights(adapted)}
    assert list(found) == names
    merged = dict(adapted.merge_and_unload().named_parameters())
    for name, weight in found.items():
        torch.testing.assert_close(weight, merged[name].detach())
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    changed = [name for name, weight in base.named_parameters() if not torch.equal(weight, found[name])]
    assert len(changed) == 2 * 7  # every linear layer of both layers, but neither embedding nor head
