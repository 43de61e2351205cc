"""`medssr bench kernels` on tiny shapes: what it measures, writes and prints, and how it lists a failure."""

from __future__ import annotations

import csv
from dataclasses import replace

import pytest
import torch

from medssr_dist.bench.kernels import peers, run
from medssr_dist.bench.kernels.report import Row, judge_aims
from medssr_dist.data.jsonl import read_json


def broken():
    raise MemoryError("too little of it\nand more lines")


def imports_nothing():
    import no_such_library  # noqa: F401


@pytest.mark.slow
def test_files_and_table_of_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(run, "SHAPES", {"cpu quick": [(32, 16, 97), (48, 16, 97)]})
    monkeypatch.setattr(run, "SECONDS_A_ROUND", 0.01)
    kept = {
        name: replace(task, losses={way: task.losses[way] for way in ("kernels", "torch")})
        for name, task in peers.TASKS.items()
    }
    kept["logprob"].losses.update({"torch chunked": peers.TASKS["logprob"].losses["torch chunked"]})
    kept["logprob"].losses.update({"liger": imports_nothing, "cce": lambda: lambda problem: broken()})
    monkeypatch.setattr(peers, "TASKS", kept)
    run.bench_kernels(tmp_path / "kernels.json", quick=True)

    found = read_json(tmp_path / "kernels.json")
    assert found["device"] == "cpu"
    assert found["aims"] == []
    assert {"date", "commit", "machine", "versions"} <= found.keys()
    rows = {(row["task"], row["contestant"], row["n"]): row for row in found["rows"]}
    assert len(rows) == len(found["rows"]) == 2 * (7 + 4)
    assert rows["logprob", "liger", 32]["failed"] == "ModuleNotFoundError: No module named 'no_such_library'"
    assert rows["logprob", "cce", 48]["failed"] == "MemoryError: too little of it"
    for task in ("logprob", "grpo"):
        ours, theirs = (rows[task, name, 48] for name in ("kernels", "torch"))
        assert 0 < ours["p20_ms"] <= ours["p50_ms"] <= ours["p80_ms"]
        assert ours["peak"] >= 0
        for error in ("error_loss", "error_dx", "error_dw"):
            assert ours[error] <= 2 * theirs[error] + 1e-5, error
    with open(tmp_path / "kernels.csv", encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == len(rows)
    assert (tmp_path / "kernels.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "No module named 'no_such_library'" in printed
    assert "not judged here" in printed


@pytest.mark.parametrize("faster", [True, False])
def test_aims_are_judged(faster):
    shape = 16384, 4096, 151936
    gradients = 2 * (shape[0] + shape[2]) * shape[1]
    rows = [
        Row("logprob", "4 GEMMs", *shape, times=[90.0], peak=0),
        Row(
            "logprob",
            "kernels",
            *shape,
            times=[95.0 if faster else 101.0],
            peak=gradients + 10**9 * (1 if faster else 2),
        ),
        Row("logprob", "liger", *shape, times=[100.0], peak=0),
        Row("logprob", "cce", *shape, failed="ModuleNotFoundError"),
        Row("rows", "row_stats", *shape, times=[1.0], terabytes_per_s=2.6 if faster else 2.4),
    ]
    judged = list(judge_aims(rows))
    assert len(judged) == 4
    assert all(aim.met is faster for aim in judged)


def test_the_rate_of_a_row_kernel_is_measured(monkeypatch):
    kernel = peers.RowKernel(lambda: None, moved_bytes=10**9)
    monkeypatch.setattr(peers, "make_row_kernels", lambda problem: {"row_stats": kernel})
    monkeypatch.setattr(run, "_time", lambda step: 0.5)
    (row,) = run._measure_row_kernels(peers.make_problem(32, 16, 97, "cpu"), rounds=1)
    assert (row.task, row.contestant, row.shape) == ("rows", "row_stats", (32, 16, 97))
    assert row.terabytes_per_s == pytest.approx(2.0) and not row.failed
