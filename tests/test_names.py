"""House rules that a linter does not check: unique names, typed results, print for a command's output only."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest
from places import REPO

PACKAGE = [file for folder in ("medssr_dist", "kernels", "launch") for file in sorted((REPO / folder).rglob("*.py"))]
TESTS = sorted((REPO / "tests").rglob("*.py"))
SHARED_FILE_NAMES = {"__init__.py", "__main__.py"}
BENCH_FILE_NAMES = {"run.py", "report.py", "peers.py"}  # each folder of bench/ has them
LONGEST_TEST_NAME = 60
# Modules that print what the user asked a command for, or what a program that starts them reads.
PRINTING = {
    "cli.py",
    "pipeline.py",
    "commands",
    "bench",
    "mini_policy/__main__.py",
    "offline_teacher/serve.py",
    "voting/merge.py",
    "launch/__main__.py",
    "launch/attempts.py",
    "launch/ray_watch.py",
    "launch/supervisor.py",
}


def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def place(file: Path) -> str:
    return str(file.relative_to(REPO)).removeprefix("medssr_dist/")


def is_public(name: str) -> bool:
    return not name.startswith("_")


def bare_containers(annotation: ast.AST) -> list[str]:
    """`dict` and `tuple` in an annotation that do not say what they hold: ["dict"] for `list[dict]`."""
    described = {id(node.value) for node in ast.walk(annotation) if isinstance(node, ast.Subscript)}
    names = [node for node in ast.walk(annotation) if isinstance(node, ast.Name)]
    return [name.id for name in names if name.id in ("dict", "tuple") and id(name) not in described]


def public_functions(tree: ast.Module) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Public functions of a module and public methods of its public classes."""
    bodies = [tree.body] + [node.body for node in tree.body if isinstance(node, ast.ClassDef) and is_public(node.name)]
    functions = [node for body in bodies for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [function for function in functions if is_public(function.name)]


def print_lines(tree: ast.Module) -> list[int]:
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]


def test_no_two_public_classes_have_one_name():
    places = defaultdict(list)
    for file in PACKAGE:
        for node in parse(file).body:
            if isinstance(node, ast.ClassDef) and is_public(node.name):
                places[node.name].append(place(file))
    assert {name: files for name, files in places.items() if len(files) > 1} == {}


def test_no_two_modules_have_one_name():
    places = defaultdict(list)
    for file in PACKAGE:
        in_bench = place(file).startswith("bench/")
        if file.name not in SHARED_FILE_NAMES and not (in_bench and file.name in BENCH_FILE_NAMES):
            places[file.name].append(place(file))
    assert {name: files for name, files in places.items() if len(files) > 1} == {}


def test_no_test_name_is_too_long_to_read():
    functions = [
        (place(file), node.name)
        for file in TESTS
        for node in ast.walk(parse(file))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    ]
    assert [found for found in functions if len(found[1]) > LONGEST_TEST_NAME] == []


def test_the_formatter_formats_everything():
    marker = "fmt: " + "skip"
    assert [place(file) for file in [*PACKAGE, *TESTS] if marker in file.read_text(encoding="utf-8")] == []


def test_no_public_function_returns_a_bare_container():
    found = [
        f"{place(file)}:{function.lineno} {function.name} -> {ast.unparse(function.returns)}"
        for file in PACKAGE
        for function in public_functions(parse(file))
        if function.returns and bare_containers(function.returns)
    ]
    assert found == []


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        ("dict", ["dict"]),
        ("list[dict]", ["dict"]),
        ("tuple | None", ["tuple"]),
        ("dict[str, Path]", []),
        ("tuple[Tensor, Tensor]", []),
        ("dict[str, tuple]", ["tuple"]),
    ],
)
def test_bare_containers_are_seen(annotation, expected):
    assert bare_containers(ast.parse(annotation, mode="eval")) == expected


def test_only_a_commands_own_output_is_printed():
    found = [
        f"{place(file)}:{line}"
        for file in PACKAGE
        if not any(place(file) == name or place(file).startswith(f"{name}/") for name in PRINTING)
        for line in print_lines(parse(file))
    ]
    assert found == []
