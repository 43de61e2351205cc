"""`medssr export`: write the questions of a run, with their pseudo-labels, as a data set for other programs.

There are four forms: `parquet` and `jsonl` for `datasets.load_dataset(FOLDER)`, `openrlhf` (JSONL) and `verl` (Parquet)
for these trainers. The turns of the prompts are those of vote, reward and evaluation. Memory is bounded: one question,
or one block of questions in Parquet, is in memory at a time; `--labels all` also keeps the ids of all labelled
questions, about 70 bytes each.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from medssr_dist.commands.export_forms import FORMS, ExportForm
from medssr_dist.data.cards import CARD, render_header
from medssr_dist.data.checksums import LineChecker
from medssr_dist.data.jsonl import open_bytes, raise_if_disk_full, read_text, write_atomic
from medssr_dist.data.prompt_forms import PromptForm, load_prompt_form, parse_prompt_form
from medssr_dist.data.records import Label, Question, Record, parse_record
from medssr_dist.data.yaml_text import parse_yaml
from medssr_dist.errors import InputError
from medssr_dist.run.paths import RunPaths
from medssr_dist.run.recorded_config import read_recorded_config
from medssr_dist.runtime.progress_bar import ProgressBar
from medssr_dist.synthesis.card import size_category

if TYPE_CHECKING:
    import pyarrow as pa

_Kind = TypeVar("_Kind", bound=Record)
LABELS = ("kept", "all", "none")
_BLOCK = 2_000  # rows of one Parquet row group


def export_run(run_dir: Path, to: Path, form: str, labels: str) -> int:
    """Write the questions of `run_dir` to the new folder `to`. Return the number of questions.

    Args:
        form: parquet, jsonl, openrlhf or verl.
        labels: which pseudo-labels to write. "kept": only questions whose label passed the threshold of the vote.
            "all": every question, with its label if it has one (in openrlhf and verl: every question with a majority
            letter, kept or not). "none": every question, without labels.

    Raises:
        InputError: the form is unknown; the run has no questions, labels or dataset card; `to` exists and is not empty.
    """
    export_form = _check_choices(form, labels)
    run = RunPaths(Path(run_dir))
    questions, voted, card = run.synthesis.questions, run.voting.labels, run.synthesis.card
    _refuse_incomplete_run(questions, voted, card, labels)
    with _new_folder(Path(to)) as folder:
        items = _read_items(questions, voted, labels)
        if export_form.needs_answer and labels != "none":
            items = (item for item in items if isinstance(item, Label) and item.answer)
        prompt = _read_prompt(run)
        count = _write(folder / export_form.file, export_form, items, prompt)
        if not count:
            raise InputError(f"{run_dir} has no question that --labels {labels} takes; try --labels all or none")
        write_atomic(folder / CARD, _render_card(card, export_form, count, labels))
    return count


def _check_choices(form: str, labels: str) -> ExportForm:
    if form not in FORMS:
        raise InputError(f"--form {form} is unknown; choose one of {', '.join(FORMS)}")
    if labels not in LABELS:
        raise InputError(f"--labels {labels} is unknown; choose one of {', '.join(LABELS)}")
    return FORMS[form]


def _refuse_incomplete_run(questions: Path, voted: Path, card: Path, labels: str) -> None:
    run_dir = questions.parents[1]
    if not questions.exists() or not questions.stat().st_size:
        raise InputError(f"{run_dir} has no questions ({questions}); run `medssr synthesize`, or correct --run-dir")
    if not card.exists():
        raise InputError(f"{run_dir} has no dataset card ({card}); finish its `medssr synthesize` first")
    if labels != "none" and not voted.exists():
        raise InputError(f"{run_dir} has no labels ({voted}); run `medssr vote`, or give --labels none")


@contextmanager
def _new_folder(to: Path) -> Iterator[Path]:
    """Yield a temporary folder. Rename it to `to` if the block succeeds, delete it if the block fails."""
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise InputError(f"{to} exists and is not an empty folder; give another --to, or remove it")
    partial = to.with_name(f".{to.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        partial.replace(to)
    except OSError as error:
        raise_if_disk_full(error, to)
        raise InputError(f"--to {to} cannot be written ({error.strerror}); choose another folder") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _read_items(questions: Path, voted: Path, labels: str) -> Iterator[Question | Label]:
    """Yield a Label for each question that has one, and the Question itself for the others."""
    if labels == "none":
        yield from _read_records(Question, questions)
        return
    labelled = set()  # ids as integers, which take a third of the memory of the texts
    for label in _read_records(Label, voted):
        if labels == "all":
            labelled.add(int(label.question.id, 16))
            yield label
        elif label.kept:
            yield label
    if labels == "all":
        yield from (item for item in _read_records(Question, questions) if int(item.id, 16) not in labelled)


def _read_records(kind: type[_Kind], path: Path) -> Iterator[_Kind]:
    """Yield the records of a JSONL file. A last line without a newline is skipped: its writer has not finished it."""
    with (
        open_bytes(path) as file,
        ProgressBar(total=path.stat().st_size, desc=f"export: {path.name}", unit="B", unit_scale=True) as bar,
    ):
        checker = LineChecker(path)
        for number, line in enumerate(file, start=1):
            if line.endswith(b"\n"):
                try:
                    row = msgspec.json.decode(checker.open(line) or b"", type=dict)
                except (msgspec.DecodeError, RecursionError) as error:
                    raise InputError(f"{path} line {number}: {error}; repair or delete the line") from None
                yield parse_record(kind, row, f"{path} line {number}")
            bar.update(len(line))


def _read_prompt(run: RunPaths) -> PromptForm:
    """Return the run's prompt, with its system turn. Runs from before there were several have the one of `direct`."""
    policy = read_recorded_config(run.root).policy if run.config_file.exists() else {}
    if "prompt" not in policy:
        return load_prompt_form("direct")
    form = parse_prompt_form(policy["prompt"], f"{run.config_file}: policy.prompt")
    return form.model_copy(update={"system": policy.get("system_prompt") or form.system})


def _write(path: Path, form: ExportForm, items: Iterable[Question | Label], prompt: PromptForm) -> int:
    rows = (form.row(item, index, prompt) for index, item in enumerate(items))
    return _write_parquet(path, form.schema(), rows) if path.suffix == ".parquet" else _write_jsonl(path, rows)


def _write_jsonl(path: Path, rows: Iterator[dict[str, Any]]) -> int:
    count, encode = 0, msgspec.json.Encoder().encode
    with open(path, "wb") as file:
        for row in rows:
            file.write(encode(row) + b"\n")
            count += 1
    return count


def _write_parquet(path: Path, schema: pa.Schema, rows: Iterator[dict[str, Any]]) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    count = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        while block := list(itertools.islice(rows, _BLOCK)):
            writer.write_table(pa.Table.from_pylist(block, schema=schema))
            count += len(block)
    return count


def _render_card(card: Path, form: ExportForm, count: int, labels: str) -> str:
    """Return the dataset card of the run with a new header: the exported file and its columns."""
    from datasets import Features

    _, *parts = read_text(card).split("---\n", 2)
    header = parse_yaml(parts[0], f"the head of {card}") if len(parts) == 2 else None
    if not isinstance(header, dict):
        raise InputError(f"{card} has no head between two lines of ---; put back the card that the run has written")
    changed = header | {
        "size_categories": [size_category(count)],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": form.file}]}],
        "dataset_info": {"features": Features.from_arrow_schema(form.schema())._to_yaml_list()},
    }
    note = f"## This export\n\n{count:,} questions, labels: {labels}. {form.about}"
    return f"{render_header(changed)}{parts[1].rstrip()}\n\n{note}\n"
