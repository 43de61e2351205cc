"""The preflight of the nodes of a job: they connect over real sockets; the head prints one table of reports."""

import os
import socket
import subprocess
import sys
from dataclasses import replace

import pytest
from config_builder import write_config
from preflight_config import EIGHT_GPUS, eight_gpu_config, outside_slurm  # noqa: F401

from medssr_dist.commands.doctor.check_result import CheckResult, ResultRow, print_table
from medssr_dist.commands.doctor.gather import gather_reports, merge_reports
from medssr_dist.commands.doctor.node_report import NodeAddress, NodeReport, read_reports
from medssr_dist.errors import EXIT_BAD_INPUT, InputError

# --- nodes that connect to each other

NODE = """
import sys
from pathlib import Path
from medssr_dist.config.load import load_config
from medssr_dist.commands.doctor.node import check_node
out, wait_s, config_file = Path(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3])
check_node(load_config(config_file), out.parent, out, wait_s, {})
"""


@pytest.fixture
def node(tmp_path):
    """Return a function that starts the preflight of a node, each at another loopback address."""
    file = write_config(tmp_path / "config.yaml", **EIGHT_GPUS)

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
    assert gather_reports(eight_gpu_config(), tmp_path, tmp_path / "out", {}) == 0
    text = capsys.readouterr().out
    assert "pass  nodes        n1 127.0.0.2, n2 127.0.0.3" in text
    assert "1 other nodes reached [n1; all 2 pass]" in text and " s apart from one another at most (n" in text
    monkeypatch.setenv("MEDSSR_NODES", "n1 n2 n3")
    assert gather_reports(eight_gpu_config(), tmp_path, tmp_path / "out", {}) == EXIT_BAD_INPUT
    assert "fail  nodes        no report from n3" in capsys.readouterr().out


def result_of(tmp_path, host: str, check: str = "network") -> CheckResult:
    return read_reports(tmp_path / "out")[host].results[check]


def test_a_node_that_does_not_come_is_named(node, tmp_path):
    ended(node("n1", 1, wait_s=0.5))
    found = result_of(tmp_path, "n1")
    assert found.status == "fail" and found.detail.startswith("n2 published no address in")
    assert "not on a file system that all nodes share" in found.fix


def test_a_node_that_cannot_be_reached_is_named_with_its_address(node, tmp_path):
    with socket.create_server(("127.0.0.3", 0)) as closed:
        port = closed.getsockname()[1]
    NodeAddress("127.0.0.3", port, token="x").write(tmp_path / "out", "n2")
    ended(node("n1", 1, wait_s=0.5))
    found = result_of(tmp_path, "n1")
    assert "cannot reach n2 at 127.0.0.3 ([Errno 111] Connection refused)" in found.detail
    assert "MEDSSR_IFNAME" in found.fix and "lo 127.0.0.1" in found.fix


@pytest.mark.parametrize(
    ("greeting", "problem"),
    [(b'{"token": "y", "time": 0}', "another machine answers at this address"), (b"[]" * 600, "its greeting")],
)
def test_a_wrong_machine_at_the_address_of_a_node_is_detected(node, tmp_path, greeting, problem):
    """This happens if all nodes have a bridge with the address 172.17.0.1."""
    n2 = node("n2", 1, wait_s=5)
    ended(n2)
    here = node("n1", 1, wait_s=5)
    with socket.create_server(("127.0.0.3", 0)) as other:
        NodeAddress("127.0.0.3", other.getsockname()[1], token="x").write(tmp_path / "out", "n2")
        connection, _ = other.accept()
        connection.sendall(greeting)
        connection.close()
        ended(here)
    assert problem in result_of(tmp_path, "n1").detail


def test_a_missing_interface_is_reported_without_waiting(node, tmp_path):
    ended(node("n1", 1, wait_s=3000, MEDSSR_NODE_IP="", MEDSSR_IFNAME="ib9"), node("n2", 2, wait_s=3000))
    assert result_of(tmp_path, "n2").detail.startswith("n1 published no address in")
    found = result_of(tmp_path, "n1")
    assert "MEDSSR_IFNAME = 'ib9'" in found.detail and "lo" in found.detail


def test_ports_of_the_job_that_are_taken_are_named(node, tmp_path):
    with socket.create_server(("127.0.0.2", 0)) as taken:
        port = taken.getsockname()[1]
        ended(node("n1", 1, MEDSSR_NODES="n1", MEDSSR_PORTS=f"{port}-{port}"))
    found = result_of(tmp_path, "n1", "ports")
    assert found.status == "fail" and f"are taken on 127.0.0.2: {port}" in found.detail


def test_a_second_report_into_the_same_folder_is_refused(node, tmp_path):
    ended(node("n1", 1, MEDSSR_NODES="n1"))
    again = node("n1", 1, MEDSSR_NODES="n1")
    assert "exists already; give a new folder" in again.communicate()[1]


# --- the table of all nodes


def test_the_last_line_of_the_table_has_failures_and_fixes(capsys):
    rows = {
        "a": CheckResult("pass", "fine"),
        "b": CheckResult("fail", "full", "free it"),
        "c": CheckResult("warn", "w", "f"),
    }
    assert print_table(ResultRow(name, result) for name, result in rows.items()) == EXIT_BAD_INPUT
    assert capsys.readouterr().out.splitlines()[-1] == "1 pass, 1 warn, 1 fail; b: full (fix: free it)"
    assert print_table([ResultRow("a", CheckResult("pass", "fine"))]) == 0


def report(host: str, **fields) -> NodeReport:
    fine = CheckResult("pass", "fine")
    passed = NodeReport(
        host=host,
        address="10.0.0.1",
        gpus=8,
        model="m",
        versions={"torch": "2", "ray": "2"},
        clock_offsets={},
        results={"packages": fine, "disk": fine},
    )
    return replace(passed, **fields)


def test_merge_gives_one_row_for_a_check_failing_on_some_nodes():
    full = {"packages": CheckResult("pass", "fine"), "disk": CheckResult("fail", "full", "free it")}
    reports = {"n1": report("n1"), "n2": report("n2", results=full), "n3": report("n3", results=full)}
    assert merge_reports(reports) == [
        ("packages", CheckResult("pass", "fine [n1; all 3 pass]")),
        ("disk", CheckResult("fail", "n2, n3: full", "free it")),
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
def test_checks_that_compare_all_nodes(tmp_path, capsys, fields, said):
    for name, more in (("n1", {}), ("n2", fields)):
        report(name, **more).write(tmp_path)
    settings = eight_gpu_config(training={"nodes": 2})
    assert gather_reports(settings, tmp_path, tmp_path, {}) == EXIT_BAD_INPUT
    assert said in capsys.readouterr().out


def test_gather_without_reports_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no report; run `medssr doctor --node"):
        gather_reports(eight_gpu_config(), tmp_path, tmp_path, {})
