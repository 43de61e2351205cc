"""Rows of the plan that `--dry-run` prints, and the forecast of the wall time as such rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from medssr_dist.config.base import DataSource
from medssr_dist.config.schema import Config
from medssr_dist.config.training import Stage
from medssr_dist.estimates.rates import Rates
from medssr_dist.estimates.walltime import CONCURRENT_STEPS, DataCounts, forecast_walltime
from medssr_dist.estimates.workload import count_mixed_labels, count_stage_steps, expect_questions
from medssr_dist.readers import count_facts, name_source, read_questions
from medssr_dist.run.clock import format_duration
from medssr_dist.run.paths import STAGES
from medssr_dist.runtime.cluster import count_slots_at_once
from medssr_dist.sources.hub_sets import find_hub_place


class PlanRow(NamedTuple):
    """One line of the plan. Example: PlanRow("model", "HuggingFaceTB/SmolLM2-135M"). The label may be empty."""

    label: str
    text: str


def print_rows(title: str, rows: Iterable[PlanRow]) -> None:
    """Print `title` and, indented below it, one line for each row."""
    print(f"{title}:")
    for label, text in rows:
        print(f"  {label:<18}{text}".rstrip())


def describe_step_times(
    config: Config, rates: Rates | None, counts: DataCounts, on_gpu: bool, names: Sequence[str]
) -> list[PlanRow]:
    """Return a row for each of the steps `names`: its time at the measured rate, or "unknown", and its work."""
    known = forecast_walltime(config, rates, counts, on_gpu).stream.steps if rates else {}
    rows = []
    for name in names:
        if name in STAGES and not getattr(config.training, name).enabled:
            continue
        time = format_duration(known[name].total) if name in known else "unknown, not measured"
        rows.append(PlanRow(name, f"{time}: {_describe_work(config, counts, name)}"))
    return rows


def _describe_work(config: Config, counts: DataCounts, name: str) -> str:
    """Return how much a step has to do, at most."""
    voting, questions = config.voting, expect_questions(config)
    if name == "synthesize":
        most = config.synthesis.most_candidates
        return f"{questions:,} questions, at most {most:,} replies of at most {config.synthesis.max_tokens:,} tokens"
    if name == "vote":
        votes = questions * voting.samples
        return f"at most {votes:,} votes, {votes * voting.max_tokens:,} tokens"
    if name == "evaluate":
        return f"{counts.answers:,} answers, at most {counts.answers * config.evaluation.max_tokens:,} tokens"
    stage: Stage = getattr(config.training, name)
    labels = count_mixed_labels(config) if name == "stage2" else config.voting.kept or config.synthesis.accepted
    steps = count_stage_steps(stage, labels + (counts.gold_examples if name == "stage2" else 0))
    sequences = stage.prompts_per_step * stage.samples_per_prompt
    return f"at most {steps:,} GRPO steps of {sequences:,} sequences of at most {stage.max_new_tokens:,} tokens"


def describe_forecast(config: Config, rates: Rates, counts: DataCounts, on_gpu: bool) -> list[PlanRow]:
    """Return rows with the rates, and with the wall time in mode `stream` and in mode `sequential`."""
    forecasts = forecast_walltime(config, rates, counts, on_gpu)
    streamed, alone = forecasts.stream.steps, forecasts.sequential.steps
    work = ", ".join(f"{name} {format_duration(streamed[name].work)}" for name in CONCURRENT_STEPS if name in streamed)
    start = max((streamed[name].start for name in CONCURRENT_STEPS if name in streamed), default=0.0)
    after = "".join(
        f" + {name} {format_duration(time.total)}" for name, time in streamed.items() if name not in CONCURRENT_STEPS
    )
    longest = "longest of" if on_gpu else "longest, vote and stage 1 added up, of"
    sums = {
        "stream": f"start-up {format_duration(start)} + {longest} ({work}){after}",
        "sequential": " + ".join(f"{name} {format_duration(time.total)}" for name, time in alone.items()),
    }
    rows = [PlanRow("rates", f"of {rates.source}, runtime.mode={rates.mode}")]
    rows += [PlanRow("", text) for text in _describe_rates(rates)]
    for mode, terms in sums.items():
        forecast = getattr(forecasts, mode)
        slots = count_slots_at_once(_set_mode(config, "stream" if config.runtime.mode == "stream" else mode))
        where = f"{slots} GPUs" if on_gpu else "these cores"
        without = f"; without {', '.join(forecast.unknown)}, not measured" if forecast.unknown else ""
        rows.append(PlanRow(mode, f"{format_duration(forecast.seconds)} on {where} = {terms}{without}"))
    return rows


def _set_mode(config: Config, mode: str) -> Config:
    return config.model_copy(update={"runtime": config.runtime.model_copy(update={"mode": mode})})


def _describe_rates(rates: Rates) -> list[str]:
    lines = []
    if rates.questions_per_s:
        lines.append(f"synthesize: {rates.questions_per_s:,.2f} accepted questions/s")
    if vote := rates.vote:
        lines.append(
            f"vote: {vote.tokens_per_s:,.1f} tokens/s, {vote.tokens_per_question:,.0f} tokens a question of "
            f"{vote.samples} votes, {100 * vote.kept_share:.0f}% kept"
        )
    for name, rate in rates.stages.items():
        step = rate.generate_s + rate.learn_s + rate.sync_s
        lines.append(f"{name}: {step:,.1f} s a step of {rate.sequences} sequences, without waiting for labels")
    if rates.answers_per_s:
        lines.append(f"evaluate: {rates.answers_per_s:,.2f} answers/s")
    return lines


def describe_sources(label: str, sources: list[DataSource], config: Config, with_facts: bool = False) -> list[PlanRow]:
    """Return a row for each data set: its name, its place and the number of its questions, or what it consists of.

    Raises:
        InputError: a data set cannot be read.
    """
    rows = []
    for source in sources:
        questions = read_questions(source, config.runtime.random_seed)
        content = count_facts(questions).describe() if with_facts else f"{len(questions):,} questions"
        rows.append(PlanRow(label, f"{name_source(source)}{_describe_place(source)}, {content}"))
    return rows


def _describe_place(source: DataSource) -> str:
    if source.path.startswith("hpo:"):
        return ""
    place = find_hub_place(source, source.revision)
    return f" ({f'huggingface.co/datasets/{place.label}' if place else Path(source.path).resolve()})"
