"""Where the rollout engines run: the choice, what is refused, and the order in which ranks and engines take turns."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import ray
import torch
from config_builder import make_config
from pydantic import ValidationError

from medssr_dist.config.load import load_config
from medssr_dist.errors import InputError
from medssr_dist.estimates.engine_placement import choose_placement
from medssr_dist.estimates.memory import estimate_memory
from medssr_dist.runtime.cluster import count_slots
from medssr_dist.training.rollout import workers
from medssr_dist.training.weights.state_offload import StateOffload

TURNS = {"placement": "colocated", "ranks_per_node": 2, "engines": 2}


@pytest.fixture
def qwen(repo, monkeypatch):
    values = {"DATA": "/data", "API_MODEL": "m", "API_KEY": "k-4f9a17c2e8b35d60", "API_BASE": "http://127.0.0.1:9/v1"}
    for name, value in values.items():
        monkeypatch.setenv(f"MEDSSR_{name}", value)
    eight = ("training.ranks_per_node=8", "training.engines=8", "training.placement=auto")
    return lambda *more: load_config(repo / "configs" / "qwen3_8b.yaml", [*eight, *more])


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"engines": 1}, "engines = 1, and 2 ranks have one each; set training.engines=2, or training.placement=split"),
        ({"tensor_parallel_size": 2}, "tensor_parallel_size = 2 is not 1"),
        ({"colocate_reference": False}, "set training.colocate_reference=true"),
        (
            {"max_policy_lag": 2, "stage1": {"importance": "token"}, "stage2": {"importance": "token"}},
            "max_policy_lag = 2 has no effect; set training.max_policy_lag=0",
        ),
    ],
)
def test_engines_that_cannot_take_turns_are_refused(training, message):
    with pytest.raises(ValidationError) as error:
        make_config(training=TURNS | training)
    assert message in str(error.value)


def test_colocated_engines_need_no_gpus_of_their_own():
    slots = count_slots(make_config(training=TURNS))
    assert (slots["training ranks"], slots["rollout engines"]) == (2, 0)


def test_on_cpu_auto_is_split():
    choice = choose_placement(make_config(training=TURNS | {"placement": "auto"}))
    assert choice.config.training.placement == "split" and "on CPU" in choice.reason
    assert choose_placement(make_config(training=TURNS)).config.training.placement == "colocated"


def test_on_gpus_auto_is_colocated_where_memory_allows(gpu, qwen):
    choice = choose_placement(qwen())
    assert choice.config.training.placement == "colocated"
    turns = {each.what: each for each in estimate_memory(choice.config, 8_190_735_360)}
    assert 60e9 < turns["a GPU while the engines sample"].needed < 80e9
    assert 25e9 < turns["a GPU while the ranks train"].needed < 60e9


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("training.engine_memory=0.95", "auto: not colocated, a GPU while the engines sample needs about 84 GB of 80"),
        ("training.gradient_checkpointing=false", "auto: not colocated, a GPU while the ranks train needs"),
        ("training.engines=4", "auto: not colocated, engines = 4, and 8 ranks have one each"),
        ("training.placement=split", "as configured"),
        ("policy.model=someone/unknown-8B", "the size of the policy is not known"),
        ("training.ranks_per_node=4 training.engines=4", "auto: the job's 8 GPUs hold ranks and engines"),
    ],
)
def test_on_gpus_auto_is_else_split(gpu, qwen, override, reason):
    choice = choose_placement(qwen(*override.split()))
    assert choice.config.training.placement == "split" and reason in choice.reason


def test_colocated_engines_without_room_are_refused(gpu, qwen):
    with pytest.raises(InputError, match=r"engines sample needs about 84 GB of 80 GB; set training.placement=split"):
        choose_placement(qwen("training.placement=colocated", "training.engine_memory=0.95"))


class StandIns:
    """Plays engines, ranks and weight sync, and records their calls."""

    def __init__(self):
        self.calls: list[object] = []

    def call_all(self, method, *args):
        self.calls.append((method, *args))

    def async_run_method(self, method):
        self.calls.append(method)
        return []

    def wait_ready(self):
        self.calls.append("engines ready")

    def update_all(self, send):
        send({})

    def send(self, engines, version, compare_all):
        self.calls.append(f"send {version}")

    def new_weights(self):
        return self

    def __enter__(self):
        return 7

    def __exit__(self, *error):
        self.calls.append("new weights")


def make_workers(part: StandIns, takes_turns: bool) -> workers.RolloutWorkers:
    found = object.__new__(workers.RolloutWorkers)
    found._takes_turns, found._ranks, found._sync, found.engines, found.sampler = takes_turns, part, part, part, part
    return found


@pytest.fixture(autouse=True)
def without_ray(monkeypatch):
    monkeypatch.setattr(ray, "get", lambda found: found)


def test_ranks_and_colocated_engines_take_turns():
    part = StandIns()
    made = make_workers(part, takes_turns=True)
    made.make_room()
    part.calls.append("ranks load")
    made.wait_ready([])
    assert part.calls == ["engines ready", ("sleep", 1), "ranks load", "offload_states", ("wake_up",)]
    part.calls.clear()
    made.begin_training()
    part.calls.append("train")
    made.sync_weights()
    assert part.calls == [
        *[("sleep", 2), "reload_states", "train", "offload_states", ("wake_up", ["weights"])],
        *["send 7", "new weights", ("wake_up", ["kv_cache"])],
    ]


def test_engines_of_their_own_never_sleep():
    part = StandIns()
    made = make_workers(part, takes_turns=False)
    made.make_room()
    made.wait_ready([])
    made.begin_training()
    made.sync_weights()
    assert part.calls == ["engines ready", "send 7", "new weights"]


def test_colocated_engines_are_never_ahead():
    one = {"stage1": {"importance": "token"}, "stage2": {"importance": "token"}, "max_policy_lag": 1}
    config = make_config(training=TURNS | one | {"over_draw": True})
    plan = workers.make_batch_plan(config, config.training.stage1)
    assert (plan.ahead, plan.max_lag) == (0, 1)
    config = make_config(training=one | {"max_policy_lag": 3})
    assert workers.make_batch_plan(config, config.training.stage1).ahead == 3


def test_the_state_of_an_update_moves_away_and_back():
    weight = torch.arange(4.0)
    moments = {"step": torch.tensor(3.0), "exp_avg": torch.ones(4), "exp_avg_sq": torch.ones(4)}
    calls = []
    optimizer = SimpleNamespace(
        fp32_partitioned_groups_flat=[weight],
        optimizer=SimpleNamespace(state={weight: moments}),
        offload_states=lambda *args, **options: calls.append("gradients away"),
        reload_states=lambda: calls.append("gradients back"),
    )
    state = StateOffload(SimpleNamespace(optimizer=optimizer))
    state.bring_back()
    state.move_away()
    state.move_away()
    assert state.is_away and calls == ["gradients away"]
    state.bring_back()
    assert calls == ["gradients away", "gradients back"] and weight.tolist() == [0, 1, 2, 3]
    assert sorted(moments) == ["exp_avg", "exp_avg_sq", "step"]  # nothing that a checkpoint would store


def test_weights_by_ipc_are_compared_as_they_arrive(monkeypatch):
    from vllm.distributed.weight_transfer import ipc_engine

    from medssr_dist.training.weights.ipc_transfer import CheckedIpcTrainer, CheckedIpcUpdateInfo, CheckedIpcWorker
    from medssr_dist.training.weights.weight_checks import ChecksumError, compute_checksum

    weights, sent, loaded = {"a": torch.ones(3), "b": torch.zeros(2)}, [], []
    trainer = object.__new__(CheckedIpcTrainer)
    trainer.is_sender, trainer.client = True, SimpleNamespace(update_weights=sent.append)
    trainer.checksums = {"a": int(compute_checksum(weights["a"])), "elsewhere": 5}
    fields = {"dtype_names": ["float32"] * 2, "shapes": [[3], [2]], "ipc_handles": {"gpu": ()}, "tensor_sizes": [12, 8]}
    trainer._do_send(names=["a", "b"], **fields)
    assert sent[0]["checksums"] == {"a": trainer.checksums["a"]}  # the other one is in another buffer
    worker = object.__new__(CheckedIpcWorker)
    worker.packed, worker._packed_importer, worker.device = True, None, SimpleNamespace(index=0)
    worker.model = SimpleNamespace(load_weights=lambda found: loaded.extend(name for name, _ in found))
    monkeypatch.setattr(ipc_engine, "packed_ipc_consumer", lambda **options: list(weights.items()))
    worker.receive_weights(CheckedIpcUpdateInfo(**sent[0]))
    assert loaded == ["a", "b"]
    weights["a"][1] = 2
    with pytest.raises(ChecksumError, match="a of 1 compared weights did not arrive"):
        worker.receive_weights(CheckedIpcUpdateInfo(**sent[0]))
