"""The method, from top to bottom: synthesize -> vote -> train (stage 1, stage 2) -> evaluate.

1. `synthesize`: a chat API writes multiple-choice questions from seed questions, rare diseases and passages.
2. `vote`: the base model answers each question several times; a clear majority becomes the pseudo-label.
3. Train. 3a. `train_stage1`: GRPO on the questions with a kept pseudo-label. 3b. `train_stage2`: GRPO on
   human-annotated questions.
4. `evaluate`: the base model and the two stages answer the benchmarks.

Each step reads what the step before left in the run directory. A finished step is skipped and an interrupted one is
resumed, so the same command starts a run, resumes it and shows its results.

With `runtime.mode: stream`, the steps 1, 2 and 3a run at the same time in this process (`stream_steps`): synthesis in a
thread, stage 1 in Ray actors, and the vote in the main thread, which handles signals and writes the manifest.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from medssr_dist.config.schema import Config
from medssr_dist.data.cards import CARD
from medssr_dist.data.jsonl import write_json
from medssr_dist.data.records import Question, hash_content
from medssr_dist.errors import InputError
from medssr_dist.estimates.memory import refuse_too_little_memory
from medssr_dist.evaluation.benchmarks import read_benchmarks
from medssr_dist.evaluation.policy_answers import PolicyAnswers
from medssr_dist.evaluation.protocol import evaluate_policy
from medssr_dist.evaluation.score_card import add_scores_to_card
from medssr_dist.evaluation.score_report import write_report
from medssr_dist.evaluation.scoring import build_scores, collect_letters
from medssr_dist.knowledge.entities import EntityList, draw_run_entities, write_entities
from medssr_dist.knowledge.retrieval import Retriever
from medssr_dist.knowledge.vignettes import find_hpo_truth
from medssr_dist.offline_teacher import open_endpoints
from medssr_dist.readers import name_source, read_all, read_questions, refuse_evaluation_items, refuse_unlabelled
from medssr_dist.run.background import BackgroundSteps, ThreadStep
from medssr_dist.run.clock import time_step
from medssr_dist.run.demand import QuestionDemand, make_demand, refuse_unvoted_demand
from medssr_dist.run.directory import RunDir, find_commit
from medssr_dist.run.paths import STAGES, STEPS
from medssr_dist.run.session import Session, open_session
from medssr_dist.run.stream import QuestionFeed, clear_end, has_ended, read_kept_count, read_kept_labels
from medssr_dist.runtime.models import (
    find_revision,
    fingerprint_model,
    load_tokenizer,
    make_prompt_renderer,
    resolve_model,
)
from medssr_dist.summary import build_summary, render_summary
from medssr_dist.synthesis.prompts import QuestionPrompt, load_question_prompt
from medssr_dist.synthesis.synthesis_summary import read_synthesis_summary
from medssr_dist.synthesis.synthesize import SynthesisInputs, has_more_to_do
from medssr_dist.synthesis.synthesize import synthesize as write_questions

if TYPE_CHECKING:
    from medssr_dist.training.train_stage import RunningStage

logger = logging.getLogger(__name__)


def run_steps(config: Config, root: Path, steps: tuple[str, ...] = STEPS) -> None:
    """Run `steps` in the run directory `root`, then write summary.json and print the closing table.

    Args:
        steps: all of STEPS, or one of them.

    Raises:
        InputError: bad input, or a step that the first of `steps` needs has not run.
        Stopped: the run was stopped by SIGTERM, USR1, Ctrl-C or a training deadline; the same call resumes it.
    """
    if steps == STEPS and not config.training.uses_pseudo_labels:
        logger.info("synthesize, vote: skipped, no training stage uses pseudo-labels")
        steps = ("train", "evaluate")
    refuse_unvoted_demand(config, steps)
    with open_session(config, root, before_ray=refuse_too_little_memory) as session:
        with time_step(session.run.root, "run"):
            _run_steps(session, steps)
        _close_run(session)


def _run_steps(session: Session, steps: tuple[str, ...]) -> None:
    refuse_bad_inputs(session, steps)
    if {"synthesize", "vote", "train"} <= set(steps) and session.config.runtime.mode == "stream":
        stream_steps(session)
    else:
        if "synthesize" in steps:
            synthesize(session)
        if "vote" in steps:
            vote(session, _open_finished_questions(session))
        while {"synthesize", "vote"} <= set(steps) and _wants_more_questions(session):
            synthesize(session)
            vote(session, _open_finished_questions(session))
        if "train" in steps:
            train_stage1(session)
    if "vote" in steps:
        _warn_of_missing_labels(session)
    if "train" in steps:
        train_stage2(session)
    if "evaluate" in steps:
        evaluate(session)


def refuse_bad_inputs(session: Session, steps: tuple[str, ...]) -> None:
    """Read the inputs of the later steps, so that a missing one is found before any API call is paid for.

    Raises:
        InputError: an input is missing or cannot be used.
    """
    config = session.config
    if "synthesize" in steps:
        load_question_prompt(config.synthesis.prompt_file)
    if set(steps) & {"vote", "train", "evaluate"}:
        _find_base_model(session)
    if "train" in steps:
        _refuse_bad_training(config)
    if "evaluate" in steps:
        read_benchmarks(config.evaluation, config.runtime.random_seed)


def _refuse_bad_training(config: Config) -> None:
    from medssr_dist.training.deadline import find_end_time
    from medssr_dist.training.trackers import check_trackers

    check_trackers(config.training)
    find_end_time(config.runtime)
    if config.training.stage2.enabled:
        _read_supervised_questions(config)


# --- step 1: synthesize -----------------------------------------------------------------------------
@dataclass(frozen=True)
class _Sources:
    """What the questions are written from, and the benchmarks (by name) that they must not repeat.

    `entities` is None if no question has an entity (synthesis.alpha = 0).
    """

    prompt: QuestionPrompt
    seeds: list[Question]
    benchmarks: dict[str, list[Question]]
    entities: EntityList | None
    retriever: Retriever

    @property
    def fingerprints(self) -> dict[str, str]:
        return {"seeds": _hash_questions(self.seeds), "prompt": self.prompt.hash}


def synthesize(session: Session) -> None:
    """Step 1: write new questions from seed questions, rare diseases and passages (paper section 3.1)."""
    sources = _read_sources(session)
    if _wants_more_questions(session):
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
    entities = draw_run_entities(config) if config.synthesis.alpha > 0 else None
    prompt = load_question_prompt(config.synthesis.prompt_file)
    return _Sources(prompt, seeds, benchmarks, entities, Retriever(config.knowledge))


def _make_demand(session: Session, vote_follows: bool = False) -> QuestionDemand:
    return make_demand(session.config, session.run.voting.labels, vote_follows)


def _wants_more_questions(session: Session, vote_follows: bool = False) -> bool:
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


def _open_finished_questions(session: Session) -> QuestionFeed:
    if not session.run.is_finished("synthesize"):
        raise InputError(f"{session.run.root} has no finished questions; run `medssr synthesize` first")
    return QuestionFeed(session.run.synthesis.questions)


def _limit_questions(session: Session) -> int:
    """Return the number of synthetic questions; before synthesis has finished, its upper bound.

    With `voting.kept`, this is the number of labels that stage 1 trains on.
    """
    if session.config.voting.kept:
        return session.config.voting.kept
    if session.run.is_finished("synthesize"):
        return read_synthesis_summary(session.run.synthesis.summary).accepted
    return session.config.synthesis.accepted


# --- step 2: vote -----------------------------------------------------------------------------------
def vote(
    session: Session, feed: QuestionFeed, watch: Callable[[], object] = lambda: None, trainer_follows: bool = False
) -> None:
    """Step 2: give each question of `feed` a pseudo-label by majority vote of the base model (paper section 3.2).

    Args:
        watch: called several times a second; an exception that it raises ends the vote.
        trainer_follows: stage 1 trains on the labels at the same time, so the vote waits when stage 1 lags behind.
    """
    from medssr_dist.voting.vote import vote as label_questions

    model, folder = _find_base_model(session), session.run.voting.folder

    def should_stop() -> bool:
        watch()
        return session.should_stop()

    def take_votes() -> None:
        session.start_ray()
        total = None if session.config.voting.kept else _limit_questions(session)
        label_questions(session.config, feed, total, model, folder, find_hpo_truth, should_stop, trainer_follows)

    session.run_step("vote", _fingerprint_base(session), take_votes)


def _warn_of_missing_labels(session: Session) -> None:
    """Warn if fewer labels are kept than `voting.kept`, and of what ended synthesis."""
    synthesis, kept = session.config.synthesis, read_kept_count(session.run.voting.labels)
    if kept is None or kept >= session.config.voting.kept:
        return
    ends = {
        "cap": f"synthesis.candidates = {synthesis.most_candidates:,} requests were used up; raise it",
        "budget": "synthesis.budget was spent; raise it",
    }
    ended_by = read_synthesis_summary(session.run.synthesis.summary).stopped_by
    reason = ends.get(ended_by, "there are no more questions; `medssr run` writes more")
    logger.warning("only %s of voting.kept = %s labels are kept: %s", f"{kept:,}", session.config.voting.kept, reason)


# --- step 3: train ----------------------------------------------------------------------------------
def train_stage1(session: Session) -> None:
    """Step 3a: self-supervised GRPO on the kept pseudo-labels (paper section 3.3)."""
    if not session.config.training.stage1.enabled:
        return
    _require_vote(session)
    session.run_step("stage1", _fingerprint_base(session), lambda: _start_stage1(session).wait())


def _require_vote(session: Session) -> None:
    if not session.run.is_finished("vote"):
        raise InputError(f"{session.run.root} has no finished vote to train on; run `medssr vote` first")


def _start_stage1(session: Session) -> RunningStage:
    from medssr_dist.training.train_stage import start_stage1

    session.start_ray()
    labels, folder = session.run.voting.labels, session.run.stage("stage1").folder
    limit = _limit_questions(session)
    return start_stage1(session.config, _find_base_model(session), labels, folder, limit, session.should_stop)


def train_stage2(session: Session) -> None:
    """Step 3b: supervised GRPO on human-annotated questions, from the weights of stage 1 (paper section 3.4)."""
    from medssr_dist.training.train_stage import start_stage2

    config, stage = session.config, session.config.training.stage2
    if not stage.enabled:
        return
    if stage.mix_pseudo_labels:
        _require_vote(session)
    questions = _read_supervised_questions(config)
    base, stage1 = _find_base_model(session), session.run.stage("stage1").hf
    model = stage1 if config.training.stage1.enabled else base
    reference = stage1 if stage.reference == "stage1" else base
    labels, folder = session.run.voting.labels, session.run.stage("stage2").folder
    if not model.exists():
        raise InputError(f"stage 2 starts from stage 1's checkpoint, but {model} does not exist; run `medssr train`")

    def train() -> None:
        session.start_ray()
        start_stage2(config, model, reference, questions, labels, folder, session.should_stop).wait()

    fingerprints = {
        "data": _hash_questions(questions),
        "model": fingerprint_model(model),
        "reference": fingerprint_model(reference),
        **_name_revision(base),
    }
    if stage.mix_pseudo_labels:
        fingerprints["labels"] = _hash_labels(labels)
    session.run_step("stage2", fingerprints, train)


def _read_supervised_questions(config: Config) -> list[Question]:
    """Read the questions of stage 2. Raises InputError if one has no answer or is in a benchmark."""
    questions = read_all(config.training.stage2.data, config.runtime.random_seed)
    refuse_unlabelled(questions)
    refuse_evaluation_items(questions, read_all(config.evaluation.benchmarks, config.runtime.random_seed))
    return questions


# --- steps 1, 2 and 3a at the same time -------------------------------------------------------------
def stream_steps(session: Session) -> None:
    """Steps 1, 2 and 3a at the same time: the vote follows the accepted questions, and stage 1 the kept labels.

    If one of them fails, the others end too. The same command then resumes all of them.
    """
    questions = session.run.synthesis.questions
    if not session.run.is_finished("vote"):
        clear_end(session.run.voting.labels)  # of an earlier round
    feed = QuestionFeed(questions, lambda: has_ended(questions))
    with BackgroundSteps(session) as background:
        if synthesis := _start_synthesis(session, feed):
            background.add("synthesize", synthesis)
        else:
            feed = _open_finished_questions(session)
        if session.config.training.stage1.enabled and session.begin_step("stage1", _fingerprint_base(session)):
            background.add("stage1", _start_stage1(session))
        vote(session, feed, background.poll, trainer_follows="stage1" in background.running)
        background.wait()


def _start_synthesis(session: Session, feed: QuestionFeed) -> ThreadStep | None:
    """Start synthesis in a thread; it holds new requests back while the vote lags behind. None if it has finished."""
    sources = _read_sources(session)
    if _wants_more_questions(session, vote_follows=True):
        _reopen_synthesis(session)
    if not session.begin_step("synthesize", sources.fingerprints):
        return None
    with time_step(session.run.root, "synthesize"):
        work = _prepare_synthesis(session, sources)

    def should_hold(accepted: int) -> bool:
        return accepted - feed.given > session.config.voting.question_buffer

    demand = _make_demand(session, vote_follows=True)
    return ThreadStep(lambda should_stop: work(should_stop, should_hold, demand), session.should_stop)


# --- step 4: evaluate -------------------------------------------------------------------------------
def evaluate(session: Session) -> None:
    """Step 4: score the base model and the stages on each benchmark."""
    config = session.config
    benchmarks = read_benchmarks(config.evaluation, config.runtime.random_seed)
    policies = _find_policies(session)
    _warn_of_unchecked_benchmarks(session.run, benchmarks)
    fingerprints = {name: fingerprint_model(folder) for name, folder in policies.items()}
    fingerprints |= _name_revision(_find_base_model(session))
    fingerprints |= {f"benchmark {name}": _hash_questions(questions) for name, questions in benchmarks.items()}
    session.run_step("evaluate", fingerprints, lambda: _score_policies(session, benchmarks, policies))


def _find_policies(session: Session) -> dict[str, Path]:
    """Return name -> model directory of those `evaluation.policies` that the run has."""
    folders = {"base": _find_base_model(session)}
    for stage in STAGES:
        if getattr(session.config.training, stage).enabled:
            folders[stage] = session.run.stage(stage).hf
    wanted: dict[str, Path] = {name: folders[name] for name in session.config.evaluation.policies if name in folders}
    for name, folder in wanted.items():
        if not folder.exists():
            raise InputError(
                f"{name} has no checkpoint in {folder}; run `medssr train`, or leave it out of evaluation.policies"
            )
    return wanted


def _warn_of_unchecked_benchmarks(run: RunDir, benchmarks: dict[str, list[Question]]) -> None:
    """Warn of benchmarks that were added after synthesis, whose items the questions may therefore repeat."""
    if run.is_finished("synthesize"):
        checked = read_synthesis_summary(run.synthesis.summary).checked_against
        if unchecked := [name for name in benchmarks if name not in checked]:
            names = ", ".join(unchecked)
            logger.warning("the synthetic questions were not checked for contamination with %s", names)


def _score_policies(session: Session, benchmarks: dict[str, list[Question]], policies: dict[str, Path]) -> None:
    session.start_ray()
    evaluation, random_seed = session.config.evaluation, session.config.runtime.random_seed
    answers, seconds = {}, {}
    for name, folder in policies.items():
        started = time.monotonic()
        logger.info("evaluate %s: %s", name, folder)
        answers[name] = _answer_benchmarks(session, folder, benchmarks)
        seconds[name] = round(time.monotonic() - started, 1)
    letters = collect_letters(benchmarks, answers)
    scores = build_scores(benchmarks, answers, letters, evaluation, random_seed, seconds)
    write_report(scores, letters, session.run.evaluation)
    for name in set(STAGES) & policies.keys():
        add_scores_to_card(policies[name] / CARD, scores, name)


def _answer_benchmarks(session: Session, model: Path, benchmarks: dict[str, list[Question]]) -> PolicyAnswers:
    from medssr_dist.inference.placement import open_engine_pool

    config, paths = session.config, session.run.evaluation
    prompts = make_prompt_renderer(load_tokenizer(model, config.policy), config.policy)
    with open_engine_pool(config, model, paths.engine_events, with_servers=False) as pool:
        return evaluate_policy(
            pool,
            prompts,
            benchmarks,
            config.evaluation,
            config.runtime.random_seed,
            paths,
            policy=fingerprint_model(model),
            model=config.policy.model,
            should_stop=session.should_stop,
        )


# --- the end of a run, and what several steps need --------------------------------------------------
def _close_run(session: Session) -> None:
    """Write summary.json and print the closing table."""
    summary = build_summary(session.run.root)
    write_json(session.run.summary_file, summary.model_dump(mode="json"))
    print(render_summary(summary))


def _find_base_model(session: Session) -> Path:
    return resolve_model(session.config.policy)


def _fingerprint_base(session: Session) -> dict[str, str]:
    model = _find_base_model(session)
    return {"model": fingerprint_model(model)} | _name_revision(model)


def _name_revision(base: Path) -> dict[str, str]:
    """Return the hub commit of the base model as an input of a step, if it has one."""
    revision = find_revision(base)
    return {"revision": revision} if revision else {}


def _hash_labels(labels: Path) -> str:
    digest = sha256()
    for label in read_kept_labels(labels):
        digest.update(f"{label.question.id} {label.answer}\n".encode())
    return digest.hexdigest()


def _hash_questions(questions: list[Question]) -> str:
    return hash_content([[question.id, question.truth] for question in questions])
