"""What a config needs of GPUs, planned on a machine without one: memory, engines' limits, checkpoints, idle GPUs."""

from __future__ import annotations

import pytest
from config_builder import make_config

from medssr_dist.commands.plan_slots import describe_idle, plan_memory
from medssr_dist.config.load import load_config
from medssr_dist.config.schema import Runtime
from medssr_dist.errors import InputError
from medssr_dist.estimates.memory import estimate_memory
from medssr_dist.estimates.model_shape import SHAPES, find_shape, read_shape
from medssr_dist.inference.vllm_args import build_engine_env, build_rollout_kwargs, choose_limits
from medssr_dist.runtime import device
from medssr_dist.runtime.cluster import refuse_unfit_rollout
from medssr_dist.training.save_interval import choose_save_steps
from medssr_dist.training.stage_actor import _rank_env


@pytest.fixture
def shipped(repo, monkeypatch):
    values = {"DATA": "/data", "API_MODEL": "m", "API_KEY": "k-4f9a17c2e8b35d60", "API_BASE": "http://127.0.0.1:9/v1"}
    for name, value in values.items():
        monkeypatch.setenv(f"MEDSSR_{name}", value)
    return lambda name, *overrides: load_config(repo / "configs" / name, list(overrides))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("Qwen3-8B", 8_190_735_360), ("Llama-3.1-8B", 8_030_261_248), ("SmolLM2-135M", 134_515_008)],
)
def test_shapes_have_the_parameters_of_the_models(name, parameters):
    # Qwen3's norms of queries and keys are left out: 256 weights in each layer.
    assert read_shape(SHAPES[name]).parameters == pytest.approx(parameters, rel=1e-5)


def test_a_known_model_needs_no_files():
    for model, layers in {"Qwen/Qwen3-8B-Base": 36, "meta-llama/Llama-3.1-8B-Instruct": 32}.items():
        assert find_shape(make_config(policy={"model": model}).policy).layers == layers
    assert find_shape(make_config(policy={"model": "someone/unknown-8B"}).policy) is None


@pytest.mark.parametrize("name", ["qwen3_8b.yaml", "qwen3_8b_base.yaml", "llama31_8b.yaml"])
def test_shipped_configs_fit_80_gb_without_offload(gpu, shipped, name):
    config = shipped(name)
    assert not config.training.offload_optimizer
    demands = {each.what: each for each in estimate_memory(config, find_shape(config.policy).parameters)}
    rank = demands["a training rank's GPU"]
    assert 45e9 < rank.needed < 0.8 * rank.available
    assert set(demands) == {"an engine's GPU", "a training rank's GPU"}


def test_activations_count(gpu, shipped):
    def needed(*overrides):
        config = shipped("qwen3_8b.yaml", *overrides)
        return estimate_memory(config, find_shape(config.policy).parameters)[1].needed

    longer = needed("training.stage1.micro_batch_tokens=32768", "training.stage2.micro_batch_tokens=32768")
    shape = read_shape(SHAPES["Qwen3-8B"])
    kept = 36 * shape.hidden + 2 * shape.activations
    assert longer - needed() == pytest.approx(2 * 16384 * kept)
    assert needed("training.gradient_checkpointing=false") > 100e9


def test_hpz_costs_a_copy_on_each_node(gpu, shipped):
    def needed(*overrides):
        config = shipped("qwen3_8b.yaml", *overrides)
        return estimate_memory(config, find_shape(config.policy).parameters)[1].needed

    four = "training.nodes=4", "training.engines=16", "voting.engines=32"
    copy = 2 * find_shape(shipped("qwen3_8b.yaml").policy).parameters / 4
    assert needed(*four, "training.hpz=true") - needed(*four) == pytest.approx(copy)
    assert needed("training.hpz=true") == needed()


@pytest.mark.parametrize(
    ("gigabytes", "limits"), [(141, (512, 16384)), (80, (512, 16384)), (40, (256, 8192)), (24, (128, 4096))]
)
def test_limits_of_engines_follow_the_memory(gigabytes, limits):
    assert choose_limits(gigabytes * 10**9) == limits


def test_limits_in_the_config_win(gpu, tmp_path, shipped):
    assert build_rollout_kwargs(tmp_path, shipped("qwen3_8b.yaml"))["max_num_seqs"] == 512
    config = shipped("qwen3_8b.yaml", "training.max_num_seqs=96", "training.max_num_batched_tokens=1000")
    kwargs = build_rollout_kwargs(tmp_path, config)
    assert kwargs["max_num_seqs"] == 96
    assert kwargs["max_num_batched_tokens"] == 4096  # a whole prompt must fit


def test_on_cpu_engines_keep_their_limits(tmp_path):
    kwargs = build_rollout_kwargs(tmp_path, make_config(training={"max_num_batched_tokens": 64}))
    assert "max_num_seqs" not in kwargs and kwargs["max_num_batched_tokens"] == 4096


def test_ranks_on_gpus_get_threads_too(gpu, monkeypatch):
    monkeypatch.setattr(device.os, "sched_getaffinity", lambda pid: set(range(64)))
    assert _rank_env(8)["OMP_NUM_THREADS"] == "8" and _rank_env(100)["OMP_NUM_THREADS"] == "1"


def test_no_engine_compiles_a_sampler_unless_asked(gpu, monkeypatch):
    monkeypatch.delenv("VLLM_USE_FLASHINFER_SAMPLER", raising=False)
    assert build_engine_env(Runtime(), 1)["VLLM_USE_FLASHINFER_SAMPLER"] == "0"
    monkeypatch.setenv("VLLM_USE_FLASHINFER_SAMPLER", "1")
    assert build_engine_env(Runtime(), 1)["VLLM_USE_FLASHINFER_SAMPLER"] == "1"


FP8 = {"rollout_dtype": "fp8", "stage1": {"importance": "token"}, "stage2": {"importance": "token"}}


def test_rollouts_in_8_bits_are_refused_on_cpu():
    with pytest.raises(InputError, match=r"rollout_dtype = fp8 needs GPUs .* uses the CPU; set training.rollout_dtype"):
        refuse_unfit_rollout(make_config(training=FP8))
    refuse_unfit_rollout(make_config())


@pytest.mark.parametrize(("capability", "refused"), [(8.0, True), (8.9, False), (9.0, False), (None, False)])
def test_rollouts_in_8_bits_need_a_newer_gpu(gpu, monkeypatch, capability, refused):
    monkeypatch.setattr("medssr_dist.runtime.cluster.read_compute_capability", lambda: capability)
    if refused:
        with pytest.raises(InputError, match=r"this GPU has 8\.0"):
            refuse_unfit_rollout(make_config(training=FP8))
    else:
        refuse_unfit_rollout(make_config(training=FP8))


@pytest.mark.parametrize(("size", "steps"), [(1e6, 10), (40e9, 10), (98e9, 25), (115e9, 29), (1e12, 50)])
def test_checkpoints_are_rarer_the_larger_they_are(size, steps):
    assert choose_save_steps(size) == steps


def test_idle_gpus_are_named_in_one_line(gpu, shipped):
    assert describe_idle(shipped("qwen3_8b.yaml")) == ""
    assert describe_idle(shipped("qwen3_8b.yaml", "training.engines=2")) == "2 GPUs during training"
    assert describe_idle(shipped("qwen3_8b.yaml", "voting.engines=5")) == "3 GPUs during the vote"


def test_too_little_memory_is_warned_of(gpu, shipped):
    rows = [row.text for row in plan_memory(shipped("qwen3_8b.yaml", "training.ranks_per_node=2"))]
    assert "warning: too little for a training rank's GPU" in rows


def test_the_dry_run_plans_for_gpus_on_a_machine_without(medssr, tiny_config, tmp_path):
    shown = medssr("run", "--config", tiny_config, "--run-dir", tmp_path / "r", "--dry-run", "--device", "gpu").stdout
    assert "GPUs, none visible here: 80 GB each are assumed" in shown and "CPU process slots" not in shown
    assert "a training rank's GPU: about" in shown
    refused = medssr("run", "--config", tiny_config, "--run-dir", tmp_path / "r", "--device", "gpu", check=False)
    assert refused.returncode == 2 and "--device needs --dry-run" in refused.stderr


def test_the_config_names_the_device_of_plan_and_run(medssr, tiny_config, tmp_path):
    command = ["vote", "--config", tiny_config, "--run-dir", tmp_path / "r", "runtime.device=gpu"]
    assert "a training rank's GPU" in medssr("run", *command[1:], "--dry-run").stdout
    medssr("synthesize", *command[1:])  # needs no GPU
    refused = medssr(*command, check=False)
    assert refused.returncode == 2 and "runtime.device = gpu, but no GPU is visible here" in refused.stderr
