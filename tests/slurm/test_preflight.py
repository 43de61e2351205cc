"""The preflight on a real Slurm of two hosts: it reads facts from Slurm, and the hosts connect over their own network.

Also a planted API key: Slurm is one more place that could show it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import yaml
from config_builder import write_config
from preflight_config import EIGHT_GPUS
from process_list import command_lines
from slurm_cluster import SlurmCluster, why_not

from medssr_dist.commands.doctor.node_report import read_reports
from medssr_dist.config.load import merge_sections

pytestmark = [pytest.mark.slurm, pytest.mark.skipif(bool(why_not()), reason=str(why_not()))]
# A job that only writes questions needs neither GPUs nor imports that take a minute.
JOB = """#!/bin/bash
doctor=({python} -m medssr_dist.cli doctor --step synthesize --config {config} --run-dir {folder}/run)
cd {repo}
srun --ntasks-per-node=1 "${{doctor[@]}}" --node --wait 60 --out {folder}/out
"${{doctor[@]}}" --gather {folder}/out
"""


@pytest.fixture(scope="module")
def cluster(cluster) -> SlurmCluster:
    """The cluster with an interface on each node that reaches no other node."""
    for number, node in enumerate(cluster.nodes.values(), start=1):
        for command in (
            "link add ib0 type veth peer name nowhere",
            f"addr add 10.99.{number}.1/16 dev ib0",
            "link set ib0 up",
            "link set nowhere up",
        ):
            done = node.run("ip", *command.split())
            assert done.returncode == 0, done.stderr
    return cluster


@pytest.fixture
def preflight(cluster, repo, tmp_path):
    """Submit the preflight of a two-node job. Returns its exit code, its output and its folder of reports."""
    offline = {"synthesis": {"endpoints": [{"base_url": "offline-teacher", "model": "m"}]}}
    config = write_config(tmp_path / "config.yaml", **merge_sections(EIGHT_GPUS, offline))
    script = tmp_path / "job.sh"
    script.write_text(JOB.format(python=sys.executable, config=config, folder=tmp_path, repo=repo))

    def submit(**env: str) -> tuple[str, str, Path]:
        env |= {"MEDSSR_CACHE": os.environ.get("MEDSSR_CACHE", str(tmp_path / "cache"))}
        job = cluster.sbatch("--nodes=2", "--time=30", f"--output={tmp_path}/job.out", script, **env)
        ended = cluster.wait(job)
        return ended["ExitCode"], (tmp_path / "job.out").read_text(), tmp_path / "out"

    return submit


def test_the_nodes_of_a_job_meet_and_its_limit_is_known(preflight):
    code, text, out = preflight()
    assert code == "0:0", text
    assert "pass  nodes        n1 10.77.0.2, n2 10.77.0.3" in text
    assert "1 other nodes reached [n1; all 2 pass]" in text
    assert "min left of the job's limit" in text
    assert sorted(file.name for file in out.iterdir()) == ["n1.address.json", "n1.json", "n2.address.json", "n2.json"]


def test_an_interface_without_a_route_to_other_nodes_fails(preflight):
    code, text, out = preflight(MEDSSR_IFNAME="ib0")
    assert code == "2:0", text
    for node, other, address in (("n1", "n2", "10.99.2.1"), ("n2", "n1", "10.99.1.1")):
        found = read_reports(out)[node].results["network"]
        assert found.status == "fail" and f"cannot reach {other} at {address}" in found.detail
        assert "MEDSSR_IFNAME" in found.fix and "eth0 10.77.0." in found.fix
    assert "; network: n1: cannot reach n2 at 10.99.2.1" in text.splitlines()[-1]


def test_what_to_ask_for_is_read_from_sinfo(cluster):
    show = "from medssr_dist.commands.doctor.slurm_settings import list_partitions; print(list_partitions())"
    done = cluster.login.run(sys.executable, "-c", show, env=cluster.env)
    assert done.stdout.strip() == "[Partition(name='main', nodes=2, gpus=0, seconds=None)]", done.stderr


@pytest.mark.parametrize("source", [pytest.param("environment", marks=pytest.mark.slow), "file"])
def test_a_planted_key_is_in_no_output_of_slurm_and_no_file(cluster, repo, tmp_path, source):
    """The job of the first step uses the key; only the user may read the files of the job."""
    key_file, key, run = tmp_path / "api_key", "sk-planted-0123456789abcdef", tmp_path / "run"
    key_file.touch(mode=0o600)
    key_file.write_text(key)
    named = "${PLANTED_KEY}" if source == "environment" else f"file:{key_file}"
    endpoints = [{"base_url": "offline-teacher", "model": "m", "api_key": named}]
    synthesis = {"accepted": 6, "alpha": 0.0, "endpoints": endpoints}
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"extends": str(repo / "configs" / "smollm2_cpu.yaml"), "synthesis": synthesis}))
    env = {"CONFIG": str(config), "RUN_DIR": str(run), "MEDSSR_HOME": str(repo), "MEDSSR_PYTHON": sys.executable}
    job = cluster.sbatch(f"--output={run}.out", repo / "slurm" / "synthesize.sh", **env, PLANTED_KEY=key)
    shown = [""]

    def has_ended() -> bool:
        shown[0] += command_lines() + cluster.slurm("scontrol", "show", "job", job) + cluster.slurm("squeue", "--long")
        return cluster.state(job) in ("COMPLETED", "FAILED")

    cluster.until(has_ended, f"job {job} has ended", within_s=300)
    log = Path(f"{run}.out").read_text()
    assert cluster.state(job) == "COMPLETED", log
    assert "synthesize.sh" in shown[0] and key not in shown[0] + log
    written = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    assert run / "synthesis" / "questions.jsonl" in written and run / "attempts" / "0001" / "launch.log" in written
    assert [file for file, data in written.items() if key.encode() in data] == []
    private = (Path(f"{run}.out"), run, *run.rglob("*"))
    assert [path for path in private if path.stat().st_mode & 0o077] == []
