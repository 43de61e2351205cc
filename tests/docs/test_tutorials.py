"""The tutorials are followed to the letter: their commands run, and print what the pages say they print.

A block ```sh is run; of a block ```text each line must occur in the output of the commands before it, in this order. In
it, `...` stands for anything.
"""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "docs" / "tutorials"
BLOCK = re.compile(r"^```(sh|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PORT = "8123"  # of the pages


def find_free_port():
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return str(opened.getsockname()[1])


def make_script(text):
    """Return a script of all commands that marks each block's end, and the lines expected up to each mark."""
    script, expected, number = ["set -eu", "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT"], {}, 0
    for kind, body in BLOCK.findall(text):
        if kind == "sh":
            number += 1
            script += [body, f"echo '=== end of block {number} ==='"]
        else:
            expected.setdefault(number, []).extend(line for line in body.splitlines() if line.strip())
    return "\n".join(script), expected


def find_missing(output, lines):
    """Return the first line that does not occur in the output behind those before it; None if all do."""
    place = 0
    for line in lines:
        pattern = r"\s+".join(re.escape(word).replace(r"\.\.\.", r"[^\n]*?") for word in line.split())
        end = "" if line.endswith("...") else r"\s*$"
        match = re.compile(r"^\s*" + pattern + end, re.MULTILINE).search(output, place)
        if not match:
            return line
        place = match.end()
    return None


@pytest.mark.parametrize("page", sorted(FOLDER.glob("*.md")), ids=lambda page: page.stem)
def test_tutorial_does_what_it_says(page, tmp_path):
    script, expected = make_script(page.read_text().replace(PORT, find_free_port()))
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    log = tmp_path / "output.log"
    with open(log, "w") as output:  # a file and not a pipe, which a server that is left over would hold open
        code = subprocess.run(
            ["bash", "-c", script],
            cwd=tmp_path,
            env=environment,
            stdout=output,
            stderr=output,
            timeout=900,
            check=False,
        ).returncode
    text = log.read_text()
    assert code == 0, text[-3000:]
    blocks = re.split(r"=== end of block \d+ ===", text)
    for number, lines in expected.items():
        assert find_missing(blocks[number - 1], lines) is None, blocks[number - 1]
