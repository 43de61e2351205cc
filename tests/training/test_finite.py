"""A NaN or an infinity in loss, gradient norm or weights ends a stage; nothing of that step is kept."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
import torch
from config_builder import make_config
from tiny_policy import LETTERS, letter_question

from medssr_dist import cli
from medssr_dist.data.jsonl import JsonlLedger
from medssr_dist.errors import EXIT_FAILED, Diverged
from medssr_dist.run.paths import CheckpointPaths, RunPaths
from medssr_dist.training.after_step import AfterStep
from medssr_dist.training.finite import describe_bad, find_bad_metrics, find_bad_weights
from medssr_dist.training.stage_errors import explain_stage_error
from medssr_dist.training.stage_job import StageJob
from medssr_dist.training.stage_watch import StageWatch
from medssr_dist.training.weights.checkpoints import list_checkpoints

SOUND = {"loss": 0.5, "policy_loss": 0.5, "kl": 0.0, "grad_norm": 3.47, "mfu": math.nan}
OF_NAN_GRADIENTS = math.sqrt(2)  # DeepSpeed returns this as their norm

# --- checks of metrics and weights


@pytest.mark.parametrize(
    ("status", "found"),
    [
        ({}, {}),
        ({"loss": math.inf}, {"loss": math.inf}),
        ({"kl": torch.tensor(-math.inf)}, {"kl": -math.inf}),
        ({"grad_norm": math.inf}, {"grad_norm": math.inf}),
        ({"grad_norm": OF_NAN_GRADIENTS}, {}),  # the weights show it
    ],
)
def test_metrics_that_must_be_finite(status, found):
    assert find_bad_metrics(SOUND | status) == found


class Weights:
    """A ZeRO-3 module as one rank of `world` has it; the padding of its shards is NaN."""

    def __init__(self, rank: int, world: int, **weights: list[float]):
        self._parts = {name: self._part(torch.tensor(each), rank, world) for name, each in weights.items()}

    def _part(self, whole: torch.Tensor, rank: int, world: int) -> SimpleNamespace:
        size = -(-len(whole) // world)
        shard = torch.full((size,), math.nan, dtype=torch.bfloat16)
        own = whole[rank * size : (rank + 1) * size]
        shard[: len(own)] = own
        shard.ds_numel = size
        return SimpleNamespace(ds_tensor=shard, ds_numel=len(whole), ds_zero_partition_rank=rank)

    def named_parameters(self):
        return self._parts.items()


def test_a_rank_checks_its_own_shards():
    weights = {"a": [1.0, 2.0, 3.0], "b": [1.0, -math.inf, 3.0], "c": [1.0, 2.0, 3.0, 4.0, math.inf]}
    found = [find_bad_weights(Weights(rank, 2, **weights)) for rank in range(2)]
    assert found == [{"b": -math.inf}, {"c": math.inf}]
    assert math.isnan(find_bad_weights(Weights(0, 1, a=[1.0, math.nan]))["a"])


def test_padding_of_shards_is_not_checked():
    for world in range(1, 6):
        assert [find_bad_weights(Weights(rank, world, a=[1.0, 2.0, 3.0])) for rank in range(world)] == [{}] * world


def test_a_description_names_at_most_three_weights():
    weights = {f"w{number}": math.nan for number in range(5)}
    expected = "loss is inf, weight w0 holds nan, weight w1 holds nan, weight w2 holds nan (and 2 more weights)"
    assert describe_bad({"loss": math.inf}, weights) == expected
    assert describe_bad({}, {"w0": -math.inf}) == "weight w0 holds -inf"


# --- how a stage ends


class Policy:
    """Ranks with these bad weights; `calls` lists the methods that were called."""

    def __init__(self, *weights: dict[str, float]):
        self.weights, self.calls = weights, []

    def async_run_method(self, method: str, *args) -> list:
        self.calls.append(method)
        return list(self.weights) if method == "find_bad_weights" else []


@pytest.fixture
def after_step(tmp_path, monkeypatch):
    """Make the AfterStep of stage 2 for a policy."""
    monkeypatch.setattr(ray, "get", lambda found: found)
    stage2 = {"enabled": True, "data": ["d"], "learning_rate": 0.5, "max_grad_norm": 0}
    config = make_config(training={"stage2": stage2})
    job = StageJob("stage2", config, config.training.stage2, Path(), Path(), tmp_path, "", 4, None, None)
    return lambda policy: AfterStep(job, policy, None, StageWatch(job))


def test_a_finite_update_passes(after_step):
    after_step(Policy({}, {})).check_finite(3, SOUND)


@pytest.mark.parametrize(
    ("status", "weights", "expected"),
    [
        ({"loss": math.nan}, {}, "stage2 step 3: loss is nan; nothing of this step is saved or exported"),
        ({"grad_norm": OF_NAN_GRADIENTS}, {"head": math.nan}, "stage2 step 3: weight head holds nan; "),
    ],
)
def test_a_bad_update_is_reported_with_its_step(after_step, status, weights, expected):
    with pytest.raises(Diverged) as error:
        after_step(Policy({}, weights)).check_finite(3, SOUND | status)
    message = str(error.value)
    assert message.startswith(expected) and "there is no checkpoint yet" in message and "\n" not in message
    assert "lower training.stage2.learning_rate (0.5) or clip gradients more (max_grad_norm = 0, 0 is off)" in message


def test_bad_weights_are_not_exported(after_step, tmp_path):
    policy = Policy({"head": math.inf})
    with pytest.raises(Diverged, match="stage2 step 0: weight head holds inf"):
        after_step(policy).export(tmp_path / "hf.partial")
    assert "export" not in policy.calls


def test_divergence_ends_the_command_with_exit_code_1(monkeypatch, capsys):
    class Failed(Exception):
        cause = Diverged("stage2 step 3: loss is nan")

    error = explain_stage_error(Failed(), SimpleNamespace(name="stage2", folder=Path("stage2")))
    monkeypatch.setattr(cli, "_status", lambda args: (_ for _ in ()).throw(error))
    assert cli.main(["status", "run"]) == EXIT_FAILED == 1
    assert capsys.readouterr().err == "medssr: stage2 step 3: loss is nan\n"


@pytest.mark.slow
def test_divergence_keeps_the_last_checkpoint(medssr, tiny_config, tmp_path):
    """The first step's learning rate is 0. The same command then diverges again, from the checkpoint."""
    rng, run, data = random.Random(1), tmp_path / "run", tmp_path / "letters.jsonl"
    with JsonlLedger(data) as ledger:
        ledger.append(*(letter_question(rng.choice(LETTERS), rng.random()).model_dump() for _ in range(20)))
    settings = {
        "data": f"[{data}]",
        "steps": 6,
        "learning_rate": 1e11,
        "max_grad_norm": 0,
        "warmup_ratio": 0.2,
        "drop_zero_variance": "false",
    }
    arguments = ["train", "--config", tiny_config, "--run-dir", run, "training.stage1.enabled=false"]
    arguments += [f"training.stage2.{name}={value}" for name, value in settings.items()]
    folder = RunPaths(run).stage("stage2").folder
    paths = CheckpointPaths(RunPaths(run).stage("stage2").checkpoints)
    rows = []
    for _ in range(2):
        done = medssr(*arguments, check=False)
        last = done.stderr.splitlines()[-1]
        assert done.returncode == EXIT_FAILED and "Traceback" not in done.stderr, done.stderr[-4000:]
        checkpoint = list_checkpoints(folder / "checkpoints")[-1]
        assert last.startswith(f"medssr: stage2 step {checkpoint.step + 1}: ") and "learning_rate (1e+11)" in last, last
        assert " is nan" in last or " holds " in last or " is inf" in last
        assert f"resumes from the checkpoint of step {checkpoint.step}, which is complete" in last
        assert checkpoint.step >= 1 and checkpoint.is_intact(paths.at(checkpoint.step))
        assert not list(folder.glob("hf*")) and not list((folder / "checkpoints").rglob("*.partial"))
        text = (folder / "metrics.jsonl").read_text()
        assert "NaN" not in text and "Infinity" not in text
        rows.append([json.loads(line) for line in text.splitlines()])
        assert [row["step"] for row in rows[-1]] == list(range(1, checkpoint.step + 1))
    assert rows[0] == rows[1]  # no step was taken again: the run resumed from the checkpoint
