"""Checksums of weights, and the order of CUDA streams in a sync, by simulated streams."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("vllm", reason="vllm is not installed")

from vllm.distributed.weight_transfer import packed_tensor  # noqa: E402

from medssr_dist.training.weights import stream_order, sync, weight_checks  # noqa: E402
from medssr_dist.training.weights.weight_checks import (  # noqa: E402
    ArrivalCheck,
    ChecksumError,
    choose_sampled,
    compute_checksum,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8, torch.float64])
def test_a_checksum_shows_each_kind_of_damage(dtype, monkeypatch):
    monkeypatch.setattr(weight_checks, "_CHUNK", 16)  # several chunks
    weight = torch.arange(1, 61).to(dtype).view(6, 10)
    whole = int(compute_checksum(weight))
    assert int(compute_checksum(weight.t().contiguous().t())) == whole  # the same values, laid out in another way
    flat = weight.view(-1)
    swapped, shifted, zeroed = flat.clone(), flat.roll(1), flat.clone()
    swapped[[3, 40]] = flat[[40, 3]]
    zeroed[20:] = 0
    for damaged in (swapped, shifted, zeroed):
        assert int(compute_checksum(damaged)) != whole


def test_each_sync_compares_other_weights():
    names = [f"layer {number}" for number in range(100)]
    chosen = [choose_sampled(names, version) for version in range(20)]
    assert chosen == [choose_sampled(names, version) for version in range(20)]
    assert all(len(set(each)) == 4 for each in chosen) and len({name for each in chosen for name in each}) > 30
    assert choose_sampled(["one"], 3) == ["one"]


def test_weights_that_differ_or_are_missing_are_named():
    weights = {"a": torch.ones(3), "b": torch.zeros(2), "c": torch.ones(1)}
    expected = {name: int(compute_checksum(weight)) for name, weight in weights.items()}
    check = ArrivalCheck(expected)
    assert dict(check.watch(weights.items())) == weights
    check.finish()
    check = ArrivalCheck(expected)
    list(check.watch([("a", torch.ones(3)), ("b", torch.full((2,), 1e-45)), ("d", torch.ones(1))]))
    with pytest.raises(ChecksumError, match="b, c of 3 compared weights did not arrive"):
        check.finish()


class SimulatedStream:
    """A CUDA stream: it knows the gathers that were done before its next operation."""

    current: SimulatedStream

    def __init__(self, device=None):
        self.knows: set[int] = set()

    def record_event(self) -> set[int]:
        return set(self.knows)

    def wait_event(self, event: set[int]) -> None:
        self.knows |= event

    def synchronize(self) -> None: ...

    def __enter__(self):
        self._before, SimulatedStream.current = SimulatedStream.current, self

    def __exit__(self, *error):
        SimulatedStream.current = self._before


class Qwen3Shapes(torch.nn.Module):
    """Weights of Qwen3-8B's shapes without data."""

    def __init__(self):
        super().__init__()
        hidden, wide, keys, vocabulary, head = 4096, 12288, 1024, 151936, 128
        layer = [(hidden, hidden), (keys, hidden), (keys, hidden), (hidden, hidden), (head,), (head,)]
        layer += [(wide, hidden), (wide, hidden), (hidden, wide), (hidden,), (hidden,)]
        shapes = [(vocabulary, hidden), *layer * 36, (hidden,), (vocabulary, hidden)]
        make = lambda shape: torch.nn.Parameter(torch.empty(shape, dtype=torch.bfloat16, device="meta"))  # noqa: E731
        self.weights = torch.nn.ParameterList(map(make, shapes))


def count_crossings(monkeypatch, hand_over) -> tuple[int, int]:
    """Send Qwen3-8B through vLLM's producer; return (weights that are packed too early, all weights)."""
    SimulatedStream.current = SimulatedStream()
    streams = (SimulatedStream(), SimulatedStream())
    monkeypatch.setattr(packed_tensor, "_get_streams", lambda *given: streams)
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimulatedStream.current)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
    monkeypatch.setattr(stream_order, "on_gpu", lambda: True)
    monkeypatch.setattr(stream_order.StreamOrder, "hand_over", hand_over)
    source, early, taken, gathers = sync.ZeroSource(Qwen3Shapes(), 256 * 2**20), 0, 0, {}
    iter_groups = source.iter_groups

    def gather():
        for number, (names, tensors) in enumerate(iter_groups()):
            SimulatedStream.current.knows.add(number)  # the gather is done on the stream that asks for it
            gathers.update(dict.fromkeys(names, number))
            yield names, tensors

    monkeypatch.setattr(source, "iter_groups", gather)

    def watched():
        nonlocal early, taken
        for name, tensor in source:
            early += gathers[name] not in SimulatedStream.current.knows
            taken += 1
            yield name, tensor

    group = type("Group", (), {"broadcast": lambda self, tensor, src: None})()
    packed_tensor.packed_nccl_broadcast_producer(watched(), group, 0, lambda item: item[1], 256 * 2**20)
    return early, taken


def test_no_weight_is_packed_before_it_is_gathered(monkeypatch):
    right, wrong = stream_order.StreamOrder.hand_over, lambda order, tensor: tensor
    assert count_crossings(monkeypatch, wrong) == (133, 399)  # what happened without the order
    assert count_crossings(monkeypatch, right) == (0, 399)
