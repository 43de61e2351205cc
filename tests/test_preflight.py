"""`medssr doctor` as preflight: arithmetic, time, nodes that meet over real sockets, and the table of all of them."""

import json
import os
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import yaml

from medssr_dist.config import Config
from medssr_dist.config_io import load_config
from medssr_dist.doctor import CHECKS, LOGIN, inputs, run_check, software, storage
from medssr_dist.doctor.arithmetic import compare, fit
from medssr_dist.doctor.forecast import walltime
from medssr_dist.doctor.gather import gather, merge
from medssr_dist.doctor.result import Result, print_table
from medssr_dist.doctor.slurm import Partition, job_hosts, parse_partition, parse_time, seconds_left
from medssr_dist.errors import EXIT_BAD_INPUT, InputError
from medssr_dist.jsonl import read_json, write_json
from medssr_dist.launch.timings import FIRST_ANSWER
from medssr_dist.run_dir import open_run

TREE = {
    "policy": {"model": "no/such-model"},
    "synthesis": {
        "accepted": 40,
        "alpha": 0.0,
        "seeds": ["hpo:seeds"],
        "endpoints": [{"base_url": "http://127.0.0.1:9/v1", "model": "m"}],
    },
    "voting": {"engines": 8},
    "training": {
        "ranks_per_node": 6,
        "engines": 2,
        "stage1": {"prompts_per_step": 6, "samples_per_prompt": 8},
        "stage2": {"enabled": False},
    },
}


def config(**sections) -> Config:
    return Config.model_validate({key: value | sections.get(key, {}) for key, value in TREE.items()})


@pytest.fixture(autouse=True)
def outside_slurm(monkeypatch):
    """No job, and none of our own variables, whatever this test runs in."""
    for name in [name for name in os.environ if name.startswith(("SLURM", "MEDSSR_", "RAY_ADDRESS"))]:
        monkeypatch.delenv(name)


# --- what Slurm says


def test_slurm_times():
    texts = ["1-02:00:05", "2:00:05", "00:30", "59:59", "UNLIMITED", "NOT_SET", ""]
    assert [parse_time(text) for text in texts] == [93605, 7205, 30, 3599, None, None, None]


def test_partitions():
    assert parse_partition("gpu|16|gpu:h100:8(S:0-1)|2-00:00:00") == Partition("gpu", 16, 8, 172800)
    assert parse_partition("old|4|gpu:4,nvme:1|infinite") == Partition("old", 4, 4, None)
    assert parse_partition("cpu|9|(null)|1:00:00").gpus == 0


def test_hosts_of_the_job(monkeypatch):
    assert len(job_hosts()) == 1
    monkeypatch.setenv("MEDSSR_NODES", "n1,n2 n3")
    assert job_hosts() == ["n1", "n2", "n3"]


def test_the_limit_is_the_jobs_own(monkeypatch):
    assert seconds_left() is None
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(time.time() + 3600))
    assert 3000 < seconds_left() <= 3600


# --- GPU arithmetic


@pytest.mark.parametrize(
    ("gpus", "training", "status", "said"),
    [
        ({"n1": 8}, {}, "pass", "voting engines 8, training ranks 6, rollout engines 2: 8 at once; 8 GPUs are there"),
        ({"n1": 8, "n2": 8}, {}, "pass", "(n1 8, n2 8); 8 stay idle"),
        ({"n1": 4, "n2": 2}, {}, "fail", "training.nodes = 1 need 6 each"),
        ({"n1": 6}, {}, "fail", "2 are missing"),
        ({"n1": 8, "n2": 4}, {"nodes": 2}, "fail", "training.nodes = 2 need 6 each"),
        (
            {"n1": 8},
            {"tensor_parallel_size": 16},
            "fail",
            "training.tensor_parallel_size = 16 needs so many on one node",
        ),
        ({"n1": None, "n2": None}, {}, "pass", "as logical GPUs on 2 nodes"),
    ],
)
def test_gpu_arithmetic(gpus, training, status, said):
    result = compare(config(training=TREE["training"] | training), gpus)
    assert result.status == status and said in result.detail, result
    assert bool(result.fix) == (status != "pass")


def test_missing_gpus_may_be_in_a_cluster_that_runs_already():
    assert compare(config(), {"n1": 2}, joins_ray=True).status == "warn"


def test_job_size_names_what_to_ask_slurm_for(monkeypatch):
    small, large = Partition("small", 9, 4, None), Partition("large", 2, 8, None)
    assert "sbatch --partition=large --nodes=1 --gpus-per-node=8" in fit(config(), [small, large]).detail
    assert "small 9 x 4" in fit(config(), [small]).detail and fit(config(), [small]).status == "fail"
    assert fit(config(), [Partition("cpu", 9, 0, None)]).status == "warn"
    monkeypatch.setenv("MEDSSR_DEVICE", "cpu")
    assert fit(config(), []).status == "pass"


# --- devices and limits


def test_driver_lines():
    text = "NVIDIA H100 80GB HBM3, 550.54.15, 3\nNVIDIA A100, SXM, 550.54.15, [N/A]\n"
    assert software.parse_driver(text) == [
        ("NVIDIA H100 80GB HBM3", "550.54.15", 3),
        ("NVIDIA A100, SXM", "550.54.15", 0),
    ]


def test_gpus_that_slurm_gave_and_torch_cannot_see_fail(monkeypatch, tmp_path):
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "4")
    monkeypatch.setattr("medssr_dist.runtime.device.on_gpu", lambda: False)
    result = run_check(CHECKS["devices"], config(), tmp_path)
    assert result.status == "fail" and "Slurm gave 4 to this node" in result.detail and "--nv" in result.fix
    monkeypatch.setenv("MEDSSR_DEVICE", "cpu")
    assert "flash attention needs CUDA" in run_check(CHECKS["devices"], config(), tmp_path).detail


def test_an_import_that_fails_is_named(monkeypatch, tmp_path):
    (tmp_path / "broken_library.py").write_text("raise ImportError('libcuda.so.1: cannot open shared object file')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(software, "_IMPORTED", ("json", "broken_library"))
    result = run_check(software.imports, config(), tmp_path)
    assert result.status == "fail"
    assert result.detail == "cannot import broken_library: ImportError: libcuda.so.1: cannot open shared object file"


def test_limits_name_the_ulimit_to_raise(monkeypatch, tmp_path):
    small = {software.resource.RLIMIT_NOFILE: (1024, 4096), software.resource.RLIMIT_NPROC: (512, 512)}
    monkeypatch.setattr(software.resource, "getrlimit", lambda kind: small.get(kind, (-1, -1)))
    result = run_check(CHECKS["limits"], config(), tmp_path)
    assert (result.status, result.fix) == ("warn", "ulimit -n 65536; ulimit -u 65536")
    small[software.resource.RLIMIT_NOFILE] = (256, 4096)
    assert run_check(CHECKS["limits"], config(), tmp_path).status == "fail"


# --- storage


def test_disk_leaves_nothing_and_few_inodes_fail(monkeypatch, tmp_path):
    assert "32 files written" in run_check(CHECKS["disk"], config(), tmp_path / "run").detail
    assert list(tmp_path.iterdir()) == []
    room = SimpleNamespace(f_files=10**6, f_favail=9, f_bavail=10**9, f_blocks=10**9, f_bfree=10**9, f_frsize=512)
    monkeypatch.setattr(storage.os, "statvfs", lambda path: room)
    result = run_check(CHECKS["disk"], config(), tmp_path / "run")
    assert result.status == "fail" and "9 inodes free" in result.detail


@pytest.mark.parametrize(("mode", "status"), [(0o700, "pass"), (0o750, "warn"), (0o770, "fail"), (0o777, "fail")])
def test_a_run_directory_that_others_may_enter(tmp_path, mode, status):
    run = tmp_path / "run"
    run.mkdir()
    run.chmod(mode)
    result = run_check(CHECKS["private"], config(), run)
    assert result.status == status and (status == "pass" or result.fix == f"chmod 700 {run}")


def test_scratch_that_is_too_long_or_absent_fails(monkeypatch, tmp_path):
    monkeypatch.setenv("MEDSSR_SCRATCH", str(tmp_path / "absent"))
    assert "cannot write in" in run_check(CHECKS["temp"], config(), tmp_path).detail
    long = tmp_path / ("long" * 12)
    long.mkdir()
    monkeypatch.setenv("MEDSSR_SCRATCH", str(long))
    result = run_check(CHECKS["temp"], config(), tmp_path)
    assert result.status == "fail" and "characters long" in result.detail and "MEDSSR_SCRATCH" in result.fix


def test_clocks_apart():
    assert [storage.clock_result(apart, "x").status for apart in (0.1, 5.0, 100.0)] == ["pass", "warn", "fail"]


# --- endpoints


def test_an_endpoint_behind_a_proxy_and_one_that_is_not_needed_any_more(monkeypatch, tmp_path):
    far = config(synthesis=TREE["synthesis"] | {"endpoints": [{"base_url": "https://api.invalid/v1", "model": "m"}]})
    assert run_check(inputs.endpoints, far, tmp_path).status == "fail"
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        assert "(proxy for api.invalid) answers" in run_check(inputs.endpoints, far, tmp_path).detail
    assert run_check(inputs.endpoints, far, tmp_path).status == "fail"
    with open_run(tmp_path / "run", far) as run:
        run.begin_step("synthesize", far, {})
        run.finish_step("synthesize")
    assert run_check(inputs.endpoints, far, tmp_path / "run") == Result("pass", "the questions are written already")


# --- time


@pytest.fixture
def voted(tmp_path):
    """A run that has voted on 10 of 40 questions in 100 s, and whose only attempt took 30 s to start."""
    settings = config()
    with open_run(tmp_path / "run", settings) as run:
        for step in ("synthesize", "vote"):
            run.begin_step(step, settings, {})
        run.finish_step("synthesize")
    run.voting.mkdir()
    (run.voting / "labeled.jsonl").write_text('{"kept": true}\n' * 10)
    write_json(run.root / "clock.json", {"synthesize": 5.0, "vote": 100.0})
    write_json(run.root / "attempts" / "0001" / "timings.json", {"Ray on every node": 20.0, FIRST_ANSWER: 30.0})
    return run.root


def test_time_is_unknown_before_anything_was_timed(tmp_path):
    result = walltime(config(), tmp_path / "run")
    assert result.status == "pass" and "unknown for synthesize, vote, stage1" in result.detail


@pytest.mark.parametrize(
    ("left", "status", "said"),
    [(7200, "pass", "vote about 5 min"), (180, "warn", "about 2 attempts"), (35, "fail", "no attempt would get past")],
)
def test_time_against_the_limit(voted, monkeypatch, left, status, said):
    monkeypatch.setattr("medssr_dist.doctor.forecast.seconds_left", lambda: left)
    result = walltime(config(), voted)
    assert result.status == status and said in result.detail + result.fix, result
    assert "unknown for stage1" in result.detail


def test_rates_of_an_earlier_run(voted, tmp_path):
    detail = walltime(config(), tmp_path / "new", rates_from=voted).detail
    assert "vote about 7 min" in detail and "unknown for synthesize, stage1" in detail


# --- nodes that meet

NODE = """
import sys
from pathlib import Path
from medssr_dist.config_io import load_config
from medssr_dist.doctor.node import check_node
out, wait_s, config_file = Path(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3])
check_node(load_config(config_file), out.parent, out, wait_s, {})
"""


@pytest.fixture
def node(tmp_path):
    """Start the preflight of a node of that name, at an address of its own on loopback."""
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(TREE))

    def start(name: str, number: int, wait_s: float = 60, **env: str) -> subprocess.Popen:
        env = {"SLURMD_NODENAME": name, "MEDSSR_NODES": "n1 n2", "MEDSSR_DEVICE": "cpu"} | env
        env = {"MEDSSR_NODE_IP": f"127.0.0.{number + 1}"} | env
        command = [sys.executable, "-c", NODE, str(tmp_path / "out"), str(wait_s), str(file)]
        env = {key: value for key, value in (os.environ | env).items() if value}
        return subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)

    return start


def ended(*nodes: subprocess.Popen) -> None:
    for node in nodes:
        _, errors = node.communicate(timeout=300)
        assert node.returncode == 0, errors


def test_two_nodes_meet_and_the_head_gathers_one_table(node, tmp_path, monkeypatch, capsys):
    ended(node("n1", 1), node("n2", 2))
    monkeypatch.setenv("MEDSSR_NODES", "n1 n2")
    assert gather(config(), tmp_path, tmp_path / "out", {}) == 0
    text = capsys.readouterr().out
    assert "pass  nodes        n1 127.0.0.2, n2 127.0.0.3" in text
    assert "1 other nodes reached [n1; all 2 pass]" in text and "(n1, n2)" in text
    monkeypatch.setenv("MEDSSR_NODES", "n1 n2 n3")
    assert gather(config(), tmp_path, tmp_path / "out", {}) == EXIT_BAD_INPUT
    assert "fail  nodes        no report from n3" in capsys.readouterr().out


def network_of(tmp_path, name: str) -> dict:
    return read_json(tmp_path / "out" / f"{name}.json")["results"]["network"]


def test_a_node_that_does_not_come_is_named(node, tmp_path):
    ended(node("n1", 1, wait_s=0.5))
    found = network_of(tmp_path, "n1")
    assert found["status"] == "fail" and found["detail"].startswith("n2 did not come to")
    assert "not on a file system that all nodes share" in found["fix"]


def test_a_node_that_cannot_be_reached_is_named_with_its_address(node, tmp_path):
    with socket.create_server(("127.0.0.3", 0)) as closed:
        port = closed.getsockname()[1]
    write_json(tmp_path / "out" / "n2.address.json", {"address": "127.0.0.3", "port": port, "token": "x"})
    ended(node("n1", 1, wait_s=0.5))
    found = network_of(tmp_path, "n1")
    assert "no way to n2 at 127.0.0.3 ([Errno 111] Connection refused)" in found["detail"]
    assert "MEDSSR_IFNAME" in found["fix"] and "lo 127.0.0.1" in found["fix"]


def test_another_machine_with_the_same_address_is_not_taken_for_the_node(node, tmp_path):
    """As where all nodes have a bridge 172.17.0.1."""
    n2 = node("n2", 1, wait_s=5)
    ended(n2)
    here = node("n1", 1, wait_s=5)
    write_json(tmp_path / "out" / "n2.json", {})
    with socket.create_server(("127.0.0.3", 0)) as other:
        wrong = {"address": "127.0.0.3", "port": other.getsockname()[1], "token": "x"}
        write_json(tmp_path / "out" / "n2.address.json", wrong)
        connection, _ = other.accept()
        connection.sendall(b'{"token": "y", "time": 0}')
        connection.close()
        ended(here)
    assert "another machine answers at this address" in network_of(tmp_path, "n1")["detail"]


def test_an_interface_that_is_not_there_is_reported_at_once(node, tmp_path):
    ended(node("n1", 1, MEDSSR_NODE_IP="", MEDSSR_IFNAME="ib9"))
    found = network_of(tmp_path, "n1")
    assert "MEDSSR_IFNAME = 'ib9'" in found["detail"] and "lo" in found["detail"]


def test_ports_of_the_job_that_are_taken_are_named(node, tmp_path):
    with socket.create_server(("127.0.0.2", 0)) as taken:
        port = taken.getsockname()[1]
        ended(node("n1", 1, MEDSSR_NODES="n1", MEDSSR_PORTS=f"{port}-{port}"))
    found = read_json(tmp_path / "out" / "n1.json")["results"]["ports"]
    assert found["status"] == "fail" and f"are taken on 127.0.0.2: {port}" in found["detail"]


def test_a_second_report_into_the_same_folder_is_refused(node, tmp_path):
    ended(node("n1", 1, MEDSSR_NODES="n1"))
    again = node("n1", 1, MEDSSR_NODES="n1")
    assert "is there already; give a new folder" in again.communicate()[1]


# --- the table of all nodes


def test_the_last_line_says_what_failed_and_its_fix(capsys):
    rows = {"a": Result("pass", "fine"), "b": Result("fail", "full", "free it"), "c": Result("warn", "w", "f")}
    assert print_table(rows.items()) == EXIT_BAD_INPUT
    assert capsys.readouterr().out.splitlines()[-1] == "1 pass, 1 warn, 1 fail; b: full (fix: free it)"
    assert print_table([("a", Result("pass", "fine"))]) == 0


def report(host: str, **fields) -> dict:
    passed = {"status": "pass", "detail": "fine", "fix": ""}
    return {
        "host": host, "address": "10.0.0.1", "gpus": 8, "model": "m", "versions": {"torch": "2", "ray": "2"},
        "clock_offsets": {}, "results": {"packages": passed, "disk": passed},
    } | fields  # fmt: skip


def test_a_check_that_fails_on_some_nodes_is_one_row_with_their_names():
    bad = {"disk": {"status": "fail", "detail": "full", "fix": "free it"}}
    reports = {host: report(host, results=report(host)["results"] | (bad if host != "n1" else {}))
               for host in ("n1", "n2", "n3")}  # fmt: skip
    assert merge(reports) == [
        ("packages", Result("pass", "fine [n1; all 3 pass]")),
        ("disk", Result("fail", "n2, n3: full", "free it")),
    ]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"versions": {"torch": "2", "ray": "3"}}, "fail  same code    n1 has ray 2, n2 ray 3"),
        ({"model": "other"}, "fail  same model   n1 has m, n2 other"),
        ({"clock_offsets": {"n1": -90.0}}, "fail  clocks       90.0 s apart from one another at most (n2, n1)"),
        ({"gpus": 2}, "10 GPUs are there (n1 8, n2 2); training.nodes = 2 need 6 each"),
    ],
)
def test_what_only_all_nodes_together_show(tmp_path, capsys, fields, said):
    for name, more in (("n1", {}), ("n2", fields)):
        write_json(tmp_path / f"{name}.json", report(name, **more))
    settings = config(training=TREE["training"] | {"nodes": 2})
    assert gather(settings, tmp_path, tmp_path, {}) == EXIT_BAD_INPUT
    assert said in capsys.readouterr().out


def test_nothing_to_gather(tmp_path):
    with pytest.raises(InputError, match="holds no report; run `medssr doctor --node"):
        gather(config(), tmp_path, tmp_path, {})


# --- the command


def test_the_forms_of_the_command(medssr, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps(TREE))
    assert load_config(file) == config()
    there = ["doctor", "--config", file, "--run-dir", tmp_path / "run"]
    assert medssr(*there, "--login", "--dry-run").stdout.split("\n  ")[1:] == [
        *list(LOGIN)[:-1],
        f"{list(LOGIN)[-1]}\n",
    ]
    only_questions = medssr(*there, "--step", "synthesize", "--dry-run").stdout.split()
    assert "endpoints" in only_questions and not {"devices", "gpus", "model"} & set(only_questions)
    only_votes = medssr(*there, "--step", "vote", "--dry-run").stdout.split()
    assert {"devices", "gpus", "model"} <= set(only_votes) and "endpoints" not in only_votes
    refused = medssr(*there, "--node", check=False)
    assert refused.returncode == EXIT_BAD_INPUT and "needs --out DIR" in refused.stderr
    refused = medssr(*there, "--gather", tmp_path / "nothing", check=False)
    assert refused.returncode == EXIT_BAD_INPUT and "holds no report" in refused.stderr
