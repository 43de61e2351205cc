"""`medssr export`: a run's questions, with their pseudo-labels, as a data set others can load.

Four forms: `parquet` and `jsonl` for `datasets.load_dataset(FOLDER)`, `openrlhf` (JSONL) and `verl` (Parquet)
for those trainers. Prompts have the very words of vote, reward and evaluation. One question is held at a
time, a block of them in Parquet; of those voted on `--labels all` keeps the ids, 70 bytes each.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import yaml
from tqdm import tqdm

from medssr_dist.commands.export_forms import FORMS, ExportForm
from medssr_dist.data.cards import CARD, render_header
from medssr_dist.data.jsonl import raise_if_disk_full, read_text, write_atomic
from medssr_dist.data.records import Label, Question, Record, parse_record
from medssr_dist.errors import InputError
from medssr_dist.run.paths import RunPaths
from medssr_dist.synthesis.card import size_category

LABELS = ("kept", "all", "none")
_BLOCK = 2_000  # rows a Parquet row group


def export_run(run_dir: Path, to: Path, form: str, labels: str) -> int:
    """Write the questions of `run_dir` to the new folder `to`; returns how many.

    Args:
        form: parquet, jsonl, openrlhf or verl.
        labels: 'kept': the questions whose pseudo-label passed the vote's threshold; 'all': every question, with
            what the vote gave it where it has been voted on (openrlhf and verl: every question with a majority
            letter, kept or not); 'none': every question, without labels.

    Raises:
        InputError: unknown form, a run without questions, labels or card, or `to` exists and is not empty.
    """
    layout = _form(form, labels)
    run = RunPaths(Path(run_dir))
    questions, voted, card = run.synthesis.questions, run.voting.labels, run.synthesis.card
    _refuse_unfit(questions, voted, card, labels)
    with _new_folder(Path(to)) as folder:
        items = _items(questions, voted, labels)
        if layout.needs_answer and labels != "none":
            items = (item for item in items if isinstance(item, Label) and item.answer)
        count = _write(folder / layout.file, layout, items)
        if not count:
            raise InputError(f"{run_dir} has no question that --labels {labels} takes; try --labels all or none")
        write_atomic(folder / CARD, _card(card, layout, count, labels))
    return count


def _form(form: str, labels: str) -> ExportForm:
    if form not in FORMS:
        raise InputError(f"--form {form} is unknown; choose one of {', '.join(FORMS)}")
    if labels not in LABELS:
        raise InputError(f"--labels {labels} is unknown; choose one of {', '.join(LABELS)}")
    return FORMS[form]


def _refuse_unfit(questions: Path, voted: Path, card: Path, labels: str) -> None:
    run_dir = questions.parents[1]
    if not questions.exists() or not questions.stat().st_size:
        raise InputError(f"{run_dir} has no questions ({questions}); run `medssr synthesize`, or correct --run-dir")
    if not card.exists():
        raise InputError(f"{run_dir} has no dataset card ({card}): end its `medssr synthesize` first")
    if labels != "none" and not voted.exists():
        raise InputError(f"{run_dir} has no labels ({voted}); run `medssr vote`, or give --labels none")


@contextmanager
def _new_folder(to: Path) -> Iterator[Path]:
    """A temporary folder that becomes `to` when the block ends well and goes when it does not."""
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


def _items(questions: Path, voted: Path, labels: str) -> Iterator[Question | Label]:
    """A Label for a question that was voted on, the Question itself for one that was not."""
    if labels == "none":
        yield from _records(Question, questions)
        return
    seen = set()  # as numbers: a third of the memory of the ids
    for label in _records(Label, voted):
        if labels == "all":
            seen.add(int(label.question.id, 16))
            yield label
        elif label.kept:
            yield label
    if labels == "all":
        yield from (item for item in _records(Question, questions) if int(item.id, 16) not in seen)


def _records(kind: type[Record], path: Path) -> Iterator[Record]:
    """The records of a JSONL file, read line by line; a torn last line (a writer at work) is left out."""
    with (
        open(path, "rb") as file,
        tqdm(total=path.stat().st_size, desc=f"export: {path.name}", unit="B", unit_scale=True) as bar,
    ):
        for number, line in enumerate(file, start=1):
            if line.endswith(b"\n"):
                try:
                    row = msgspec.json.decode(line, type=dict)
                except msgspec.DecodeError as error:
                    raise InputError(f"{path} line {number}: {error}; repair or drop the line") from None
                yield parse_record(kind, row, f"{path} line {number}")
            bar.update(len(line))


def _write(path: Path, layout: ExportForm, items: Iterable[Question | Label]) -> int:
    rows = (layout.row(item, index) for index, item in enumerate(items))
    return _write_parquet(path, layout.schema(), rows) if path.suffix == ".parquet" else _write_jsonl(path, rows)


def _write_jsonl(path: Path, rows: Iterator[dict]) -> int:
    count, encode = 0, msgspec.json.Encoder().encode
    with open(path, "wb") as file:
        for row in rows:
            file.write(encode(row) + b"\n")
            count += 1
    return count


def _write_parquet(path: Path, schema, rows: Iterator[dict]) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    count = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        while block := list(itertools.islice(rows, _BLOCK)):
            writer.write_table(pa.Table.from_pylist(block, schema=schema))
            count += len(block)
    return count


def _card(card: Path, layout: ExportForm, count: int, labels: str) -> str:
    """The run's card, its header pointing to the exported file and naming its columns."""
    from datasets import Features

    _, header, body = read_text(card).split("---\n", 2)
    changed = yaml.safe_load(header) | {
        "size_categories": [size_category(count)],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": layout.file}]}],
        "dataset_info": {"features": Features.from_arrow_schema(layout.schema())._to_yaml_list()},
    }
    note = f"## This export\n\n{count:,} questions, labels: {labels}. {layout.about}"
    return f"{render_header(changed)}{body.rstrip()}\n\n{note}\n"
