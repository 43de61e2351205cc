"""ZeRO-3 weights that are gathered together on CPU are all complete."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

from places import HELPERS


def test_weights_gathered_together_are_complete():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [sys.executable, "-W", "ignore", HELPERS / "gather_ranks.py"]
    options = {"stdout": subprocess.PIPE, "text": True, "env": os.environ | {"MEDSSR_DEVICE": "cpu"}}
    ranks = [subprocess.Popen([*command, str(rank), str(port)], **options) for rank in (0, 1)]
    outputs = [rank.communicate(timeout=300)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    assert [output.split()[-2:] for output in outputs] == [["0", "0"], ["0", "0"]]
