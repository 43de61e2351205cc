"""`medssr bench step`: the simulated step against steps that the CPU stack has measured, and what it says of GPUs.

`tests/data/steps` has the times of two runs of the demo's size on 2 cores, and lengths of their votes: one run while
the machine did little else, one while others used it too.
"""

from __future__ import annotations

import json
from itertools import chain

import pytest
from config_builder import make_config
from places import REPO

from medssr_dist.bench.step.run import bench_step, compare_steps, predict_forms, predict_runs
from medssr_dist.config.load import load_config
from medssr_dist.errors import InputError
from medssr_dist.estimates.gpu_rates import predict_step_rates
from medssr_dist.estimates.model_shape import find_shape
from medssr_dist.estimates.rollout_model import EngineRates, RolloutLoad, simulate_rollout
from medssr_dist.estimates.step_model import fit_step_rates, forecast_step
from medssr_dist.training.step_metrics import StepMetrics

QWEN = REPO / "configs" / "qwen3_8b.yaml"
RATES = EngineRates(base=0.01, per_sample=1e-4, most_samples=512)


def load(**changed):
    values = {
        "prompts": 32,
        "samples": 8,
        "engines": 2,
        "flat_share": 0.4,
        "prompt_tokens": 100,
        "lengths": (20, 30, 50),
    }
    return RolloutLoad(**values | changed)


def read_measured(name):
    found = json.loads((REPO / "tests" / "data" / "steps" / f"{name}.json").read_text())
    stages = ([StepMetrics.from_row(row) for row in found[stage]] for stage in ("stage1", "stage2"))
    return load_config(REPO / "configs" / "demo_cpu.yaml", []), found["lengths"], *stages


def relative_errors(compared):
    return {each.figure: each.predicted / each.measured - 1 for each in compared if each.measured}


# --- against measured steps


def test_stage_2_is_predicted_from_stage_1():
    config, lengths, first, second = read_measured("quiet_machine")
    rates = fit_step_rates(first, config, config.training.stage1, lengths, 0.0)
    errors = relative_errors(compare_steps(rates, second[1:], config, config.training.stage2, lengths))
    assert abs(errors["step, s"]) < 0.15 and abs(errors["rollout, s"]) < 0.15, errors


@pytest.mark.parametrize("name", ["quiet_machine", "shared_machine"])
def test_half_of_the_steps_predicts_the_other_half(name):
    config, lengths, first, second = read_measured(name)
    steps = list(chain(first[1:], second[1:]))
    rates = fit_step_rates(steps[:1] + steps[::2], config, config.training.stage1, lengths, 0.0)
    errors = relative_errors(compare_steps(rates, steps[1::2], config, config.training.stage1, lengths))
    assert abs(errors["step, s"]) < 0.15 and abs(errors["rollout, s"]) < 0.15, errors


def test_too_few_steps_are_refused():
    config, lengths, first, _ = read_measured("quiet_machine")
    with pytest.raises(InputError, match="three steps and more"):
        fit_step_rates(first[:2], config, config.training.stage1, lengths, 0.0)


@pytest.mark.parametrize("engines", [1, 4])
def test_rates_are_found_again_on_several_engines(engines):
    config = load_config(REPO / "configs" / "demo_cpu.yaml", [f"training.engines={engines}"])
    stage, known = config.training.stage1, EngineRates(base=0.02, per_sample=4e-4)
    steps = [measure(stage, engines, known, flat, seed) for seed, flat in enumerate([0, 0.6, 0, 0.2, 0.5, 0.7])]
    found = fit_step_rates(steps, config, stage, LENGTHS, 0.0).engine
    for flat in (0.1, 0.4):
        expected = measure(stage, engines, known, flat, 10).seconds_rollout
        assert measure(stage, engines, found, flat, 10).seconds_rollout == pytest.approx(expected, rel=0.1)


LENGTHS = [20, 30, 50, 90]


def measure(stage, engines, rates, flat_share, seed):
    """A step whose rollout is the mean of some that are simulated with known rates, and other random numbers."""
    load = RolloutLoad(stage.prompts_per_step, stage.samples_per_prompt, engines, flat_share, 0.0, LENGTHS)
    rollout = sum(simulate_rollout(load, rates, 100 + 30 * seed + n).seconds for n in range(30)) / 30
    phases = {"seconds_rollout": rollout} | {f"seconds_{name}": 1.0 for name in ("experience", "update", "sync")}
    row = {"step": seed + 1, "response_length": sum(LENGTHS) / len(LENGTHS), "zero_variance_drawn": flat_share}
    return StepMetrics.from_row(row | phases | {"seconds": rollout + 3.0, "mfu": 0.4})


def test_idle_shares_and_mfu_are_compared():
    config = load_config(REPO / "configs" / "demo_cpu.yaml", ["training.engines=2"])
    stage = config.training.stage1
    steps = [measure(stage, 2, EngineRates(0.02, 4e-4), 0.3, seed) for seed in range(4)]
    rates = fit_step_rates(steps, config, stage, LENGTHS, 0.0)
    compared = {each.figure: each for each in compare_steps(rates, steps[1:], config, stage, LENGTHS)}
    step, gpus = compared["step, s"].measured, config.training.ranks + 2
    assert compared["MFU"].measured == pytest.approx(0.4 * config.training.ranks / gpus / step)
    assert compared["ranks idle"].measured == pytest.approx(1 - 3.0 / step)
    for figure in compared.values():
        assert figure.predicted == pytest.approx(figure.measured, rel=0.1, abs=0.1), figure


def test_rates_are_not_fitted_to_over_draw():
    config, lengths, first, _ = read_measured("quiet_machine")
    training = config.training.model_copy(update={"over_draw": True})
    with pytest.raises(InputError, match="over_draw=false"):
        fit_step_rates(first, config.model_copy(update={"training": training}), config.training.stage1, lengths, 0.0)


# --- the simulated rollout


def test_one_sample_takes_its_iterations():
    found = simulate_rollout(load(prompts=1, samples=1, engines=1, flat_share=0.0, lengths=(50,)), RATES, 0)
    assert found.seconds == pytest.approx(50 * (0.01 + 1e-4)) and found.tokens == 50 and found.drawn == 1


def test_samples_of_equal_length_share_their_iterations():
    found = simulate_rollout(load(prompts=4, samples=8, engines=1, flat_share=0.0, lengths=(50,)), RATES, 0)
    assert found.seconds == pytest.approx(50 * (0.01 + 32e-4)) and found.tokens == 4 * 8 * 50


def test_samples_beyond_the_places_wait():
    rates = EngineRates(base=0.01, per_sample=0.0, most_samples=16)
    found = simulate_rollout(load(prompts=4, samples=8, engines=1, flat_share=0.0, lengths=(50,)), rates, 0)
    assert found.seconds == pytest.approx(2 * 50 * 0.01)


def test_prompts_stop_their_engine():
    slow = EngineRates(base=0.01, per_sample=0.0, per_prompt_token=1e-3)
    found = simulate_rollout(load(prompts=2, samples=1, engines=1, flat_share=0.0, lengths=(50,)), slow, 0)
    assert found.seconds == pytest.approx(50 * 0.01 + 2 * 100 * 1e-3)


def test_flat_groups_are_replaced_until_enough_have_variance():
    drawn = [simulate_rollout(load(prompts=64), RATES, seed).drawn for seed in range(20)]
    assert sum(drawn) / 20 == pytest.approx(64 / 0.6, rel=0.05)
    assert simulate_rollout(load(flat_share=1.0), RATES, 0).drawn == 4 * 32  # the sampler's limit


def test_over_draw_saves_the_rounds():
    plain = sum(simulate_rollout(load(), RATES, seed).seconds for seed in range(10))
    drawn_ahead = sum(simulate_rollout(load(over_draw=True), RATES, seed).seconds for seed in range(10))
    assert drawn_ahead < 0.75 * plain


def test_two_engines_take_half_the_work():
    one, two = (simulate_rollout(load(engines=engines, flat_share=0.0), RATES, 0) for engines in (1, 2))
    assert one.tokens == two.tokens and len(two.busy) == 2
    assert sum(two.samples_iterated) == pytest.approx(sum(one.samples_iterated))


def test_the_same_seed_gives_the_same_rollout():
    assert simulate_rollout(load(), RATES, 3) == simulate_rollout(load(), RATES, 3)


# --- on GPUs


@pytest.fixture(scope="module")
def rows():
    return {(row.nodes, row.form): row for row in predict_forms(QWEN, [1, 4], "H100", rounds=1)}


def test_the_aims_for_qwen3_8b_on_4_nodes(rows):
    before, after = rows[4, "earlier versions"], rows[4, "sampling during training, batch grown"]
    one = rows[1, "over-draw, sampling during training"]
    assert after.step.tokens_per_s_per_gpu >= 2.5 * before.step.tokens_per_s_per_gpu
    assert after.idle <= 0.15
    assert 4 * after.step.tokens_per_s_per_gpu >= 3.2 * one.step.tokens_per_s_per_gpu


def test_idle_shares_and_mfu_are_shares(rows):
    for row in rows.values():
        shares = [row.idle, row.mfu, row.step.ranks_idle, *row.step.engines_idle]
        assert all(0 <= share <= 1 for share in shares), row
        assert len(row.step.engines_idle) == (8 if "colocated" in row.form else 4) * row.nodes


def test_offload_and_a_smaller_batch_cost_time(monkeypatch):
    for name, value in {"DATA": "/d", "API_MODEL": "m", "API_KEY": "k-0", "API_BASE": "http://127.0.0.1:9/v1"}.items():
        monkeypatch.setenv(f"MEDSSR_{name}", value)

    def seconds(*overrides, gpu="H100"):
        config = load_config(QWEN, list(overrides))
        rates = predict_step_rates(config, config.training.stage1, find_shape(config.policy), gpu)
        return forecast_step(config, config.training.stage1, rates, [500], 0.0, 300, 8, 1).seconds

    assert seconds("training.offload_optimizer=true") > seconds() + 1
    assert seconds("training.engines=2") > seconds()
    assert seconds(gpu="A100") > 2 * seconds()
    assert seconds(
        "training.max_policy_lag=1", "training.stage1.importance=token", "training.stage2.importance=token"
    ) < (seconds())


def test_unknown_gpus_models_and_nodes_are_refused(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"'B7' is unknown; give one of H100"):
        bench_step(tmp_path / "f.json", quick=True, config=QWEN, gpu="B7")
    for nodes in ("", "0", "1,x"):
        with pytest.raises(InputError, match="give numbers of nodes"):
            bench_step(tmp_path / "f.json", config=QWEN, nodes=nodes)
    config = make_config(policy={"model": "someone/unknown-8B"})
    assert find_shape(config.policy) is None


def test_a_larger_run_takes_proportionally_more():
    paper, million, _ = predict_runs(QWEN, 1, "H100")
    assert million.vote_gpu_hours / paper.vote_gpu_hours == pytest.approx(1e6 / 43e3)
    assert million.train_gpu_hours / paper.train_gpu_hours == pytest.approx(1e6 / 43e3, rel=0.01)
    assert paper.votes == 43_000 * 16 and 114 < paper.checkpoint_gigabytes < 115


def test_the_command_writes_its_rows(tmp_path, capsys):
    bench_step(tmp_path / "f.json", quick=True, config=QWEN, nodes="1")
    found = json.loads((tmp_path / "f.json").read_text())
    assert [row["form"] for row in found["rows"]][:2] == ["earlier versions", "as configured"]
    assert "nothing here is measured" in capsys.readouterr().out
