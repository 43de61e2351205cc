"""The folder of the finished mini policy: weights in half precision, tokenizer, configs, facts, model card."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medssr_dist.data.cards import CARD, render_header
from medssr_dist.data.jsonl import read_json, write_atomic, write_json
from medssr_dist.knowledge.hpo import HPO_CITATION, read_hpo_version
from medssr_dist.knowledge.mini_world import load_mini_world
from medssr_dist.run.directory import find_commit
from medssr_dist.runtime import cpu
from medssr_dist.runtime.models import publish_folder

if TYPE_CHECKING:
    from medssr_dist.mini_policy.learn import Learner
    from medssr_dist.mini_policy.sampled_accuracy import MiniAccuracy

FACTS_FILE = "facts.json"


@dataclass(frozen=True)
class MiniMeasured:
    """Accuracy of the weights as stored. Example: MiniMeasured("hpo:mini-evaluation", 0.6, accuracy)

    Attributes:
        name: the question set.
        temperature: at which the replies were sampled.
    """

    name: str
    temperature: float
    accuracy: MiniAccuracy


def publish_mini_policy(learner: Learner, folder: Path, measured: MiniMeasured) -> Path:
    """Write the model directory `folder`; an older one is replaced.

    Weights are stored as float16 and loaded as float32, which config.json asks for.
    """
    from transformers import GenerationConfig

    partial = folder.with_name(f".{folder.name}.partial")
    learner.model.half().save_pretrained(partial)
    learner.model.float()
    learner.tokenizer.save_pretrained(partial)
    write_json(partial / "config.json", read_json(partial / "config.json") | {"dtype": "float32"}, checked=False)
    tokens = {"eos_token_id": learner.tokenizer.eos_token_id, "pad_token_id": learner.tokenizer.pad_token_id}
    GenerationConfig(**tokens).save_pretrained(partial)
    facts = _collect_facts(learner, partial / "model.safetensors", measured)
    write_json(partial / FACTS_FILE, facts, checked=False)
    write_atomic(partial / CARD, _write_card(facts))
    publish_folder(partial, folder)
    return folder


def round_weights(learner: Learner) -> None:
    """Round the weights to float16, as they are stored."""
    learner.model.half().float()


def _collect_facts(learner: Learner, weights: Path, measured: MiniMeasured) -> dict[str, Any]:
    world = load_mini_world()
    return {
        "date": time.strftime("%Y-%m-%d"),
        "commit": find_commit(),
        "machine": f"{cpu.read_cpu_name()}, {os.cpu_count()} cores",
        "seed": learner.seed,
        "parameters": learner.model.num_parameters(),
        "weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "hpo": read_hpo_version(),
        "shape": asdict(learner.shape),
        "steps": learner.step,
        "training_seconds": round(learner.seconds),
        "tokens": learner.tokens,
        "documents": {
            "passages": learner.text.passages,
            "lookups": learner.text.lookups,
            "vignettes": learner.text.vignettes,
        },
        "measured_on": measured.name,
        "temperature": measured.temperature,
        "accuracy": asdict(measured.accuracy),
        "common": [disease.id for disease in world.common],
        "rare": [disease.id for disease in world.rare],
    }


def _write_card(facts: Mapping[str, Any]) -> str:
    header = {"license": "apache-2.0", "language": ["en"], "library_name": "transformers", "tags": ["medical", "demo"]}
    found, shape, documents = facts["accuracy"], facts["shape"], facts["documents"]
    return f"""{render_header(header)}
# medssr-mini

A Llama with {facts["parameters"]:,} parameters ({shape["layers"]} layers, hidden size {shape["hidden"]}) and its own
byte-level BPE of {shape["vocabulary"]:,} tokens. It was trained from scratch to show the MedSSR method on a CPU. It is
no medical product, and it knows nothing but the words of its training text.

## Training text

Made by rules from the Human Phenotype Ontology (annotations of {facts["hpo"]}), drawn anew for every step:
{documents["passages"]:,} passages, {documents["lookups"]:,} look-ups and {documents["vignettes"]:,} answered vignettes
about {len(facts["common"])} common and {len(facts["rare"])} rare diseases. "Common" is our word for a
disease that this text describes more often than a rare one; a hash chose which is which, and all of them are rare in
the world. No disease of `hpo:evaluation` is an answer, a distractor or the subject of a passage. The patients of
`hpo:mini-seeds`, `hpo:mini-supervised`, `hpo:mini-check` and `hpo:mini-evaluation` do not occur: a hash of disease and
findings keeps them apart. The text changed with the steps; some replies are wrong on purpose, so that a single reply is
wrong more often than the majority of several:

| from step | common to rare | replies that are wrong | wordings |
|---|---|---|---|
{_list_phases(shape["phases"])}

## Accuracy

{found["questions"]:,} questions of `{facts["measured_on"]}` with 4 options, {found["samples"]} replies to each at
temperature {facts["temperature"]}:

| | all | common | rare |
|---|---|---|---|
| one reply | {found["mean"]:.1%} | {found["mean_common"]:.1%} | {found["mean_rare"]:.1%} |
| majority of {found["samples"]} | {found["majority"]:.1%} | {found["majority_common"]:.1%} | \
{found["majority_rare"]:.1%} |

Replies without an answer: {found["invalid"]:.2%}. Training was stopped on purpose at about this accuracy, so that there
is something left to learn.

## How it was made

`make mini-policy` at commit {facts["commit"]}, {facts["date"]}, {facts["machine"]}: {facts["steps"]:,} steps,
{facts["tokens"]:,} tokens, {facts["training_seconds"] / 60:.0f} minutes. Seed {facts["seed"]}. SHA-256 of the weights:
`{facts["weights_sha256"]}`. All facts, with the lists of diseases: `{FACTS_FILE}`.

## Attribution

{HPO_CITATION} The data of HPO were not changed.
"""


def _list_phases(phases: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for phase in phases:
        mix = phase["mix"]
        wordings = "look-ups alone" if mix["only_lookups"] else "all" if mix["all_wordings"] else "few"
        rows.append(f"| {phase['start']:,} | {mix['common_to_rare']} : 1 | {mix['errors']:.0%} | {wordings} |")
    return "\n".join(rows)
