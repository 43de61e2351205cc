"""The stores of process groups: one address, members alone; and what a stage listens on."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from ipaddress import ip_address

import psutil
import pytest
import torch
from tiny_policy import LETTERS, letter_question

from medssr_dist.data.jsonl import JsonlLedger
from medssr_dist.run.paths import RunPaths
from medssr_dist.training.group_store import GroupStore, StrangerError, make_group_secret

LOOPBACK = "127.0.0.1"
TIMEOUT = timedelta(seconds=20)


def list_doors(process: psutil.Process) -> set[tuple[str, int]]:
    """Return the addresses on which a process and all below it listen for TCP."""
    found = set()
    for each in [process, *process.children(recursive=True)]:
        try:
            found |= {tuple(door.laddr) for door in each.net_connections("tcp") if door.status == psutil.CONN_LISTEN}
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def test_the_store_listens_on_its_address_alone():
    before = list_doors(psutil.Process())
    secret = make_group_secret()
    first = GroupStore(LOOPBACK, 0, 0, secret, TIMEOUT)
    second = GroupStore(LOOPBACK, first.port, 1, secret, TIMEOUT)
    assert list_doors(psutil.Process()) - before == {(LOOPBACK, first.port)}
    first.names.set("name", "value")
    assert second.names.get("name") == b"value"


def test_who_lacks_the_secret_finds_no_name():
    first = GroupStore(LOOPBACK, 0, 0, "ours", TIMEOUT)
    stranger = GroupStore(LOOPBACK, first.port, 1, "guessed", timedelta(seconds=1))
    first.names.set("name", "value")
    assert not stranger.names.check(["name"])


def test_a_member_without_the_secret_is_named():
    first = GroupStore(LOOPBACK, 0, 0, "ours", TIMEOUT)

    def gather(own: torch.Tensor) -> list[torch.Tensor]:
        return [own, own]  # rank 1 sends back what it has seen of rank 0

    with pytest.raises(StrangerError, match="rank 1 of a process group does not know"):
        first.check_members(gather)


def test_members_of_a_gloo_group_know_each_other():
    transfer = pytest.importorskip("medssr_dist.training.weights.gloo_transfer", reason="vllm is not installed")
    sender = transfer.GlooGroup(LOOPBACK, 0, 0, 2, 20.0, "ours")
    receiver = transfer.GlooGroup(LOOPBACK, sender.port, 1, 2, 20.0, "ours")
    with ThreadPoolExecutor() as threads:
        list(threads.map(lambda group: group.join(), (sender, receiver)))
    sent, received = torch.arange(4, dtype=torch.uint8), torch.zeros(4, dtype=torch.uint8)
    works = [sender.broadcast(sent), receiver.broadcast(received)]
    for work in works:
        work.wait()
    assert torch.equal(sent, received)


@pytest.mark.slow
def test_a_stage_of_two_ranks_listens_on_loopback_alone(tiny_config, tmp_path):
    rng, data = random.Random(1), tmp_path / "letters.jsonl"
    with JsonlLedger(data) as ledger:
        ledger.append(*(letter_question(rng.choice(LETTERS), rng.random()).model_dump() for _ in range(16)))
    run = RunPaths(tmp_path / "run")
    settings = ["stage1.enabled=false", f"stage2.data=[{data}]", "stage2.steps=2", "ranks_per_node=2"]
    command = [sys.executable, "-m", "medssr_dist.cli", "train", "--config", str(tiny_config), "--run-dir", run.root]
    doors: set[tuple[str, int]] = set()
    with open(tmp_path / "log", "wb") as log:
        trainer = subprocess.Popen([*command, *(f"training.{each}" for each in settings)], stdout=log, stderr=log)
        while trainer.poll() is None:
            doors |= list_doors(psutil.Process(trainer.pid))
            time.sleep(0.5)
    assert trainer.returncode == 0, (tmp_path / "log").read_text()[-3000:]
    addresses = {ip_address(address) for address, _ in doors}
    assert addresses, "the test looks at nothing"
    assert all((getattr(each, "ipv4_mapped", None) or each).is_loopback for each in addresses), addresses
