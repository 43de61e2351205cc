"""Bad input to the kernels is a ValueError that names the tensor; choice of the backend; the package itself."""

from __future__ import annotations

import ast
import json
import logging
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from kernel_cases import Case, inputs
from places import HELPERS

from medssr_dist.kernels import GrpoOptions, backends, group_advantage, grpo_loss, linear_grpo_loss, linear_logprob

CASE = Case(4, 6, 300)


def changed(**parts):
    given = inputs(CASE, torch.float32)._asdict() | parts
    return [given[name] for name in ("hidden", "weight", "target")]


BAD_LINEAR = {
    "target above": ({"target": torch.tensor([0, 300, 1, 2])}, {}, r"target \(4,\).*holds 300"),
    "target below": ({"target": torch.tensor([0, -100, 1, 2])}, {}, r"target \(4,\).*holds -100"),
    "target long": ({"target": torch.zeros(5, dtype=torch.int64)}, {}, r"target \(5,\)"),
    "target float": ({"target": torch.zeros(4)}, {}, r"target \(4,\) torch.float32"),
    "hidden 3-D": ({"hidden": torch.zeros(2, 2, 6)}, {}, r"hidden \(2, 2, 6\)"),
    "hidden whole": ({"hidden": torch.zeros(4, 6, dtype=torch.int64)}, {}, r"hidden \(4, 6\) torch.int64"),
    "weight narrow": ({"weight": torch.zeros(300, 5)}, {}, r"weight \(300, 5\)"),
    "weight bf16": ({"weight": torch.zeros(300, 6, dtype=torch.bfloat16)}, {}, r"weight \(300, 6\) torch.bfloat16"),
    "weight elsewhere": ({"weight": torch.zeros(300, 6, device="meta")}, {}, r"weight .* on meta"),
    "weight not gathered": ({"weight": torch.zeros(0)}, {}, r"weight \(0,\)"),
    "weight without rows": ({"weight": torch.zeros(0, 6)}, {}, r"weight \(0, 6\).*gathered"),
    "mask long": ({}, {"mask": torch.ones(5)}, r"mask \(5,\)"),
    "temperature nan": ({}, {"temperature": float("nan")}, "temperature .*nan"),
    "temperature zero": ({}, {"temperature": 0.0}, "temperature"),
    "temperature infinite": ({}, {"temperature": float("inf")}, "temperature"),
    "vocabulary": ({}, {"vocab_size": 301}, "vocab_size 301"),
    "vocabulary start": ({}, {"vocab_start": 4}, "vocab_start 4"),
    "backend": ({}, {"backend": "cuda"}, "backend"),
}


@pytest.mark.parametrize("function", [linear_logprob, lambda *parts, **named: linear_grpo_loss(*parts, ADV, **named)])
@pytest.mark.parametrize("name", BAD_LINEAR)
def test_bad_linear_input_is_named(name, function):
    parts, settings, message = BAD_LINEAR[name]
    with pytest.raises(ValueError, match=message):
        function(*changed(**parts), **settings)


ADV = torch.ones(4)
LOGP = -torch.ones(4)
BAD_LOSS = {
    "advantages": ({"advantages": torch.ones(3)}, r"advantages \(3,\)"),
    "old": ({"old_logp": torch.ones(2, 2)}, r"old_logp \(2, 2\)"),
    "mask elsewhere": ({"mask": torch.ones(4, device="meta")}, r"mask .* on meta"),
    "no reference": ({"options": GrpoOptions(kl_coef=0.1)}, "ref_logp"),
    "no rollout": ({"options": GrpoOptions(importance_level="token")}, "rollout_logp"),
    "no entropy": ({"options": GrpoOptions(entropy_coef=0.1)}, "needs entropy"),
    "offsets short": ({"offsets": torch.tensor([0, 3])}, r"offsets \(2,\).*0 to 4"),
    "offsets backwards": ({"offsets": torch.tensor([0, 3, 2, 4])}, "backwards"),
    "offsets float": ({"offsets": torch.tensor([0.0, 4.0])}, r"offsets \(2,\) torch.float32"),
    "dp_size": ({"dp_size": 0}, "dp_size"),
}


@pytest.mark.parametrize("name", BAD_LOSS)
def test_bad_loss_input_is_named(name):
    settings, message = BAD_LOSS[name]
    with pytest.raises(ValueError, match=message):
        grpo_loss(LOGP, **({"advantages": ADV} | settings))


@pytest.mark.parametrize(
    "settings",
    [
        {"clip_low": 1.0},
        {"clip_high": -0.1},
        {"dual_clip": 1.0},
        {"kl_coef": -1.0},
        {"kl_estimator": "k4"},
        {"aggregation": "fixed_length"},
        {"ratio": "word"},
        {"penalty_aggregation": "none"},
        {"importance_level": "token", "importance_low": 2.0, "importance_high": 1.0},
        {"importance_level": "sequence", "importance_mode": "clip"},
        {"importance_level": "token", "importance_gate": "tv"},
    ],
    ids=str,
)
def test_options_that_clash(settings):
    with pytest.raises(ValueError, match="fixed_length|" + next(iter(settings)).split("_")[0]):
        GrpoOptions(**settings)


@pytest.mark.parametrize(
    ("rewards", "offsets", "mode", "message"),
    [
        (torch.ones(4), [0, 2, 2, 4], "rloo", "group 1 is empty"),
        (torch.ones(4), [0, 2], "rloo", r"offsets \(2,\)"),
        (torch.ones(2, 2), [0, 4], "rloo", r"rewards \(2, 2\)"),
        (torch.ones(4, dtype=torch.int64), [0, 4], "rloo", "rewards .*int64"),
        (torch.ones(4), [0, 4], "gae", "mode"),
    ],
)
def test_bad_groups(rewards, offsets, mode, message):
    with pytest.raises(ValueError, match=message):
        group_advantage(rewards, torch.tensor(offsets), mode=mode)


def test_the_path_is_torch_on_the_cpu_and_logged_once(caplog):
    backends._log_once.cache_clear()
    with caplog.at_level(logging.INFO, logger="medssr_dist.kernels"):
        for _ in range(3):
            assert backends.select_operations(None, LOGP).__name__ == "medssr_dist.kernels.torch_ops"
    assert [record.message.split(" (")[0] for record in caplog.records] == ["kernels: torch on cpu"]


def test_triton_has_no_float64():
    with pytest.raises(ValueError, match="float32"):
        linear_logprob(*(part.double() if part.is_floating_point() else part for part in changed()), backend="triton")


def run_python(code: str, folder: Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)


def test_without_gpu_or_interpreter_triton_is_refused(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    code = (
        "import torch\nfrom medssr_dist.kernels import group_advantage\n"
        "group_advantage(torch.ones(2), torch.tensor([0, 2]), backend='triton')"
    )
    done = run_python(code, tmp_path)
    assert done.returncode == 1 and "TRITON_INTERPRET=1" in done.stderr.splitlines()[-1]


def test_kernels_compile_for_two_gpus_without_spills():
    """Row kernels have 16-byte accesses, and few enough registers for 5 blocks on a multiprocessor with 65,536."""
    done = subprocess.run([sys.executable, HELPERS / "kernel_compile.py"], capture_output=True, text=True, check=False)
    if "no ptxas" in done.stderr:
        pytest.skip("this Triton carries no ptxas")
    assert done.returncode == 0, done.stderr[-2000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [kernel["architecture"] for kernel in found] == ["sm_80"] * 11 + ["sm_90a"] * 11
    assert not [kernel for kernel in found if kernel["spills"]]
    rows = [kernel for kernel in found if kernel["kernel"].startswith("row_")]
    assert all(kernel["wide"] and kernel["registers"] * kernel["warps"] * 32 * 5 <= 65_536 for kernel in rows), rows


def test_the_folder_is_not_importable_by_its_own_name(tmp_path):
    """Transformers looks for another package called kernels."""
    code = "import importlib.util as u\nprint(u.find_spec('kernels'), u.find_spec('medssr_dist.kernels').origin)"
    done = run_python(code, tmp_path)
    assert done.stdout.split()[0] == "None", done.stdout + done.stderr
    assert done.stdout.split()[1].endswith("__init__.py")


def test_a_wheel_carries_it_inside_the_package(repo, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        (source / name).write_bytes((repo / name).read_bytes())
    for folder, kind in {
        "medssr_dist": "*.py",
        "kernels": "*.py",
        "launch": "*.py",
        "configs": "*.yaml",
        "slurm": "*.sh",
    }.items():
        for file in (repo / folder).rglob(kind):
            (source / file.relative_to(repo)).parent.mkdir(parents=True, exist_ok=True)
            (source / file.relative_to(repo)).write_bytes(file.read_bytes())
    code = f"from setuptools import build_meta\nprint(build_meta.build_wheel({str(tmp_path)!r}))"
    done = run_python(code, source)
    assert done.returncode == 0, done.stderr[-2000:]
    names = zipfile.ZipFile(tmp_path / done.stdout.split()[-1]).namelist()
    expected = {f"medssr_dist/kernels/{file.name}" for file in (repo / "kernels").glob("*.py")}
    assert expected <= set(names)
    assert not [name for name in names if name.startswith("kernels/")]


def test_only_torch_and_triton_are_imported(repo):
    allowed = set(sys.stdlib_module_names) | {"torch", "triton"}
    for file in (repo / "kernels").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            wrong = [n for n in names if n.split(".")[0] not in allowed and not n.startswith("medssr_dist.kernels")]
            assert not wrong, f"{file.name}: {wrong}"
