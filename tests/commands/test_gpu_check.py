"""`medssr doctor --gpu-check` as far as a machine without GPU shows it: refusal, judgements, the attention."""

from __future__ import annotations

import json

import pytest

from medssr_dist import cli
from medssr_dist.commands.doctor import gpu_check


def test_without_a_gpu_it_is_refused_in_one_line(capsys):
    assert cli.main(["doctor", "--gpu-check", "--config", "demo_cpu"]) == 2
    assert "needs a GPU, and this machine shows none" in capsys.readouterr().err


def test_attention_is_compared_with_an_exact_one(monkeypatch):
    found = gpu_check.check_attention("cpu")
    assert found.status == "pass" and found.detail.count("e-0") == 4
    monkeypatch.setattr(gpu_check, "_LARGEST_ERROR", 1e-9)
    assert gpu_check.check_attention("cpu").status == "fail"


SHAPE = {"task": "grpo", "n": 2048, "h": 4096, "v": 151936}
TORCH = SHAPE | {"contestant": "torch", "error_loss": 4e-4, "error_dx": 6e-2, "error_dw": 5e-2, "failed": ""}
GOOD = TORCH | {"contestant": "kernels", "error_loss": 9e-4, "error_dx": 9e-2, "error_dw": None}
NAN = float("nan")


@pytest.mark.parametrize(
    ("rows", "status", "words"),
    [
        ([TORCH, GOOD, {"contestant": "liger", "failed": "no such package"}], "pass", "at most 1.50 times torch's"),
        ([TORCH, GOOD | {"error_dw": 0.4}], "fail", "at most 8.00 times torch's"),
        ([TORCH, GOOD | {"error_dx": NAN, "error_dw": 0.01}], "fail", "nan times torch's"),
        ([TORCH, GOOD | {"failed": "OutOfMemoryError"}], "fail", "kernels: OutOfMemoryError"),
        ([SHAPE | {"contestant": "torch", "failed": "OutOfMemoryError"}, GOOD], "fail", "torch has no errors"),
        ([], "fail", "no figures of ours"),
    ],
)
def test_kernels_are_judged_by_the_errors_of_torch(tmp_path, rows, status, words):
    file = tmp_path / "kernels.json"
    file.write_text(json.dumps({"rows": rows}))
    found = gpu_check.judge_kernels(file)
    assert found.status == status and words in found.detail


def test_the_figures_of_a_real_gpu_pass(repo):
    found = gpu_check.judge_kernels(repo / "kernels" / "results" / "h200.json")
    assert found.status == "pass" and found.detail == "12 kernels, errors at most 1.00 times torch's"


def test_the_update_is_judged_by_its_own_row(tmp_path):
    file = tmp_path / "update.json"
    good = {"shape": "Qwen3-0.6B", "variant": "ours", "tokens_per_s": 12345.0}
    file.write_text(json.dumps({"rows": [good, {"shape": "Qwen3-0.6B", "variant": "stock", "failed": "x"}]}))
    assert gpu_check.judge_update(file).detail == "Qwen3-0.6B 12,345 tokens/s"
    file.write_text(json.dumps({"rows": [good | {"failed": "boom"}]}))
    assert gpu_check.judge_update(file).status == "fail"


def test_a_part_that_fails_names_its_command():
    found = gpu_check._run(["bench", "nothing", "--json", "x"])
    assert found.status == "fail" and found.fix == "medssr bench nothing --json x"
    assert gpu_check._run(["--version"]) is None


@pytest.mark.parametrize(("gpus", "placement"), [(1, "colocated"), (2, "split"), (8, "split")])
def test_a_whole_run_shares_the_gpu_where_there_is_one(tmp_path, monkeypatch, gpu, gpus, placement):
    """The config of the small run must load, which the dry run shows; the run itself needs a GPU."""
    commands = []
    monkeypatch.setattr(gpu_check, "_run", commands.append)
    monkeypatch.setattr(gpu_check, "find_spec", lambda name: True)
    assert placement in gpu_check._check_whole_run(tmp_path, gpus).detail
    ((*command, last),) = commands
    assert last == f"training.placement={placement}"
    assert cli.main([*command, last, "--dry-run"]) == 0
