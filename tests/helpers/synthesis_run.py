"""A synthesis on invented seeds and diseases, with the real client and the offline teacher."""

from __future__ import annotations

import json
import urllib.request
from collections import namedtuple
from functools import partial

from config_builder import make_config

from medssr_dist.data.records import Question
from medssr_dist.knowledge.entities import Entity
from medssr_dist.offline_teacher import open_endpoints
from medssr_dist.synthesis.synthesize import SynthesisInputs, synthesize

Passage = namedtuple("Passage", "id title content source")
ENTITIES = [Entity(f"X:{n}", f"Morbus {chr(65 + n)}lpha") for n in range(20)]
SEEDS = [
    Question.make(
        f"A {20 + n}-year-old man has sign {n}, sign {n + 1} and sign {n + 2}. What is the most likely diagnosis?",
        [f"Disease {chr(65 + (n + m) % 26)}{m}" for m in range(4)],
        source="t",
        truth="A",
    )
    for n in range(40)
]


def retrieve(name):
    features = "; ".join(f"{name[7].lower()} finding {n}" for n in range(8))
    own = Passage(f"p-{name}", name, f"{name} is a rare disease. Very frequent features are {features}.", "t")
    return [own, Passage("p-o", "Other disease", "Other disease. Frequent features are pallor; cough; fever.", "t")]


def passage_text(passage_id):
    entity = "Morbus Alpha" if passage_id == "p-o" else passage_id.removeprefix("p-")
    return next(passage.content for passage in retrieve(entity) if passage.id == passage_id)


def config(base_url="offline-teacher", accepted=40, alpha=0.5, endpoint=None, retry=None, **settings):
    """Return a config. The invented seeds are near-duplicates of each other, so that check is off."""
    endpoint = {"base_url": base_url, "model": "teacher", "concurrency": 8} | (endpoint or {})
    synthesis = {
        "accepted": accepted,
        "alpha": alpha,
        "endpoints": [endpoint],
        "retry": {"first_byte_s": 2, "whole_s": 2, "patience_s": 2} | (retry or {}),
        "checks": {"near_duplicate": 0},
    }
    return make_config(synthesis=synthesis | settings)


def run(cfg, folder, seeds=SEEDS, entities=ENTITIES, **options):
    teacher = partial(open_endpoints, log_path=folder / "teacher.log", random_seed=cfg.runtime.random_seed)
    inputs = SynthesisInputs(seeds, {}, entities, retrieve, passage_text, teacher)
    return synthesize(cfg, folder, inputs, "c0ffee", **options)


def stats(base_url):
    with urllib.request.urlopen(base_url.removesuffix("/v1") + "/stats", timeout=5) as response:
        return json.load(response)


def journaled(folder):
    lines = (folder / "journal.jsonl").read_bytes().split(b"\n")[:-1]  # text after the last newline is torn
    return [json.loads(line)["provenance"]["index"] for line in lines]


def files(folder):
    return [(folder / name).read_bytes() for name in ("questions.jsonl", "rejected.jsonl")]
