"""The files of a site: env.d is sourced as in the batch scripts; both images are built from the same parts."""

import re
import shlex
import subprocess

import pytest

EXPORTED = ("MEDSSR_CACHE", "HF_HOME", "MEDSSR_SCRATCH", "MEDSSR_IFNAME")


def sourced(file, tmp_path) -> dict[str, str]:
    """Return bash's variables after it has sourced `file` with `set -euo pipefail`, for a user without modules."""
    shown = "; ".join(f'echo "{name}=${{{name}-}}"' for name in (*EXPORTED, "VENV", "MEDSSR_PYTHON"))
    script = f"set -euo pipefail; MEDSSR_SRUN=() MEDSSR_PREFIX=(); source {shlex.quote(str(file))}; {shown}; "
    script += 'echo "PREFIX=${MEDSSR_PREFIX[*]-}"; echo "SRUN=${MEDSSR_SRUN[*]-}"'
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "USER": "ada", "MEDSSR_HOME": "/home/ada/medssr"}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    return dict(line.split("=", 1) for line in done.stdout.splitlines())


@pytest.mark.parametrize("name", ["template", "example_modules", "example_apptainer"])
def test_a_file_of_env_d_can_be_sourced(repo, tmp_path, name):
    found = sourced(repo / "launch" / "env.d" / f"{name}.sh", tmp_path)
    if name == "template":
        assert set(found.values()) == {""}
    else:
        assert all(found[variable] for variable in EXPORTED)


def test_every_file_of_env_d_is_tested(repo):
    names = {file.stem for file in (repo / "launch" / "env.d").glob("*.sh")}
    assert names == {"template", "example_modules", "example_apptainer"}


def test_the_container_is_the_prefix_of_each_command(repo, tmp_path):
    found = sourced(repo / "launch" / "env.d" / "example_apptainer.sh", tmp_path)
    words = shlex.split(found["PREFIX"])
    assert words[:3] == ["apptainer", "exec", "--nv"] and words[-1] == "/project/ada/medssr.sif"
    assert words[words.index("--bind") + 1] == "/project/ada,/home/ada/medssr,/tmp"
    assert found["MEDSSR_PYTHON"] == "/opt/medssr/bin/python"


def test_both_images_are_built_from_the_same_parts(repo):
    folder = repo / "launch" / "containers"
    docker, apptainer = (folder / "Dockerfile").read_text(), (folder / "medssr.def").read_text()
    packages = [re.search(r"--no-install-recommends \\\n([^\n&\\]*)", text)[1].split() for text in (docker, apptainer)]
    assert packages[0] == packages[1]
    base = re.search(r"^From: (\S+)$", apptainer, re.MULTILINE)[1]
    assert f"ARG BASE={base}\n" in docker
    for text in (docker, apptainer):
        assert "VENV=/opt/medssr launch/install.sh" in text and "pip install" not in text
