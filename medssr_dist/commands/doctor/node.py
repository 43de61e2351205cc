"""`medssr doctor --node`: the preflight of one node of a job. All nodes run it at the same time.

Each node publishes its address in a folder of the run directory, which shows that the folder is shared. It then
connects to every other node, waits for their connections, and writes its results as `<node>.json`. `gather_reports`
judges them.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from medssr_dist.commands.doctor.check_result import Check, CheckResult, run_check, run_checks
from medssr_dist.commands.doctor.gpu_count import count_node_gpus
from medssr_dist.commands.doctor.node_report import NodeAddress, NodeReport, address_file, read_address, report_file
from medssr_dist.commands.doctor.slurm_settings import list_job_hosts, read_host_name
from medssr_dist.config.schema import Config
from medssr_dist.data.json_text import parse_json
from medssr_dist.data.records import parse_record
from medssr_dist.errors import InputError
from medssr_dist.run.directory import find_commit, list_versions
from medssr_dist.runtime.fingerprints import fingerprint_model
from medssr_dist.runtime.models import find_policy_on_disk
from medssr_dist.runtime.network import describe, find_node_address, list_interfaces

_CONNECT_TIMEOUT_S = 10.0
_POLL_S = 0.2
_SHOWN_PORTS = 5
_GREETING_BYTES = 1000


class _Greeting(NamedTuple):
    """What a node sends to everyone who connects: its token, and the time in seconds since 1970."""

    token: str
    time: float


def check_node(config: Config, run_dir: Path, out: Path, wait_s: float, checks: Mapping[str, Check]) -> None:
    """Run `checks`, connect to the other nodes of the job, and write `out`/<node>.json.

    Args:
        out: a folder on the file system that all nodes share; a new one for each attempt.
        wait_s: seconds to wait for nodes that do not appear.

    Raises:
        InputError: this node has already reported to `out`.
    """
    name, hosts = read_host_name(), list_job_hosts()
    if report_file(out, name).exists():
        raise InputError(f"{report_file(out, name)} exists already; give a new folder with --out")
    others = [host for host in hosts if host != name]
    try:
        address = find_node_address(others)
    except InputError as error:
        detail, _, fix = str(error).rpartition("; ")
        _make_report(config, name, "", {"network": CheckResult("fail", detail, fix)}, {}).write(out)
        return
    with _serve_greetings(address) as own:
        own.write(out, name)
        results = run_checks(checks, config, run_dir)
        results["ports"] = run_check(lambda config, run_dir: _check_ports(address), config, run_dir)
        meeting = _meet_nodes(out, address, others, wait_s)
        results["network"] = meeting.result
        _make_report(config, name, address, results, meeting.clock_offsets).write(out)
        present = [host for host in others if address_file(out, host).exists()]
        # A node that has not reported yet may still have to connect to this one.
        _wait_for(present, lambda host: report_file(out, host).exists(), wait_s)


def _make_report(
    config: Config, name: str, address: str, results: dict[str, CheckResult], clock_offsets: dict[str, float]
) -> NodeReport:
    return NodeReport(
        host=name,
        address=address,
        gpus=count_node_gpus(),
        model=_describe_model(config),
        versions={"commit": find_commit()} | list_versions(),
        clock_offsets=clock_offsets,
        results=results,
    )


def _describe_model(config: Config) -> str | None:
    """Return fingerprint and directory of the policy. The directory matters: the head sends its path to all nodes."""

    try:
        folder = find_policy_on_disk(config.policy)
    except InputError:  # the check of the model reports it
        return None
    return f"{fingerprint_model(folder)} in {folder}" if folder else None


@contextmanager
def _serve_greetings(address: str) -> Iterator[NodeAddress]:
    """Listen at a free port of `address`, and send a token and the time to everyone who connects."""
    token = secrets.token_hex(8)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(json.dumps(_Greeting(token, time.time())._asdict()).encode())

    with socketserver.ThreadingTCPServer((address, 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield NodeAddress(address, server.server_address[1], token)
        finally:
            server.shutdown()


class _Meeting(NamedTuple):
    """Result of connecting to all other nodes, and the clock of each minus the clock of this node in seconds."""

    result: CheckResult
    clock_offsets: dict[str, float]


def _meet_nodes(out: Path, address: str, others: list[str], wait_s: float) -> _Meeting:
    """Connect to each of `others` from `address`, at the address that it has published in `out`."""
    _wait_for(others, lambda host: address_file(out, host).exists() or report_file(out, host).exists(), wait_s)
    missing = [host for host in others if not address_file(out, host).exists()]
    offsets, failed = {}, []
    for host in (host for host in others if host not in missing):
        peer = read_address(out, host)
        try:
            offsets[host] = _measure_clock_offset(address, peer)
        except (OSError, ValueError, InputError) as error:
            failed.append(f"{host} at {peer.address} ({error or type(error).__name__})")
    here = describe(list_interfaces())
    if failed:
        fix = f"set MEDSSR_IFNAME to the interface that all nodes share (here: {here}), or open the firewall"
        return _Meeting(CheckResult("fail", f"cannot reach {', '.join(failed)} from {address}", fix), offsets)
    if missing:
        detail = f"{', '.join(missing)} published no address in {out} (waited at most {wait_s:g} s)"
        fix = "the node is down, or the run directory is not on a file system that all nodes share: see its log"
        return _Meeting(CheckResult("fail", detail, fix), offsets)
    met = f"{len(others)} other nodes reached" if others else "no other nodes"
    return _Meeting(CheckResult("pass", f"{address} ({here}); {met}"), offsets)


def _measure_clock_offset(address: str, peer: NodeAddress) -> float:
    """Return the clock of `peer` minus the clock of this node, in seconds.

    Raises:
        OSError: the peer cannot be reached.
        ValueError: another machine answers at its address.
        InputError: what answers there is no node of ours.
    """
    started = time.time()
    with socket.create_connection((peer.address, peer.port), _CONNECT_TIMEOUT_S, (address, 0)) as connection:
        answer = connection.makefile("rb").read(_GREETING_BYTES).decode("utf-8", "replace")
    greeting = parse_record(_Greeting, parse_json(answer, "its greeting"), "its greeting")
    if greeting.token != peer.token:
        raise ValueError("another machine answers at this address")
    return round(greeting.time - (started + time.time()) / 2, 3)


def _wait_for(hosts: list[str], is_ready: Callable[[str], bool], wait_s: float) -> None:
    """Wait until all `hosts` are ready, at most `wait_s` seconds. Polls, because only files show it."""
    deadline = time.monotonic() + wait_s
    while not all(map(is_ready, hosts)) and time.monotonic() < deadline:
        time.sleep(_POLL_S)


def _check_ports(address: str) -> CheckResult:
    """Bind each port of the block of the job, $MEDSSR_PORTS=FIRST-LAST."""
    block = os.environ.get("MEDSSR_PORTS")
    if not block:
        return CheckResult("pass", "no block of ports given: any free ports are used")
    first, _, last = block.partition("-")
    if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last) < 65536):
        raise InputError(f"MEDSSR_PORTS = {block!r} is not of the form 20000-20099; correct it")
    taken = [str(port) for port in range(int(first), int(last) + 1) if not _is_free(address, port)]
    if taken:
        detail = f"{len(taken)} of {block} are taken on {address}: {', '.join(taken[:_SHOWN_PORTS])}"
        return CheckResult("fail", detail, "another job has them; requeue, or choose another block")
    ephemeral = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    if int(last) >= int(ephemeral[0]) and int(first) <= int(ephemeral[1]):
        detail = f"{block} overlaps the ephemeral range {'-'.join(ephemeral)}"
        return CheckResult("warn", detail, "choose a block outside it")
    return CheckResult("pass", f"{block} are free on {address}")


def _is_free(address: str, port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True
