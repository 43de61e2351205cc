"""The built package: it has every file that the code reads, and its command works in an empty folder."""

import os
import shutil
import subprocess
import sys
import zipfile

import pytest
from places import REPO

NEEDED = [
    "configs/demo_cpu.yaml",
    "configs/benchmarks/paper.yaml",
    "configs/prompts/system_turn.yaml",
    "slurm/common.sh",
    "slurm/medssr_ssl.sh",
    "launch/install.sh",
    "launch/env.d/template.sh",
    "config/prices.yaml",
    "data/prompts/reason.yaml",
    "report/page.html.jinja",
    "report/page.css",
    "report/page.js",
    "synthesis/question_prompt.yaml",
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for folder in ("medssr_dist", "configs", "kernels", "launch", "slurm"):
        shutil.copytree(REPO / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPO / file, source)
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(target), "."]
    subprocess.run(build, cwd=source, check=True)
    return next(target.glob("*.whl"))


def test_the_wheel_has_configs_scripts_and_prompts(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert [name for name in NEEDED if f"medssr_dist/{name}" not in names] == []
    folders = {folder: {file.name for file in (REPO / folder).glob("*.*")} for folder in ("configs", "slurm")}
    for folder, files in folders.items():
        assert {name for name in files if f"medssr_dist/{folder}/{name}" not in names} == set()


def test_the_installed_command_works_in_an_empty_folder(wheel, tmp_path):
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    zipfile.ZipFile(wheel).extractall(site)
    command = [sys.executable, "-m", "medssr_dist.cli", "config", "show", "--config", "demo_cpu", "voting.samples=3"]
    env = os.environ | {"PYTHONPATH": str(site)}
    done = subprocess.run(command, cwd=empty, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"# {site / 'medssr_dist' / 'configs' / 'demo_cpu.yaml'}" in done.stdout
    assert "voting.samples = 3" in done.stdout and list(empty.iterdir()) == []
