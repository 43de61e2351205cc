"""Both ends of the gloo weight transfer, in threads over real sockets, and the buckets of weights."""

from __future__ import annotations

import threading
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

transfer = pytest.importorskip("medssr_dist.training.weights.gloo_transfer", reason="vllm is not installed")

from vllm.distributed.weight_transfer.base import ModuleSource, ParamMeta  # noqa: E402
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory  # noqa: E402

from medssr_dist.training.weights.sync import ZeroSource, split_into_buckets  # noqa: E402

TIMEOUT_S = 60.0


class Layers(torch.nn.Module):
    """Three layers, with weights of two dtypes and an odd number of bytes."""

    def __init__(self, seed: int):
        super().__init__()
        torch.manual_seed(seed)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(3, 5, dtype=torch.bfloat16) for _ in range(3))
        self.scale = torch.nn.Parameter(torch.randn(3))

    def load_weights(self, weights):
        own = dict(self.named_parameters())
        for name, weight in weights:
            own[name].data.copy_(weight)


class Receiver(transfer.GlooWeightTransferEngine):
    """The worker's end, without vLLM's layers."""

    def __init__(self, rank: int, model: torch.nn.Module):
        self.parallel_config = SimpleNamespace(data_parallel_index=0, world_size=1, rank=rank)
        self.model = model

    def start_weight_update(self):
        self.started = True

    def finish_weight_update(self):
        assert self.started


class Client:
    """Calls all receivers in parallel, as the Ray client calls engines."""

    def __init__(self, receivers):
        self.receivers = receivers

    def init_weight_transfer_engine(self, init_info):
        self._all(lambda each: each.init_transfer_engine(each.parse_init_info(init_info)))

    def start_weight_update(self):
        self._all(lambda each: each.start_weight_update())

    def update_weights(self, update_info):
        self._all(lambda each: each.receive_weights(each.parse_update_info(update_info)))

    def finish_weight_update(self, weight_version=None):
        self._all(lambda each: each.finish_weight_update())

    def _all(self, call):
        threads = [threading.Thread(target=call, args=(each,)) for each in self.receivers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def make_sender(source, client, world_size=3):
    info = transfer.GlooTrainerInitInfo("127.0.0.1", world_size, TIMEOUT_S, rank=0)
    return transfer.GlooTrainerWeightTransferEngine.trainer_init(info, client=client, source=source)


@pytest.mark.parametrize("bucket_bytes", [1, 40, 10**6])
def test_receivers_get_all_weights_bit_for_bit(bucket_bytes):
    policy, models = Layers(0), [Layers(1), Layers(2)]
    client = Client([Receiver(rank, model) for rank, model in enumerate(models)])
    engine = make_sender(ZeroSource(policy, bucket_bytes), client)
    for _ in range(2):
        with torch.no_grad():
            policy.scale += 1
        engine.send_weights()
        for model in models:
            assert all(torch.equal(model.state_dict()[name], value) for name, value in policy.state_dict().items())


def test_sender_finishes_its_gathers_after_a_failure():
    """A gather is a collective: if the sender stopped, the other ranks would wait for it."""
    engine = transfer.GlooTrainerWeightTransferEngine(client=None, source=ModuleSource(Layers(0)))
    names_gathered = []

    def gather():
        for names, tensors in ModuleSource(Layers(0)).iter_groups():
            names_gathered.append(names)
            yield names, tensors

    def fail(flat):
        raise RuntimeError("connection closed by peer")

    engine.source = SimpleNamespace(iter_groups=gather)
    engine._group = SimpleNamespace(broadcast=fail)
    with pytest.raises(RuntimeError, match="closed by peer"):
        engine._broadcast()
    assert len(names_gathered) == len(ModuleSource(Layers(0)).groups()) > 1


def test_registering_twice_is_harmless():
    transfer.register()
    transfer.register()
    assert WeightTransferEngineFactory._registry["gloo"]() is transfer.GlooWeightTransferEngine


def test_update_info_describes_the_buckets():
    source = ZeroSource(Layers(0), 40)
    info = transfer.GlooUpdateInfo(**asdict(transfer.GlooUpdateInfo.from_source(source, {})))
    assert [[meta.name for meta in bucket] for bucket in info.iter_buckets()] == source.groups()
    assert [meta for bucket in info.iter_buckets() for meta in bucket] == source.metadata()


@given(sizes=st.lists(st.integers(0, 9), max_size=20), most=st.integers(1, 12))
def test_buckets_keep_the_order_and_the_size_limit(sizes, most):
    metas = [ParamMeta(str(index), torch.uint8, (size,)) for index, size in enumerate(sizes)]
    found = split_into_buckets(metas, most)
    assert [meta for bucket in found for meta in bucket] == metas
    held = [sum(meta.shape[0] for meta in bucket) for bucket in found]
    assert all(size <= most or len(bucket) == 1 for size, bucket in zip(held, found, strict=True))
    following = zip(held, found[1:], strict=False)
    assert all(size + bucket[0].shape[0] > most for size, bucket in following)


@given(counts=st.lists(st.tuples(st.integers(0, 5), st.sampled_from([torch.bfloat16, torch.float32, torch.int8]))))
def test_flatten_and_unflatten_are_inverse(counts):
    tensors = [torch.arange(count).to(dtype) for count, dtype in counts]
    bucket = [ParamMeta(str(index), tensor.dtype, tuple(tensor.shape)) for index, tensor in enumerate(tensors)]
    flat = transfer.flatten([*tensors, torch.zeros(1, dtype=torch.uint8)])[:-1]
    found = [tensor for _, tensor in transfer.unflatten(flat, bucket)] if bucket else []
    assert all(torch.equal(*pair) for pair in zip(found, tensors, strict=True))


def test_only_tensors_in_separate_places_are_copied():
    metas = [ParamMeta(name, torch.float32, (2, 3)) for name in "abc"]
    flat = torch.arange(18.0).view(torch.uint8)
    one, two, three = (tensor for _, tensor in transfer.unflatten(flat, metas))
    joined, swapped = transfer.flatten([two, three]), transfer.flatten([three, two])
    assert joined.data_ptr() == two.data_ptr() and torch.equal(joined, flat[24:])
    assert torch.equal(swapped, torch.cat([flat[48:], flat[24:48]]))
    with_gap = transfer.flatten([one, three])
    assert torch.equal(with_gap, torch.cat([flat[:24], flat[48:]])) and with_gap.data_ptr() != one.data_ptr()


def test_a_weight_that_differs_from_its_checksum_is_refused():
    policy, source = Layers(0), ZeroSource(Layers(0), 40)
    engine = make_sender(source, Client([Receiver(0, Layers(1))]), world_size=2)
    engine.checksums = source.compute_checksums(["scale", "layers.0.bias"])
    engine.send_weights()
    failures = []
    engine.client._all = lambda call: [failures.append(_catch(call, each)) for each in engine.client.receivers]
    engine.checksums = dict(engine.checksums) | {"scale": 1}
    engine.send_weights()
    assert "scale of 2 compared weights did not arrive" in str(next(filter(None, failures)))
    assert policy.scale.shape == (3,)


def _catch(call, receiver) -> Exception | None:
    try:
        return call(receiver)
    except Exception as error:
        return error
