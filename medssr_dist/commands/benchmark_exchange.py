"""Benchmarks for lm-evaluation-harness and inspect_ai, and the scores of what these two have generated.

`medssr tasks` writes a benchmark with the policy's prompt as a task (YAML and data) of lm-evaluation-harness, or as a
dataset of inspect_ai. `medssr score` reads the generations that either has stored and scores them by our two protocols.
There is no second pass then: an answer in which a protocol reads no letter is wrong.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import yaml
from pydantic import BaseModel, Field

from medssr_dist.config.schema import Config
from medssr_dist.data.jsonl import read_json, read_jsonl, write_atomic
from medssr_dist.data.records import Question, parse_record
from medssr_dist.errors import InputError
from medssr_dist.evaluation.benchmarks import read_benchmarks
from medssr_dist.evaluation.paper_rule import list_gold_letters
from medssr_dist.evaluation.policy_answers import Answer, PolicyAnswers, SecondPass, SecondPassKey
from medssr_dist.evaluation.reading_rules import list_rules
from medssr_dist.evaluation.score_report import render_table
from medssr_dist.evaluation.scoring import build_scores, collect_letters

_LM_EVAL, _INSPECT = "lm_eval", "inspect"


class _Generation(NamedTuple):
    """A stored text. Example: _Generation("ab12..", 0, "The answer is B.", False)."""

    question_id: str
    generation: int
    text: str
    truncated: bool


class _Doc(BaseModel):
    id: str


class _LmEvalSample(BaseModel):
    """A line of samples_*.jsonl; other keys are left out."""

    doc: _Doc
    resps: Annotated[list[str | list[str]], Field(min_length=1)]


class _Part(BaseModel):
    text: str | None = None


class _Message(BaseModel):
    content: str | list[_Part] | None = None


class _Choice(BaseModel):
    message: _Message | None = None
    stop_reason: str | None = None


class _Output(BaseModel):
    choices: list[_Choice] | None = None


class _InspectSample(BaseModel):
    id: str | int
    epoch: Annotated[int, Field(ge=1)] = 1
    error: Any = None
    output: _Output | None = None


class _InspectLog(BaseModel):
    """A log of inspect_ai as JSON; other keys are left out."""

    samples: list[_InspectSample]


def write_tasks(config: Config, folder: Path, form: str) -> None:
    """Write each benchmark of `config` into `folder`, and print the command that runs it.

    Args:
        form: "lm_eval" or "inspect".

    Raises:
        InputError: the folder is not empty, or a benchmark cannot be read.
    """
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty; give a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    benchmarks = read_benchmarks(config.evaluation, config.runtime.random_seed)
    for name, questions in benchmarks.items():
        unique = list({question.id: question for question in questions}.values())
        rows = [
            _make_sample(question, config) if form == _INSPECT else _make_doc(question, config) for question in unique
        ]
        data = folder / f"{name}.jsonl"
        write_atomic(data, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        if form == _LM_EVAL:
            task = yaml.safe_dump(_make_task(name, data.resolve(), config), sort_keys=False)
            write_atomic(folder / f"{name}.yaml", task)
        print(f"{name}: {len(rows):,} questions in {data}")
    if form == _LM_EVAL:
        tasks = ",".join(f"medssr_{name}" for name in benchmarks)
        print(f"lm_eval --model hf --model_args pretrained=MODEL --include_path {folder} --tasks {tasks}", end=" ")
        print("--log_samples --output_path OUT; with a chat model also --apply_chat_template")
    else:
        print(f"in a task: dataset=inspect_ai.dataset.json_dataset({str(folder / 'NAME.jsonl')!r}), solver=generate()")


def _make_doc(question: Question, config: Config) -> dict[str, Any]:
    prompt = config.policy.prompt.fill_in(question)
    return {"id": question.id, "prompt": prompt, "options": question.options, "answer": question.truth}


def _make_sample(question: Question, config: Config) -> dict[str, Any]:
    prompt = config.policy.prompt.fill_in(question)
    return {"id": question.id, "input": prompt, "target": question.truth, "metadata": {"options": question.options}}


def _make_task(name: str, data: Path, config: Config) -> dict[str, Any]:
    """Return a task of lm-evaluation-harness. Its own score is a rough one: of the last sentence "The answer is X"."""
    evaluation, prompt = config.evaluation, config.policy.prompt
    return {
        "task": f"medssr_{name}",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{answer}}",
        "repeats": evaluation.generations,
        "generation_kwargs": {
            "until": list(prompt.stop),
            "do_sample": evaluation.temperature > 0,
            "temperature": evaluation.temperature,
            "top_p": evaluation.top_p,
            "max_gen_toks": evaluation.max_tokens,
        },
        "filter_list": [
            {
                "name": "last_letter",
                "filter": [
                    {"function": "regex", "regex_pattern": r"answer is \W*([A-J])\b", "group_select": -1},
                    {"function": "take_first"},
                ],
            }
        ],
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1},
    }


def score_generations(config: Config, files: Sequence[Path]) -> None:
    """Print the scores of stored generations on the benchmarks of `config`, with paired differences between the files.

    Args:
        files: samples_*.jsonl of `lm_eval --log_samples`, or a log of inspect_ai as JSON; one policy each.

    Raises:
        InputError: a file is of neither form, or lacks an answer to a question.
    """
    benchmarks = read_benchmarks(config.evaluation, config.runtime.random_seed)
    names = [file.stem if len({each.stem for each in files}) == len(files) else str(file) for file in files]
    found = {name: list(_read_generations(file)) for name, file in zip(names, files, strict=True)}
    count = min(_count_generations(name, benchmarks, rows) for name, rows in found.items())
    answers = {name: _collect(name, rows, benchmarks, count) for name, rows in found.items()}
    letters = collect_letters(benchmarks, answers)
    evaluation = config.evaluation.model_copy(update={"generations": count})
    seconds = dict.fromkeys(answers, 0.0)
    print(
        render_table(build_scores(benchmarks, answers, letters, evaluation, config.runtime.random_seed, seconds)),
        end="",
    )


def _read_generations(file: Path) -> Iterator[_Generation]:
    if file.suffix == ".jsonl":
        yield from _read_lm_eval(file)
    elif file.suffix == ".eval":
        raise InputError(f"{file} is a packed log; write it as JSON: inspect log dump {file.name} > {file.stem}.json")
    else:
        yield from _read_inspect(file)


def _read_lm_eval(file: Path) -> Iterator[_Generation]:
    """Yield the generations of a samples file; each filter repeats them, so a question counts once."""
    seen: set[str] = set()
    for number, row in enumerate(read_jsonl(file), start=1):
        where = f"{file} line {number} has no doc with an id and resps; run a task of `medssr tasks`"
        sample = parse_record(_LmEvalSample, row, where)
        first = sample.resps[0]
        if sample.doc.id not in seen:
            seen.add(sample.doc.id)
            texts = first if isinstance(first, list) else sample.resps
            yield from (_Generation(sample.doc.id, place, str(text), False) for place, text in enumerate(texts))


def _read_inspect(file: Path) -> Iterator[_Generation]:
    log = parse_record(_InspectLog, read_json(file), f"{file} is no log of inspect_ai")
    for sample in log.samples:
        choices = sample.output.choices if sample.output else ()
        if sample.error or not choices:  # no answer was given, which is not a wrong answer
            raise InputError(
                f"{file}: sample {str(sample.id)[:40]!r} ended without a reply; finish the evaluation, e.g. by "
                "`inspect eval-retry`"
            )
        content = (choices[0].message.content if choices[0].message else None) or ""
        text = content if isinstance(content, str) else "".join(part.text or "" for part in content)
        yield _Generation(str(sample.id), sample.epoch - 1, text, choices[0].stop_reason == "max_tokens")


def _count_generations(name: str, benchmarks: dict[str, list[Question]], rows: list[_Generation]) -> int:
    """Return how many generations a file has of every question."""
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.question_id] = counts.get(row.question_id, 0) + 1
    wanted = {question.id for questions in benchmarks.values() for question in questions}
    if missing := wanted - counts.keys():
        raise InputError(
            f"{name} has no answer to {len(missing):,} of {len(wanted):,} questions; give the benchmark and the limit "
            "that it was made with"
        )
    return min(counts[question_id] for question_id in wanted)


def _collect(name: str, rows: list[_Generation], benchmarks: dict[str, list[Question]], count: int) -> PolicyAnswers:
    found = PolicyAnswers(list_rules(name), count)
    shared = {"policy": name, "sampling": "", "seed": 0, "tokens": 0}
    for row in rows:
        found.first[row.question_id, row.generation] = Answer(**shared, **row._asdict())
    for questions in benchmarks.values():
        gold_letters = list_gold_letters(questions)
        for question in questions:
            for rule in found.rules:
                choices = "".join(rule.list_choices(question, gold_letters))
                for generation in range(count):
                    key = SecondPassKey(question.id, generation, rule.name, choices)
                    none = {"policy": name, "sampling": "", "letter": None, "tokens": 0}
                    found.second[key] = SecondPass(**key._asdict(), **none)
    return found
