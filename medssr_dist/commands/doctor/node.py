"""`medssr doctor --node`: the preflight of one node of a job, while all the others run theirs.

Each node publishes its address in a folder of the run directory, which so proves to be shared, greets every other
node and is greeted, and writes what it found as `<node>.json`. `gather` judges.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from medssr_dist.commands.doctor.check_result import Check, CheckResult, run_check, run_checks
from medssr_dist.commands.doctor.gpu_count import count_node_gpus
from medssr_dist.commands.doctor.slurm_settings import list_job_hosts, read_host_name
from medssr_dist.config.schema import Config
from medssr_dist.data.jsonl import read_json, write_json
from medssr_dist.errors import InputError
from medssr_dist.run.directory import commit, versions
from medssr_dist.runtime.models import policy_on_disk
from medssr_dist.runtime.network import describe, interface_addresses, node_address

_GREETING_S = 10.0
_LOOK_EVERY_S = 0.2
_SHOWN_PORTS = 5


def check_node(config: Config, run_dir: Path, out: Path, wait_s: float, checks: Mapping[str, Check]) -> None:
    """Run `checks` and meet the job's other nodes; write `out`/<node>.json.

    Args:
        out: a folder on the file system that all nodes share, new for each attempt.
        wait_s: seconds to wait for nodes that do not come.
    Raises:
        InputError: this node has reported to `out` before.
    """
    name, hosts = read_host_name(), list_job_hosts()
    report_file = Path(out) / f"{name}.json"
    if report_file.exists():
        raise InputError(f"{report_file} is there already; give a new folder with --out")
    others = [host for host in hosts if host != name]
    try:
        address = node_address(others)
    except InputError as error:
        detail, _, fix = str(error).rpartition("; ")
        write_json(report_file, _report(config, name, "", {"network": CheckResult("fail", detail, fix)}, {}))
        return
    with _greeter(address) as (port, token):
        write_json(_address_file(Path(out), name), {"address": address, "port": port, "token": token})
        results = run_checks(checks, config, run_dir)
        results["ports"] = run_check(lambda config, run_dir: _ports(address), config, run_dir)
        results["network"], offsets = _meet(Path(out), address, others, wait_s)
        write_json(report_file, _report(config, name, address, results, offsets))
        came = [host for host in others if _address_file(Path(out), host).exists()]
        _wait_for(came, lambda host: (Path(out) / f"{host}.json").exists(), wait_s)  # they may still have to greet it


def _report(
    config: Config, name: str, address: str, results: dict[str, CheckResult], offsets: dict[str, float]
) -> dict:
    return {
        "host": name,
        "address": address,
        "gpus": count_node_gpus(),
        "model": _model_id(config),
        "versions": {"commit": commit()} | versions(),
        "clock_offsets": offsets,
        "results": {check: asdict(result) for check, result in results.items()},
    }


def _model_id(config: Config) -> str | None:
    """What the policy holds and where: the head tells the other nodes a path."""
    from medssr_dist.runtime.models import model_fingerprint

    try:
        folder = policy_on_disk(config.policy)
    except InputError:  # the model check's to report
        return None
    return f"{model_fingerprint(folder)} in {folder}" if folder else None


@contextmanager
def _greeter(address: str):
    """Answer whoever connects to a free port of `address` with a token and the time. Yields (port, token)."""
    token = secrets.token_hex(8)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(json.dumps({"token": token, "time": time.time()}).encode())

    with socketserver.ThreadingTCPServer((address, 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server.server_address[1], token
        finally:
            server.shutdown()


def _meet(out: Path, address: str, others: list[str], wait_s: float) -> tuple[CheckResult, dict[str, float]]:
    """Greet `others`. Returns the result, and each one's clock less this one's, in seconds."""
    _wait_for(others, lambda host: _address_file(out, host).exists() or (out / f"{host}.json").exists(), wait_s)
    missing = [host for host in others if not _address_file(out, host).exists()]
    offsets, failed = {}, []
    for host in (host for host in others if host not in missing):
        peer = read_json(_address_file(out, host))
        try:
            offsets[host] = _greet(address, peer)
        except (OSError, ValueError) as error:
            failed.append(f"{host} at {peer['address']} ({error or type(error).__name__})")
    here = describe(interface_addresses())
    if failed:
        fix = f"set MEDSSR_IFNAME to the interface that all nodes share (here: {here}), or open the firewall"
        return CheckResult("fail", f"from {address} no way to {', '.join(failed)}", fix), offsets
    if missing:
        fix = "the node is down, or the run directory is not on a file system that all nodes share: see its log"
        return CheckResult(
            "fail", f"{', '.join(missing)} published no address in {out} (waited at most {wait_s:g} s)", fix
        ), offsets
    met = f"{len(others)} other nodes reached" if others else "no other nodes"
    return CheckResult("pass", f"{address} ({here}); {met}"), offsets


def _greet(address: str, peer: dict) -> float:
    """The peer's clock less ours. Raises OSError: no way; ValueError: something else answers there."""
    started = time.time()
    with socket.create_connection((peer["address"], peer["port"]), _GREETING_S, (address, 0)) as connection:
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    told = json.loads(answer or b"{}")
    if told.get("token") != peer["token"]:
        raise ValueError("another machine answers at this address")
    return round(told["time"] - (started + time.time()) / 2, 3)


def _address_file(out: Path, host: str) -> Path:
    return out / f"{host}.address.json"


def _wait_for(hosts: list[str], came: Callable[[str], bool], wait_s: float) -> None:
    """Wait until all `hosts` have come, at most `wait_s` seconds. Only their files show it."""
    deadline, never = time.monotonic() + wait_s, threading.Event()
    while not all(map(came, hosts)) and time.monotonic() < deadline:
        never.wait(_LOOK_EVERY_S)


def _ports(address: str) -> CheckResult:
    """Bind each port of the job's block, $MEDSSR_PORTS=FIRST-LAST."""
    block = os.environ.get("MEDSSR_PORTS")
    if not block:
        return CheckResult("pass", "no block given: free ports are taken as they come")
    first, _, last = block.partition("-")
    if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last) < 65536):
        raise InputError(f"MEDSSR_PORTS = {block!r} is not of the form 20000-20099; correct it")
    taken = [str(port) for port in range(int(first), int(last) + 1) if not _is_free(address, port)]
    if taken:
        detail = f"{len(taken)} of {block} are taken on {address}: {', '.join(taken[:_SHOWN_PORTS])}"
        return CheckResult("fail", detail, "another job has them; requeue, or choose another block")
    ephemeral = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    if int(last) >= int(ephemeral[0]) and int(first) <= int(ephemeral[1]):
        return CheckResult(
            "warn", f"{block} meets the ephemeral range {'-'.join(ephemeral)}", "choose a block outside it"
        )
    return CheckResult("pass", f"{block} are free on {address}")


def _is_free(address: str, port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True
