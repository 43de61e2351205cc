"""Calls of the offline teacher over HTTP."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections import namedtuple

import pytest

from medssr_dist.data.records import Question
from medssr_dist.synthesis.prompts import build_messages

Passage = namedtuple("Passage", "id title content source")


ALKAPTONURIA = Passage(
    "1",
    "Alkaptonuria",
    "Alkaptonuria is a rare disease. Very frequent features are dark urine; ochronosis; arthralgia. Frequent features "
    "are back pain; nephrolithiasis. Onset: adult. Inheritance: autosomal recessive. Associated genes: HGD.",
    "hpo",
)


SEEDS = (
    Question.make(
        "A 34-year-old woman is referred. Examination shows dark urine, tremor and ptosis. Which of the following is "
        "the most likely diagnosis?",
        ["Gout", "Porphyria", "Lupus", "Myasthenia gravis"],
        source="t",
    ),
    Question.make("What drug treats gout?", ["Colchicine", "Aspirin", "Heparin", "Insulin"], source="t"),
)


def get(url):
    with urllib.request.urlopen(url, timeout=5) as response:
        return json.load(response)


def refused(call, *args):
    """Return the status, headers and body of a refused call."""
    with pytest.raises(urllib.error.HTTPError) as error:
        call(*args)
    with error.value as answer:
        return answer.code, answer.headers, json.load(answer)


def chat_body(seeds=SEEDS, **more):
    return {"model": "any", "messages": build_messages(seeds, "Alkaptonuria", [ALKAPTONURIA])} | more


def stats(url):
    return get(url.removesuffix("/v1") + "/stats")
