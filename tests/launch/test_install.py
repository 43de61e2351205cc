"""launch/install.sh refuses what cannot work before it downloads anything."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest
from places import REPO


@pytest.fixture
def install(tmp_path):
    """Return a function that runs a copy of install.sh with fake programs, by name, in front of the real ones."""
    (tmp_path / "launch").mkdir()
    shutil.copy(REPO / "launch" / "install.sh", tmp_path / "launch")
    programs = tmp_path / "bin"
    programs.mkdir()

    def run(kind: str, **fakes: str) -> subprocess.CompletedProcess:
        for name, output in fakes.items():
            file = programs / name.replace("_", "-")
            file.write_text(f"#!/bin/sh\necho '{output}'\n")
            file.chmod(0o755)
        env = {name: value for name, value in os.environ.items() if name != "PYTHON"}
        env |= {"PATH": f"{programs}:{os.environ['PATH']}", "VENV": str(tmp_path / "venv")}
        command = ["bash", str(tmp_path / "launch" / "install.sh"), kind]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        assert not (tmp_path / "venv").exists()
        return done

    return run


@pytest.mark.parametrize(
    ("kind", "fakes", "said"),
    [
        ("cuda", {"nvidia_smi": "570.86.10"}, "the GPU driver is 570.86.10; torch for CUDA 13.0 needs 580 or newer"),
        ("cpu", {"python3": "3.13"}, "python3 is Python 3.13; set PYTHON to a Python 3.11 or 3.12"),
        ("tpu", {}, "unknown set 'tpu'; give cpu or cuda"),
    ],
)
def test_what_cannot_work_is_one_line(install, kind, fakes, said):
    done = install(kind, **fakes)
    assert (done.returncode, done.stderr) == (2, f"install.sh: {said}\n")
