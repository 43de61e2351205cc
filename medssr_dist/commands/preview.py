"""`medssr preview`: send a few requests for questions and show all about their replies; nothing is kept.

The requests are the first ones of the run: the same draws, seeds, passages and endpoints, and the same checks. Where
the passages of all diseases have not been retrieved yet, only those of the diseases that are shown are, and a disease
that the run would leave out, because no passage names it, may be drawn here.
"""

from __future__ import annotations

import tempfile
import textwrap
from functools import partial
from pathlib import Path

from medssr_dist.commands.prefetch import find_indexes
from medssr_dist.config.price_table import describe_cost
from medssr_dist.config.schema import Config
from medssr_dist.config.synthesis import HPO_PASSAGES
from medssr_dist.data.jsonl import read_jsonl
from medssr_dist.data.records import Question, Rejected, parse_record
from medssr_dist.errors import InputError
from medssr_dist.knowledge.entities import Entity, draw_run_entities
from medssr_dist.knowledge.retrieval import Retriever
from medssr_dist.offline_teacher import open_endpoints
from medssr_dist.readers import name_source, read_all, read_questions, refuse_evaluation_items
from medssr_dist.run.directory import find_commit
from medssr_dist.run.paths import SynthesisPaths
from medssr_dist.synthesis.journal import Journal, JournalEntry
from medssr_dist.synthesis.request_plan import Draws, RequestPlan
from medssr_dist.synthesis.synthesize import SynthesisInputs, check_inputs, synthesize

_WIDTH = 110


def preview(config: Config, count: int, show_prompt: bool = True) -> None:
    """Send the first `count` requests of a run and print prompt, reply, checks and cost of each; keep nothing.

    Args:
        show_prompt: false leaves out the prompts, which are long.

    Raises:
        InputError: the seeds, the knowledge or the endpoints cannot be used.
    """
    config = _limit(config, count)
    with tempfile.TemporaryDirectory(prefix="medssr-preview-") as folder:
        inputs = _read_inputs(config, Path(folder))
        synthesize(config, Path(folder), inputs, find_commit())
        _print_replies(config, inputs, Path(folder), show_prompt)


def _limit(config: Config, count: int) -> Config:
    changed = {"accepted": count, "candidates": count, "review_sample": 0, "max_reject_share": 1.0, "transport": "chat"}
    synthesis = config.synthesis.model_copy(update=changed)
    voting = config.voting.model_copy(update={"kept": 0})
    return config.model_copy(update={"synthesis": synthesis, "voting": voting})


def _read_inputs(config: Config, folder: Path) -> SynthesisInputs:
    synthesis, random_seed = config.synthesis, config.runtime.random_seed
    seeds = read_all(synthesis.seeds, random_seed)
    benchmarks = {name_source(source): read_questions(source, random_seed) for source in config.evaluation.benchmarks}
    refuse_evaluation_items(seeds, [question for items in benchmarks.values() for question in items])
    retriever = Retriever(config.knowledge)
    entities = list(draw_run_entities(config).entities) if synthesis.alpha > 0 else []
    if entities and find_indexes(config.knowledge) and not retriever.list_missing(entities):
        entities = retriever.keep_covered(entities)
    check_inputs(config, seeds, entities)
    if (
        entities
        and not find_indexes(config.knowledge)
        and any(c.path != HPO_PASSAGES for c in config.knowledge.corpora)
    ):
        raise InputError(
            "the passage index is not built yet, which may take long; run `medssr prefetch`, or preview with "
            "knowledge.corpora='[hpo]' or synthesis.alpha=0"
        )
    retriever.prepare(_list_drawn(config, seeds, entities))
    endpoints = partial(open_endpoints, log_path=folder / "teacher.log", random_seed=random_seed)
    return SynthesisInputs(seeds, benchmarks, entities, retriever.retrieve, retriever.read_passage, endpoints)


def _list_drawn(config: Config, seeds: list[Question], entities: list[Entity]) -> list[Entity]:
    """Return the diseases of the first requests."""
    synthesis = config.synthesis
    draws = Draws(
        config.runtime.random_seed, synthesis.alpha, seeds, entities, synthesis.seed_pairs, synthesis.entity_choice
    )
    drawn = (draws.draw(index).entity for index in range(synthesis.accepted))
    return list({entity.id: entity for entity in drawn if entity}.values())


def _print_replies(config: Config, inputs: SynthesisInputs, folder: Path, show_prompt: bool) -> None:
    paths, synthesis = SynthesisPaths(folder), config.synthesis
    accepted = {
        question.provenance.index: question
        for question in (parse_record(Question, row, "question") for row in read_jsonl(paths.questions))
        if question.provenance
    }
    rejected = {
        reply.index: reply for reply in (parse_record(Rejected, row, "reply") for row in read_jsonl(paths.rejected))
    }
    plan = RequestPlan(config, inputs.seeds, inputs.entities, inputs.retrieve, find_commit())
    prompt_tokens = reply_tokens = 0
    with Journal(paths.journal) as journal:
        for index in range(synthesis.accepted):
            if index not in journal:
                continue
            entry = journal.read(index)
            prompt_tokens += entry.prompt_tokens
            reply_tokens += entry.completion_tokens
            _print_request(config, plan, entry, show_prompt)
            _print_outcome(accepted.get(index), rejected.get(index))
    cost = describe_cost(synthesis, synthesis.models, prompt_tokens, reply_tokens)
    tokens = f"{prompt_tokens:,} prompt tokens, {reply_tokens:,} reply tokens"
    print(f"{len(accepted)} of {len(accepted) + len(rejected)} accepted; {tokens}, cost {cost}; nothing was kept")


def _print_request(config: Config, plan: RequestPlan, entry: JournalEntry, show_prompt: bool) -> None:
    origin = entry.provenance
    about = f"about {origin.entity}" if origin.entity else "without a disease"
    print(f"===== request {origin.index}: {about}; model {origin.answered_by or entry.model} =====")
    if origin.passage_ids:
        print(f"passages: {', '.join(origin.passage_ids)}")
    if show_prompt:
        for message in plan.build_request(origin.index).messages:
            print(f"--- {message['role']} ---\n{message['content']}")
    print(f"--- reply, {entry.finish_reason or 'end not reported'} ---")
    print(entry.reply if entry.reply is not None else f"none: {entry.gave_up} ({entry.detail})")
    cost = describe_cost(config.synthesis, [entry.model], entry.prompt_tokens, entry.completion_tokens)
    print(f"--- {entry.prompt_tokens:,} prompt tokens, {entry.completion_tokens:,} reply tokens, cost {cost}")


def _print_outcome(question: Question | None, reply: Rejected | None) -> None:
    if reply:
        print(f"checks: rejected, {reply.reason}: {reply.detail}\n")
    elif question:
        print("checks: accepted as")
        print(textwrap.fill(question.stem, _WIDTH, initial_indent="  ", subsequent_indent="  "))
        print(*(f"  {letter}. {text}" for letter, text in question.options.items()), sep="\n", end="\n\n")
