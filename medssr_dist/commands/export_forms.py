"""The four forms of an export: columns, their types, and the content of a row.

All rows have the same columns, with null for a missing value, and options are a list in letter order. Thus a loader
does not have to guess types. The schemas have pyarrow types; the header of the dataset card repeats them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from medssr_dist.data.prompt_forms import PromptForm
from medssr_dist.data.records import Label, Question

if TYPE_CHECKING:
    import pyarrow as pa

_DATA_SOURCE = "medssr"


@dataclass(frozen=True)
class ExportForm:
    """One form of an export.

    Example:
        ExportForm("train.parquet", build_plain_row, _plain_schema, needs_answer=False, about="`options` are ...")

    Attributes:
        file: name of the data file.
        row: `row(item, index, prompt)` returns the columns of one row; `item` is a Label, or a Question without label.
        schema: returns the pyarrow schema of the file.
        needs_answer: whether questions without a majority letter are left out (unless labels are not exported at all).
        about: a paragraph for the dataset card.
    """

    file: str
    row: Callable[[Question | Label, int, PromptForm], dict[str, Any]]
    schema: Callable[[], pa.Schema]
    needs_answer: bool
    about: str


def build_plain_row(item: Question | Label, index: int, prompt: PromptForm) -> dict[str, Any]:
    """Return the question, the columns of its label, and its provenance."""
    question, label = _split_item(item)
    row: dict[str, Any] = {
        "id": question.id,
        "question": question.stem,
        "options": list(question.options.values()),
        "answer": None,
        "rare": question.rare,
        "topic": question.topic,
        "source": question.source,
    }
    row |= _vote_columns(question, label)
    provenance = question.provenance
    row["provenance"] = provenance.model_dump(mode="json", exclude={"schema_version"}) if provenance else None
    return row


def _vote_columns(question: Question, label: Label | None) -> dict[str, Any]:
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


def build_openrlhf_row(item: Question | Label, index: int, prompt: PromptForm) -> dict[str, Any]:
    """Return the columns that OpenRLHF's PromptDataset reads: chat messages, label, reference and data source."""
    question, label = _split_item(item)
    answer = label.answer if label else ""
    return {
        "input": _build_messages(question, prompt),
        "label": answer,
        "reference": json.dumps({"answer": answer, "options": question.options, "id": question.id}, ensure_ascii=False),
        "datasource": _DATA_SOURCE,
    }


def build_verl_row(item: Question | Label, index: int, prompt: PromptForm) -> dict[str, Any]:
    """Return the five columns that verl reads."""
    question, label = _split_item(item)
    return {
        "data_source": _DATA_SOURCE,
        "prompt": _build_messages(question, prompt),
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


def _split_item(item: Question | Label) -> tuple[Question, Label | None]:
    return (item.question, item) if isinstance(item, Label) else (item, None)


def _build_messages(question: Question, prompt: PromptForm) -> list[dict[str, str]]:
    system = [{"role": "system", "content": prompt.system}] if prompt.system else []
    return [*system, {"role": "user", "content": prompt.fill_in(question)}]


def _plain_schema() -> pa.Schema:
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


def _chat_type() -> pa.DataType:
    import pyarrow as pa

    return pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))


def _openrlhf_schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema({"input": _chat_type(), "label": pa.string(), "reference": pa.string(), "datasource": pa.string()})


def _verl_schema() -> pa.Schema:
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
            "prompt": _chat_type(),
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
    "voting may stop once the label is certain; the columns then hold the least and the `most` that all votes could "
    "give."
)
_OPENRLHF = (
    "For OpenRLHF: `--data.input_key input --data.label_key label --data.apply_chat_template`. `label` is the letter, "
    "empty without labels; `reference` holds letter, options and id as JSON, for a reward that reads the options too."
)
_VERL = (
    "For verl: `reward_model.ground_truth` is the letter, empty without labels. verl has no reward function for this "
    "`data_source`; give it one by `custom_reward_function`, for example around `medssr_dist.data.answers.grade`."
)
FORMS = {
    "parquet": ExportForm("train.parquet", build_plain_row, _plain_schema, False, _PLAIN),
    "jsonl": ExportForm("train.jsonl", build_plain_row, _plain_schema, False, _PLAIN),
    "openrlhf": ExportForm("train.jsonl", build_openrlhf_row, _openrlhf_schema, True, _OPENRLHF),
    "verl": ExportForm("train.parquet", build_verl_row, _verl_schema, True, _VERL),
}
