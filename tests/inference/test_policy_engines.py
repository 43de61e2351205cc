"""Engines that load the next policy's weights answer as engines that start with them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from medssr_dist import mini_policy
from medssr_dist.config.base import DataSource
from medssr_dist.config.load import load_config
from medssr_dist.config.schema import Policy
from medssr_dist.data.jsonl import read_jsonl
from medssr_dist.inference.requests import SampleRequest
from medssr_dist.readers import read_questions
from medssr_dist.runtime.alike_models import differ_in_weights_alone
from medssr_dist.runtime.models import load_tokenizer, make_prompt_renderer

MINI = Path(mini_policy.__file__).with_name("medssr-mini")


@pytest.fixture
def other(tmp_path) -> Path:
    """The mini policy with noise on all its weights."""
    folder, random = tmp_path / "other", torch.Generator().manual_seed(0)
    shutil.copytree(MINI, folder)
    weights = load_file(folder / "model.safetensors")
    for weight in weights.values():
        weight += 0.02 * torch.randn(weight.shape, generator=random).to(weight.dtype)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def change_json(file: Path, **changes) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_all_but_the_weights_is_compared(other):
    policy = Policy(model=str(MINI))
    assert differ_in_weights_alone(MINI, other, policy)
    change_json(other / "config.json", use_cache=False, transformers_version="4.0.0")
    assert differ_in_weights_alone(MINI, other, policy)
    for name, change in (
        ("config.json", {"rms_norm_eps": 1e-3}),
        ("config.json", {"auto_map": {"AutoConfig": "own.Config"}}),
        ("generation_config.json", {"eos_token_id": 7}),
    ):
        before = (other / name).read_text()
        change_json(other / name, **change)
        assert not differ_in_weights_alone(MINI, other, policy), change
        (other / name).write_text(before)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["model"]["merges"].pop()
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert not differ_in_weights_alone(MINI, other, policy)


def test_reloaded_engines_answer_as_fresh_ones(other, repo, tmp_path):
    import ray

    from medssr_dist.inference.placement import PolicyEngines
    from medssr_dist.runtime.cluster import open_ray_cluster

    config = load_config(repo / "configs" / "demo_cpu.yaml")
    prompts = make_prompt_renderer(load_tokenizer(MINI, config.policy), config.policy)
    requests = [
        SampleRequest(question.id, prompts.render(question).ids, n=4, seed=index, max_tokens=64)
        for index, question in enumerate(read_questions(DataSource(path="hpo:mini-check", limit=8)))
    ]

    def answer(pool) -> dict[str, list[str]]:
        return {key: [sample.text for sample in samples] for key, samples in pool.generate(requests)}

    with open_ray_cluster(config, tmp_path / "logs"), PolicyEngines(tmp_path / "events.jsonl") as engines:
        first = answer(engines.serve(config, MINI, with_servers=False))
        pool = engines.serve(config, other, with_servers=False)
        reloaded = answer(pool)
        assert count_starts(tmp_path / "events.jsonl") == 1
        ray.kill(pool._slots[0].engine._actor)
        fresh = answer(pool)
        assert count_starts(tmp_path / "events.jsonl") == 2
    assert reloaded == fresh
    assert all(reloaded[key] != first[key] for key in first)


def count_starts(events: Path) -> int:
    return sum(row["event"] == "start" for row in read_jsonl(events))
