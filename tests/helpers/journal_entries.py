"""Entries of a synthesis journal."""

from __future__ import annotations

from medssr_dist.config.synthesis import Endpoint
from medssr_dist.data.records import Provenance
from medssr_dist.synthesis.client.chat_client import Reply
from medssr_dist.synthesis.journal import JournalEntry

ENDPOINT = Endpoint(base_url="http://localhost:1/v1", model="m", api_key="sk-not-in-the-journal")


def provenance(index, **fields):
    return Provenance(
        index=index,
        prompt_hash=f"h{index}",
        seed_ids=("a", "b"),
        rho=0.5,
        random_seed=1,
        commit="c",
        **{"teacher": "m", "answered_by": "m-1"} | fields,
    )


def reply(text="text"):
    return Reply(text, 10, 5, "m-1", ENDPOINT)


def entry(index, text="text"):
    return JournalEntry(provenance=provenance(index), reply=text, model="m", prompt_tokens=10, completion_tokens=5)
