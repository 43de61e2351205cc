"""A killed engine leaves no process behind; the parameters of sampling are those of the request alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

from medssr_dist import mini_policy
from medssr_dist.config.schema import Policy, Runtime
from medssr_dist.inference.requests import SampleRequest
from medssr_dist.inference.vllm_args import build_engine_env, build_engine_kwargs
from medssr_dist.inference.vllm_engine import VllmActor

_PROGRAM = """
import subprocess, sys, time
from medssr_dist.inference.vllm_engine import end_children_with_this_process
guard = end_children_with_this_process()
child = subprocess.Popen(["sleep", "600"])
print(child.pid, guard.pid, flush=True)
time.sleep(600)
"""


def has_ended(pid: int) -> bool:
    """Also true of a zombie, whose parent has not waited for it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_the_children_of_a_killed_engine_end_with_it():
    with subprocess.Popen([sys.executable, "-c", _PROGRAM], stdout=subprocess.PIPE, text=True) as engine:
        child, guard = map(int, engine.stdout.readline().split())
        assert not has_ended(child) and not has_ended(guard)
        os.kill(engine.pid, signal.SIGKILL)
        deadline = time.monotonic() + 60
        while not (has_ended(child) and has_ended(guard)):
            assert time.monotonic() < deadline, "they are still running"
            time.sleep(0.05)


ONE_PROCESS = """
import json, sys
from medssr_dist.inference.vllm_args import drop_seed_warning
from vllm import AsyncEngineArgs
drop_seed_warning()
configs = [AsyncEngineArgs(**kwargs).create_engine_config() for kwargs in json.loads(sys.argv[1])]
print(*(config.parallel_config.distributed_executor_backend for config in configs))  # vLLM's warnings are before it
"""


def test_an_engine_of_one_process_computes_in_its_scheduler():
    """By default vLLM starts one more process for it on a CPU. Its warning about the random seed is not shown."""
    model = Path(mini_policy.__file__).with_name("medssr-mini")
    policy = Policy(model=str(model), max_model_len=64)
    argument = json.dumps([build_engine_kwargs(model, policy, Runtime(), size) for size in (1, 2)])
    env = os.environ | build_engine_env(Runtime(), 1)
    done = subprocess.run([sys.executable, "-c", ONE_PROCESS, argument], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "uni mp"
    assert "random seed" not in done.stdout + done.stderr


def test_each_sampling_parameter_is_that_of_the_request():
    """A generation config that sets them all adds its stop tokens, and changes nothing else."""
    request = SampleRequest("q", (1, 2), n=3, seed=7, temperature=0.6, top_p=0.9, top_k=5, max_tokens=64, stop=("\nQ",))
    params = VllmActor._make_sampling_params(SimpleNamespace(), request, room=32)
    config = {"temperature": 0.1, "top_p": 0.2, "top_k": 2, "min_p": 0.5, "repetition_penalty": 1.8}
    config |= {"presence_penalty": 1.5, "frequency_penalty": 1.5, "max_new_tokens": 3, "eos_token_id": [2, 9]}
    params.update_from_generation_config(config, eos_token_id=2)
    found = (params.n, params.seed, params.temperature, params.top_p, params.top_k, params.max_tokens, params.stop)
    assert found == (3, 7, 0.6, 0.9, 5, 32, ["\nQ"])
    assert (params.min_p, params.repetition_penalty, params.presence_penalty, params.frequency_penalty) == (0, 1, 0, 0)
    assert params.stop_token_ids == [9]


def test_an_engine_takes_no_sampling_from_the_model(tmp_path):
    kwargs = build_engine_kwargs(tmp_path, Policy(model="m"), Runtime(), 1)
    assert kwargs["generation_config"] == "vllm"
