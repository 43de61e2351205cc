"""What a row of an exported data set holds, a form each: its columns with their types, and how it is filled.

Columns are the same for every row, with null where there is nothing, and options are a list in letter order:
both load without guessing. `schema` gives pyarrow types; they also go into the card's header.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from medssr_dist.data.answers import INSTRUCTION, format_question
from medssr_dist.data.records import Label, Question

_DATA_SOURCE = "medssr"


@dataclass(frozen=True)
class ExportForm:
    """A form of export. `row(item, index)` fills the columns of `schema()`; a Question has no label yet."""

    file: str
    row: Callable[[Question | Label, int], dict]
    schema: Callable
    needs_answer: bool
    about: str


def plain_row(item: Question | Label, index: int) -> dict:
    """The question, its label in columns of their own, and its provenance."""
    question, label = _split(item)
    row = {
        "id": question.id,
        "question": question.stem,
        "options": list(question.options.values()),
        "answer": None,
        "rare": question.rare,
        "topic": question.topic,
        "source": question.source,
    }
    row |= _vote(question, label)
    provenance = question.provenance
    row["provenance"] = provenance.model_dump(mode="json", exclude={"schema_version"}) if provenance else None
    return row


def _vote(question: Question, label: Label | None) -> dict:
    if label is None:
        return dict.fromkeys(("answer", *_VOTE_COLUMNS))
    return {
        "answer": label.answer,
        "kept": label.kept,
        "outcome": label.outcome,
        "votes": [label.counts.get(letter, 0) for letter in question.options],
        "votes_requested": label.requested,
        "votes_taken": label.taken,
        "votes_valid": label.valid,
        "confidence_requested": label.confidence_requested[0],
        "confidence_requested_most": label.confidence_requested[1],
        "confidence_valid": label.confidence_valid[0],
        "confidence_valid_most": label.confidence_valid[1],
        "policy": label.policy,
        "sampling": label.sampling,
    }


def openrlhf_row(item: Question | Label, index: int) -> dict:
    """What OpenRLHF's PromptDataset reads: chat messages, a label, and the data source."""
    question, label = _split(item)
    answer = label.answer if label else ""
    return {
        "input": _messages(question),
        "label": answer,
        "reference": json.dumps({"answer": answer, "options": question.options, "id": question.id}, ensure_ascii=False),
        "datasource": _DATA_SOURCE,
    }


def verl_row(item: Question | Label, index: int) -> dict:
    """verl's five columns."""
    question, label = _split(item)
    return {
        "data_source": _DATA_SOURCE,
        "prompt": _messages(question),
        "ability": "medicine",
        "reward_model": {"style": "rule", "ground_truth": label.answer if label else ""},
        "extra_info": {
            "split": "train",
            "index": index,
            "id": question.id,
            "question": question.stem,
            "options": list(question.options.values()),
            "rare": question.rare,
            "confidence": label.confidence_requested[0] if label else None,
        },
    }


def _split(item: Question | Label) -> tuple[Question, Label | None]:
    return (item.question, item) if isinstance(item, Label) else (item, None)


def _messages(question: Question) -> list[dict[str, str]]:
    return [{"role": "user", "content": format_question(question)}]


def _plain_schema():
    import pyarrow as pa

    text, texts = pa.string(), pa.list_(pa.string())
    provenance = {
        "index": pa.int64(),
        "prompt_hash": text,
        "seed_ids": texts,
        "rho": pa.float64(),
        "entity": text,
        "entity_id": text,
        "passage_ids": texts,
        "topic": text,
        "teacher": text,
        "answered_by": text,
        "permutation": pa.list_(pa.int64()),
        "random_seed": pa.int64(),
        "commit": text,
    }
    return pa.schema(
        {
            "id": text,
            "question": text,
            "options": texts,
            "answer": text,
            "rare": pa.bool_(),
            "topic": text,
            "source": text,
            "kept": pa.bool_(),
            "outcome": text,
            "votes": pa.list_(pa.int64()),
            "votes_requested": pa.int64(),
            "votes_taken": pa.int64(),
            "votes_valid": pa.int64(),
            "confidence_requested": pa.float64(),
            "confidence_requested_most": pa.float64(),
            "confidence_valid": pa.float64(),
            "confidence_valid_most": pa.float64(),
            "policy": text,
            "sampling": text,
            "provenance": pa.struct(provenance),
        }
    )


def _chat():
    import pyarrow as pa

    return pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))


def _openrlhf_schema():
    import pyarrow as pa

    return pa.schema({"input": _chat(), "label": pa.string(), "reference": pa.string(), "datasource": pa.string()})


def _verl_schema():
    import pyarrow as pa

    text = pa.string()
    extra = {
        "split": text,
        "index": pa.int64(),
        "id": text,
        "question": text,
        "options": pa.list_(text),
        "rare": pa.bool_(),
        "confidence": pa.float64(),
    }
    return pa.schema(
        {
            "data_source": text,
            "prompt": _chat(),
            "ability": text,
            "reward_model": pa.struct({"style": text, "ground_truth": text}),
            "extra_info": pa.struct(extra),
        }
    )


_VOTE_COLUMNS = (
    "kept",
    "outcome",
    "votes",
    "votes_requested",
    "votes_taken",
    "votes_valid",
    "confidence_requested",
    "confidence_requested_most",
    "confidence_valid",
    "confidence_valid_most",
    "policy",
    "sampling",
)
_PLAIN = (
    "`options` are in letter order (A first); `answer` is the majority letter of the vote, null where there is none; "
    "`votes` counts the votes by letter; the `confidence` columns name their denominator; "
    "voting may stop once the label is certain, and they then give the least and the `most` that all votes could show."
)
_OPENRLHF = (
    "For OpenRLHF: `--data.input_key input --data.label_key label --data.apply_chat_template`. `label` is the letter, "
    "empty without labels; `reference` holds letter, options and id as JSON, for a reward that reads the options too."
)
_VERL = (
    "For verl: `reward_model.ground_truth` is the letter, empty without labels. verl has no reward function for this "
    "`data_source`; give it one by `custom_reward_function`. The prompt ends with the instruction "
    f"{INSTRUCTION!r}, and `medssr_dist.data.answers.grade` reads the answer."
)
FORMS = {
    "parquet": ExportForm("train.parquet", plain_row, _plain_schema, False, _PLAIN),
    "jsonl": ExportForm("train.jsonl", plain_row, _plain_schema, False, _PLAIN),
    "openrlhf": ExportForm("train.jsonl", openrlhf_row, _openrlhf_schema, True, _OPENRLHF),
    "verl": ExportForm("train.parquet", verl_row, _verl_schema, True, _VERL),
}
