"""The shipped weights: small, as their facts say, and better than chance on patients that they have not seen."""

from __future__ import annotations

import hashlib

import pytest

from medssr_dist.config.schema import Policy
from medssr_dist.data.jsonl import read_json
from medssr_dist.knowledge.mini_world import CHECK, load_mini_world, make_mini_questions
from medssr_dist.mini_policy.publish import FACTS_FILE
from medssr_dist.mini_policy.sampled_accuracy import measure_accuracy
from medssr_dist.runtime.models import MINI_MODEL, resolve_model


@pytest.fixture(scope="module")
def folder():
    return resolve_model(Policy(model=MINI_MODEL))


def test_the_files_are_small_and_as_the_facts_say(folder):
    facts = read_json(folder / FACTS_FILE)
    assert sum(file.stat().st_size for file in folder.iterdir()) < 8 * 2**20
    assert hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() == facts["weights_sha256"]
    world = load_mini_world()
    assert facts["common"] == [one.id for one in world.common] and facts["rare"] == [one.id for one in world.rare]
    assert 0.40 <= facts["accuracy"]["mean"] <= 0.55
    assert facts["accuracy"]["majority"] - facts["accuracy"]["mean"] >= 0.06


def test_it_answers_unseen_patients_better_than_chance(folder):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    found = measure_accuracy(model, tokenizer, make_mini_questions(CHECK, 64, 7), 4, 0.6)
    assert found.mean > 0.33 and found.invalid < 0.1
