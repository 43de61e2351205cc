"""A vLLM server as an engine, against a real server."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from far_server import KEY, POLICY, ask, take_all
from tiny_policy import tiny_tokenizer

from medssr_dist.config.schema import Policy, Runtime
from medssr_dist.config.voting import Server
from medssr_dist.errors import InputError
from medssr_dist.inference.requests import Completion, SampleRequest
from medssr_dist.inference.vllm_args import build_engine_env, build_engine_kwargs
from medssr_dist.inference.vllm_server import ServerEngine
from medssr_dist.runtime.fingerprints import fingerprint_model
from medssr_dist.runtime.models import load_tokenizer

pytestmark = pytest.mark.slow
LENGTH = 256
PROMPTS = [
    tiny_tokenizer()(text)["input_ids"]
    for text in ("Pick the letter that is named :", "Option A Option B . Pick", "the letter")
]
SECOND_END = tiny_tokenizer().convert_tokens_to_ids("is")
OFFLINE = """
import json, sys
import vllm
kwargs, prompts = json.loads(sys.argv[1])
llm = vllm.LLM(**kwargs, disable_log_stats=True)
params = vllm.SamplingParams(n=4, seed=3, temperature=1.0, top_p=0.9, top_k=12, max_tokens=24)
outputs = [llm.generate(vllm.TokensPrompt(prompt_token_ids=ids), params, use_tqdm=False)[0] for ids in prompts]
print()
print(json.dumps([[(o.text, len(o.token_ids), o.finish_reason) for o in output.outputs] for output in outputs]))
"""


@pytest.fixture(scope="module")
def policy_folder(tiny_model, tmp_path_factory) -> Path:
    """The tiny model, with a generation config whose sampling differs from a vote's."""
    folder = tmp_path_factory.mktemp("served") / "policy"
    folder.mkdir()
    for file in tiny_model.iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "generation_config.json").unlink(missing_ok=True)
    settings = {
        "eos_token_id": [2, SECOND_END],
        "repetition_penalty": 1.8,
        "temperature": 0.1,
        "top_k": 2,
        "min_p": 0.5,
    }
    settings |= {"top_p": 0.2, "presence_penalty": 1.5, "frequency_penalty": 1.5, "max_new_tokens": 3, "min_length": 20}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def vllm_server(policy_folder, tmp_path_factory):
    """The address of `vllm serve` with that model, once it is up."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--model", str(policy_folder), "--served-model-name", "tiny", "--api-key", KEY, "--enforce-eager"]
    command += ["--max-model-len", str(LENGTH), "--dtype", "bfloat16", "--max-num-seqs", "32"]
    command += ["--no-enable-chunked-prefill", "--max-num-batched-tokens", "4096"]
    log = tmp_path_factory.mktemp("log") / "server.log"
    env = os.environ | build_engine_env(Runtime(), 1)
    with open(log, "wb") as out, subprocess.Popen(command, stdout=out, stderr=out, env=env) as process:
        try:
            while not _healthy(f"http://127.0.0.1:{port}/health"):
                assert process.poll() is None, log.read_text()[-3000:]
                time.sleep(0.5)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return response.status == 200
    except OSError:
        return False


@asynccontextmanager
async def real(url: str, folder: Path):
    policy = Policy(model=str(folder), max_model_len=LENGTH)
    tokenizer = load_tokenizer(folder, policy)
    engine = ServerEngine(
        Server(base_url=url, api_key=KEY),
        policy,
        folder,
        fingerprint_model(folder),
        lambda text: tokenizer(text, add_special_tokens=False)["input_ids"],
    )
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


@pytest.fixture(scope="module")
def offline(policy_folder) -> list[list[Completion]]:
    """The samples of our own vLLM engine for `PROMPTS`."""
    policy = Policy(model=str(policy_folder), max_model_len=LENGTH)
    argument = json.dumps([build_engine_kwargs(policy_folder, policy, Runtime(enforce_eager=True), 1), PROMPTS])
    command, env = [sys.executable, "-c", OFFLINE, argument], os.environ | build_engine_env(Runtime(), 1)
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return [
        [Completion.from_text(ask(), 3 + i, text, size, end == "length") for i, (text, size, end) in enumerate(samples)]
        for samples in json.loads(next(line for line in done.stdout.splitlines() if line.startswith("[[")))
    ]


async def draw(engine: ServerEngine, *requests: SampleRequest) -> list[Completion]:
    engine.submit(list(enumerate(requests)), [])
    samples = (await take_all(engine, sum(request.n for request in requests))).samples
    return [sample for _, sample in sorted(samples, key=lambda pair: (pair[0], pair[1].seed))]


async def test_a_real_server_draws_the_samples_of_our_engine(offline, vllm_server, policy_folder):
    sampling = {"temperature": 1.0, "top_p": 0.9, "top_k": 12}
    requests = [replace(ask(n=4, seed=3, prompt=prompt, **sampling), max_tokens=24) for prompt in PROMPTS]
    async with real(vllm_server, policy_folder) as engine:
        whole = [await draw(engine, request) for request in requests]
        apart = await draw(engine, replace(requests[0], n=2), replace(requests[0], n=2, seed=5))
        chosen = await draw(engine, ask(prompt=PROMPTS[0], choices=("C", "D")))
        stop = max(whole[0], key=lambda sample: sample.tokens).text.split()[1]
        stopped = await draw(engine, replace(requests[0], stop=(stop,)))
        full = await draw(engine, ask(prompt=PROMPTS[2][-1:] * (LENGTH - 2), n=4))
    assert whole == offline
    assert len({sample.text for samples in whole for sample in samples}) > 4  # no min_p, no top_k = 2
    assert apart == whole[0]
    assert max(sample.tokens for samples in whole for sample in samples) > 3  # no max_new_tokens
    assert not any(" is" in sample.text for samples in whole for sample in samples)  # the second end token
    assert [sample.text for sample in stopped] == [sample.text.partition(stop)[0] for sample in whole[0]]
    assert any(sample.tokens < before.tokens for sample, before in zip(stopped, whole[0], strict=True))
    assert [(sample.text.strip() in ("C", "D"), sample.tokens) for sample in chosen] == [(True, 1)]
    assert all(sample.tokens <= 2 for sample in full)


async def test_a_real_server_ends_aborted_requests(vllm_server, policy_folder):
    def finished() -> float:
        with urllib.request.urlopen(vllm_server.removesuffix("/v1") + "/metrics", timeout=10) as response:
            lines = response.read().decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:request_success_total"))

    long = replace(ask(n=16, prompt=PROMPTS[0]), max_tokens=200)
    async with real(vllm_server, policy_folder) as engine:
        before = finished()
        engine.submit([(lease, long) for lease in range(24)], [])
        assert (await engine.collect()).samples
        engine.submit([], list(range(24)))
        # The server runs 32 samples at once, in order of arrival: without aborts, these would wait for all the others.
        assert len(await draw(engine, ask(n=2, prompt=PROMPTS[0]))) == 2
        assert finished() - before < 24 * 16


async def test_a_real_server_refuses_with_a_message(vllm_server, policy_folder):
    async with real(vllm_server, policy_folder) as engine:
        engine.submit([(4, ask(prompt=PROMPTS[0], n=2, temperature=0.0))], [])
        [(lease, reason)] = (await engine.collect()).failed
    assert lease == 4
    assert reason.startswith("HTTP 400: ")
    with pytest.raises(InputError, match="refuses the key"):
        await ServerEngine(Server(base_url=vllm_server), POLICY, policy_folder, "", str.split).start()
