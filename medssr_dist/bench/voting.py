"""How much of vLLM's own speed the engine pool keeps: same engine arguments, prompts, seeds and sampling.

Raw `LLM.generate` and the pool (Ray, shards, streamed results) answer the same questions in turn, round
after round, so that what else the machine does falls on both. Figures exclude start-up.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from medssr_dist.answers import chat_prompt
from medssr_dist.bench.report import write_result
from medssr_dist.config import Policy, Runtime
from medssr_dist.config_base import DataSource
from medssr_dist.readers import read_questions
from medssr_dist.runtime.device import engine_env, engine_kwargs
from medssr_dist.runtime.models import EMBEDDED_MODEL, load_tokenizer, resolve_model
from medssr_dist.runtime.requests import Request


def bench_voting(json_path: Path, quick: bool) -> None:
    """Measure and write `json_path`; `quick` asks fewer questions in fewer rounds."""
    import ray

    from medssr_dist.runtime.engines import EnginePool

    policy, runtime = Policy(model=EMBEDDED_MODEL, max_model_len=512), Runtime()
    model = resolve_model(policy)
    requests = _requests(load_tokenizer(model, policy), 8 if quick else 32)
    os.environ |= engine_env(runtime, os.cpu_count() or 1)
    ray.init(num_gpus=1, num_cpus=4, include_dashboard=False, log_to_driver=False)
    raw = _raw_vllm(engine_kwargs(model, policy, runtime, 1), requests)
    with EnginePool(model, policy, runtime) as pool:
        ways = {"vllm": raw, "pool": lambda: _pool_tokens(pool, requests)}
        rates = _alternate(ways, rounds=2 if quick else 6)
    ray.shutdown()
    ratio = statistics.median(rates["pool"]) / statistics.median(rates["vllm"])
    print(f"pool / vLLM: {ratio:.3f}  ({rates})")
    write_result(
        json_path,
        {
            "model": policy.model,
            "questions": len(requests),
            "samples": requests[0].n,
            "max_tokens": requests[0].max_tokens,
            "tokens_per_s": rates,
            "pool_ratio_to_vllm": round(ratio, 3),
        },
    )


def _requests(tokenizer, questions: int) -> list[Request]:
    return [
        Request(key=question.id, prompt=chat_prompt(tokenizer, question), n=8, seed=1000 * index, max_tokens=32)
        for index, question in enumerate(read_questions(DataSource(path="hpo:seeds", limit=questions)))
    ]


def _raw_vllm(kwargs: dict, requests: list[Request]) -> Callable[[], int]:
    """Start vLLM in this process; returns a function that answers all requests and counts the tokens."""
    import vllm

    engine = vllm.LLM(**kwargs)
    prompts = [
        {"prompt_token_ids": engine.get_tokenizer()(request.prompt, add_special_tokens=False)["input_ids"]}
        for request in requests
    ]
    params = [
        vllm.SamplingParams(n=request.n, seed=request.seed, max_tokens=request.max_tokens) for request in requests
    ]

    def answer() -> int:
        outputs = engine.generate(prompts, params, use_tqdm=False)
        return sum(len(sample.token_ids) for output in outputs for sample in output.outputs)

    return answer


def _pool_tokens(pool, requests: list[Request]) -> int:
    return sum(completion.tokens for _, completions in pool.generate(requests) for completion in completions)


def _alternate(ways: dict[str, Callable[[], int]], rounds: int) -> dict[str, list[float]]:
    """Tokens/s of each way in each round; the first call of each is a warm-up and does not count."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for turn in tqdm(range(rounds + 1), desc="bench voting", unit="round"):
        for name, answer in ways.items():
            started = time.perf_counter()
            tokens = answer()
            if turn:
                rates[name].append(round(tokens / (time.perf_counter() - started), 1))
    return rates
