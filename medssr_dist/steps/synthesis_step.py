"""Step 1: write new questions from seed questions, rare diseases and passages (paper section 3.1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from medssr_dist.data.records import Question
from medssr_dist.errors import InputError
from medssr_dist.knowledge.entities import EntityList, draw_run_entities, write_entities
from medssr_dist.knowledge.retrieval import Retriever
from medssr_dist.offline_teacher import open_endpoints
from medssr_dist.readers import (
    name_source,
    read_all,
    read_calibration_questions,
    read_questions,
    read_validation_questions,
    refuse_evaluation_items,
)
from medssr_dist.run.background import ThreadStep
from medssr_dist.run.clock import time_step
from medssr_dist.run.demand import QuestionDemand, make_demand
from medssr_dist.run.directory import find_commit
from medssr_dist.run.session import Session
from medssr_dist.run.stream import QuestionFeed, clear_end
from medssr_dist.steps.step_inputs import hash_questions
from medssr_dist.synthesis.prompts import QuestionPrompt, load_question_prompt
from medssr_dist.synthesis.synthesis_summary import read_synthesis_summary
from medssr_dist.synthesis.synthesize import SynthesisInputs, has_more_to_do
from medssr_dist.synthesis.synthesize import synthesize as write_questions


@dataclass(frozen=True)
class _Sources:
    """What the questions are written from, and the benchmarks and validation (by name) that they must not repeat.

    `entities` is None if no question has an entity (synthesis.alpha = 0).
    """

    prompt: QuestionPrompt
    seeds: list[Question]
    benchmarks: dict[str, list[Question]]
    entities: EntityList | None
    retriever: Retriever

    @property
    def fingerprints(self) -> dict[str, str]:
        return {"seeds": hash_questions(self.seeds), "prompt": self.prompt.hash}


def synthesize(session: Session) -> None:
    """Step 1: write new questions from seed questions, rare diseases and passages (paper section 3.1)."""
    sources = _read_sources(session)
    if wants_more_questions(session):
        _reopen_synthesis(session)
    demand = _make_demand(session)
    session.run_step(
        "synthesize",
        sources.fingerprints,
        lambda: _prepare_synthesis(session, sources)(session.should_stop, demand=demand),
    )


def _read_sources(session: Session) -> _Sources:
    config, random_seed = session.config, session.config.runtime.random_seed
    seeds = read_all(config.synthesis.seeds, random_seed)
    benchmarks = {name_source(source): read_questions(source, random_seed) for source in config.evaluation.benchmarks}
    refuse_evaluation_items(seeds, [question for items in benchmarks.values() for question in items])
    if held_out := read_validation_questions(config):
        benchmarks["training.validate"] = held_out
    if calibration := read_calibration_questions(config):
        benchmarks["voting.calibrate"] = calibration
    entities = draw_run_entities(config) if config.synthesis.alpha > 0 else None
    prompt = load_question_prompt(config.synthesis.prompt_file)
    return _Sources(prompt, seeds, benchmarks, entities, Retriever(config.knowledge))


def _make_demand(session: Session, vote_follows: bool = False) -> QuestionDemand:
    return make_demand(session.config, session.run.voting.labels, vote_follows)


def wants_more_questions(session: Session, vote_follows: bool = False) -> bool:
    """Return whether a finished synthesis has more to do: the config asks for more, or too few labels are kept.

    With `voting.kept`, a vote that has begun is finished first, unless it follows synthesis: it may find enough.
    """
    run, config = session.run, session.config
    if not run.is_finished("synthesize"):
        return False
    if config.voting.kept and not vote_follows and "vote" in run.read_manifest().steps and not run.is_finished("vote"):
        return False
    return has_more_to_do(config.synthesis, run.synthesis.folder, _make_demand(session, vote_follows).count_wanted())


def _reopen_synthesis(session: Session) -> None:
    """Reopen a finished synthesis; with `voting.kept` also the vote, which continues from its labels."""
    session.run.reopen_step("synthesize", followers=("vote",) if session.config.voting.kept else ())


def _prepare_synthesis(session: Session, sources: _Sources) -> Callable[..., object]:
    """Find the passages of all entities, and return the function `(should_stop, should_hold, demand)` of the step.

    Entities without a passage are left out; the list of the others is written for the user to read.
    Finding passages may start Ray, so call this in the main thread; the function it returns may run in another.
    """
    config, paths, retriever = session.config, session.run.synthesis, sources.retriever
    clear_end(paths.questions)
    entities = _keep_covered(sources.entities, retriever) if sources.entities else None
    drawn = list(entities.entities) if entities else []
    if entities:
        write_entities(paths.entities, entities)
    endpoints = partial(open_endpoints, log_path=paths.teacher_log, random_seed=config.runtime.random_seed)
    inputs = SynthesisInputs(
        sources.seeds,
        sources.benchmarks,
        drawn,
        retriever.retrieve,
        retriever.read_passage,
        endpoints,
    )
    return partial(write_questions, config, paths.folder, inputs, find_commit())


def _keep_covered(drawn: EntityList, retriever: Retriever) -> EntityList:
    """Find the passages of all entities; return the entities that have any, with the number of the others."""
    retriever.prepare(drawn.entities)
    retriever.count(drawn.entities)
    return drawn.keep(retriever.keep_covered(drawn.entities), "named by no passage that was found")


def open_finished_questions(session: Session) -> QuestionFeed:
    if not session.run.is_finished("synthesize"):
        raise InputError(f"{session.run.root} has no finished questions; run `medssr synthesize` first")
    return QuestionFeed(session.run.synthesis.questions)


def limit_questions(session: Session) -> int:
    """Return the number of synthetic questions; before synthesis has finished, its upper bound.

    With `voting.kept`, this is the number of labels that stage 1 trains on.
    """
    if session.config.voting.kept:
        return session.config.voting.kept
    if session.run.is_finished("synthesize"):
        return read_synthesis_summary(session.run.synthesis.summary).accepted
    return session.config.synthesis.accepted


def start_synthesis(session: Session, feed: QuestionFeed) -> ThreadStep | None:
    """Start synthesis in a thread; it holds new requests back while the vote lags behind. None if it has finished."""
    sources = _read_sources(session)
    if wants_more_questions(session, vote_follows=True):
        _reopen_synthesis(session)
    if not session.begin_step("synthesize", sources.fingerprints):
        return None
    with time_step(session.run.root, "synthesize"):
        work = _prepare_synthesis(session, sources)

    def should_hold(accepted: int) -> bool:
        return accepted - feed.given > session.config.voting.question_buffer

    demand = _make_demand(session, vote_follows=True)
    return ThreadStep(lambda should_stop: work(should_stop, should_hold, demand), session.should_stop)
