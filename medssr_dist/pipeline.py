"""The method, top to bottom: synthesize -> vote -> train (stage 1, stage 2) -> evaluate.

Each step reads what the step before left in the run directory, does nothing when it is finished,
and goes on where it was when it is not; so the same command starts, resumes and re-reads a run.

With `runtime.mode: stream` the first three go on side by side in this process: synthesis in a thread, the vote in the
main thread, which alone writes the manifest and has the signals, and stage 1 in Ray actors (see `stream`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from medssr_dist.config.schema import Config
from medssr_dist.data.jsonl import write_json
from medssr_dist.data.records import Question, hash_content
from medssr_dist.errors import InputError
from medssr_dist.estimates.memory import refuse_too_little_memory
from medssr_dist.evaluation.benchmarks import read_benchmarks
from medssr_dist.offline_teacher import open_endpoints
from medssr_dist.readers import name_source, read_all, read_questions, refuse_evaluation_items, refuse_unlabelled
from medssr_dist.run.background import BackgroundSteps, ThreadStep
from medssr_dist.run.clock import time_step
from medssr_dist.run.directory import RunDir, find_commit
from medssr_dist.run.paths import STAGES, STEPS
from medssr_dist.run.session import Session, open_session
from medssr_dist.run.stream import QuestionFeed, clear_end, has_ended, read_kept_labels
from medssr_dist.summary import build_summary, render_summary
from medssr_dist.synthesis.synthesis_summary import read_synthesis_summary

if TYPE_CHECKING:
    from medssr_dist.training.train_stage import RunningStage

logger = logging.getLogger(__name__)


def run_steps(config: Config, root: Path, steps: tuple[str, ...] = STEPS) -> None:
    """Run `steps` of the method in the run directory `root`, then write and print the closing table.

    Raises:
        InputError: bad input, or a step whose predecessor has not run.
        Stopped: SIGTERM, USR1 or Ctrl-C, or a training deadline; the same command resumes.
    """
    if steps == STEPS and not config.training.uses_pseudo_labels:
        logger.info("synthesize, vote: skipped, no training stage uses pseudo-labels")
        steps = ("train", "evaluate")
    with open_session(config, root, before_ray=refuse_too_little_memory) as session:
        with time_step(session.run.root, "run"):
            _run(session, steps)
        close(session)


def _run(session: Session, steps: tuple[str, ...]) -> None:
    refuse_bad_inputs(session, steps)
    if {"synthesize", "vote", "train"} <= set(steps) and session.config.runtime.mode == "stream":
        side_by_side(session)
    else:
        if "synthesize" in steps:
            synthesize(session)
        if "vote" in steps:
            vote(session, _finished_questions(session))
        if "train" in steps:
            train_stage1(session)
    if "train" in steps:
        train_stage2(session)
    if "evaluate" in steps:
        evaluate(session)


def refuse_bad_inputs(session: Session, steps: tuple[str, ...]) -> None:
    """Read what the later steps will need, so that nothing is paid for before it is known to be there."""
    config = session.config
    if set(steps) & {"vote", "train", "evaluate"}:
        _base_model(session)
    if "train" in steps:
        _refuse_bad_training(config)
    if "evaluate" in steps:
        read_benchmarks(config.evaluation, config.runtime.random_seed)


def _refuse_bad_training(config: Config) -> None:
    from medssr_dist.training.deadline import end_time
    from medssr_dist.training.trackers import check_trackers

    check_trackers(config.training)
    end_time(config.runtime)
    if config.training.stage2.enabled:
        _supervised_questions(config)


def synthesize(session: Session) -> None:
    """Step 1: new questions from seeds, rare-disease entities and passages."""
    inputs, prepare = _synthesis(session)
    session.run_step("synthesize", inputs, lambda: prepare()(session.should_stop))


def _synthesis(session: Session) -> tuple[dict[str, str], Callable[[], Callable[..., object]]]:
    """The step's inputs, and a function that gets its passages ready and returns the work: (should_stop, should_hold).

    The first may start Ray and belongs into the main thread; the second may run in another.
    """
    from medssr_dist.knowledge.retrieval import Retriever, draw_entities
    from medssr_dist.synthesis.synthesize import SynthesisInputs, has_more_to_do
    from medssr_dist.synthesis.synthesize import synthesize as work

    config, paths = session.config, session.run.synthesis
    folder = paths.folder
    seeds = read_all(config.synthesis.seeds, config.runtime.random_seed)
    benchmarks = {
        name_source(source): read_questions(source, config.runtime.random_seed)
        for source in config.evaluation.benchmarks
    }
    refuse_evaluation_items(seeds, [question for items in benchmarks.values() for question in items])
    rare = draw_entities(config.knowledge, config.runtime.random_seed) if config.synthesis.alpha > 0 else []
    retriever = Retriever(config.knowledge)

    def prepare() -> Callable[..., object]:
        clear_end(session.run.synthesis.questions)
        retriever.prepare([entity.name for entity in rare])
        teacher = partial(open_endpoints, log_path=paths.teacher_log, random_seed=config.runtime.random_seed)
        inputs = SynthesisInputs(seeds, benchmarks, rare, retriever.retrieve, retriever.read_passage, teacher)
        return partial(work, config, folder, inputs, find_commit())

    if session.run.is_finished("synthesize") and has_more_to_do(config.synthesis, folder):
        session.run.reopen_step("synthesize")
    return {"seeds": _ids_hash(seeds)}, prepare


def vote(
    session: Session, feed: QuestionFeed, watch: Callable[[], object] = lambda: None, trainer_follows: bool = False
) -> None:
    """Step 2: pseudo-labels by majority vote of the base policy.

    Args:
        watch: called several times a second; what it raises ends the vote.
        trainer_follows: stage 1 trains on the labels meanwhile.
    """
    from medssr_dist.knowledge.vignettes import find_hpo_truth
    from medssr_dist.runtime.models import fingerprint_model
    from medssr_dist.voting.vote import vote as work

    model = _base_model(session)

    def should_stop() -> bool:
        watch()
        return session.should_stop()

    def take_votes() -> None:
        session.start_ray()
        total = _most_questions(session)
        work(
            session.config, feed, total, model, session.run.voting.folder, find_hpo_truth, should_stop, trainer_follows
        )

    session.run_step("vote", {"model": fingerprint_model(model)}, take_votes)


def side_by_side(session: Session) -> None:
    """Steps 1, 2 and 3a at once: the vote follows the questions as they are accepted, stage 1 the labels it keeps.

    What fails first ends the others, and the same command takes all of them up where they were.
    """
    file = session.run.synthesis.questions
    feed = QuestionFeed(file, lambda: has_ended(file))
    with BackgroundSteps(session) as background:
        if synthesis := _begin_synthesis(session, feed):
            background.add("synthesize", synthesis)
        else:
            feed = _finished_questions(session)
        if session.config.training.stage1.enabled and session.begin_step("stage1", _stage1_inputs(session)):
            background.add("stage1", _start_stage1(session))
        vote(session, feed, background.poll, "stage1" in background.running)
        background.wait()


def _begin_synthesis(session: Session, feed: QuestionFeed) -> ThreadStep | None:
    """Synthesis in a thread, held back while `feed` lags; None where it is finished."""
    inputs, prepare = _synthesis(session)
    if not session.begin_step("synthesize", inputs):
        return None
    with time_step(session.run.root, "synthesize"):
        work = prepare()
    most = session.config.voting.question_buffer
    return ThreadStep(
        lambda should_stop: work(should_stop, lambda accepted: accepted - feed.given > most), session.should_stop
    )


def train_stage1(session: Session) -> None:
    """Step 3a: self-supervised GRPO on the kept pseudo-labels."""
    if not session.config.training.stage1.enabled:
        return
    _need_vote(session)
    session.run_step("stage1", _stage1_inputs(session), lambda: _start_stage1(session).wait())


def _need_vote(session: Session) -> None:
    if not session.run.is_finished("vote"):
        raise InputError(f"{session.run.root} has no finished vote to train on; run `medssr vote` first")


def _start_stage1(session: Session) -> RunningStage:
    from medssr_dist.training.train_stage import start_stage1

    session.start_ray()
    labels, folder = session.run.voting.labels, session.run.stage("stage1").folder
    most = _most_questions(session)
    return start_stage1(session.config, _base_model(session), labels, folder, most, session.should_stop)


def _stage1_inputs(session: Session) -> dict[str, str]:
    from medssr_dist.runtime.models import fingerprint_model

    return {"model": fingerprint_model(_base_model(session))}


def train_stage2(session: Session) -> None:
    """Step 3b: supervised GRPO on human-annotated questions, from stage 1's weights."""
    from medssr_dist.runtime.models import fingerprint_model
    from medssr_dist.training.train_stage import start_stage2

    config, stage = session.config, session.config.training.stage2
    if not stage.enabled:
        return
    if stage.mix_pseudo_labels:
        _need_vote(session)
    questions = _supervised_questions(config)
    base = _base_model(session)
    stage1 = session.run.stage("stage1").hf
    model = stage1 if config.training.stage1.enabled else base
    reference = stage1 if stage.reference == "stage1" else base
    labels = session.run.voting.labels
    folder = session.run.stage("stage2").folder

    def train() -> None:
        session.start_ray()
        start_stage2(config, model, reference, questions, labels, folder, session.should_stop).wait()

    if not model.exists():
        raise InputError(f"stage 2 starts from stage 1's checkpoint, but {model} does not exist; run `medssr train`")
    inputs = {
        "data": _ids_hash(questions),
        "model": fingerprint_model(model),
        "reference": fingerprint_model(reference),
    }
    if stage.mix_pseudo_labels:
        inputs["labels"] = _labels_hash(labels)
    session.run_step("stage2", inputs, train)


def evaluate(session: Session) -> None:
    """Step 4: base, stage 1 and stage 2 side by side on every benchmark."""
    from medssr_dist.runtime.models import fingerprint_model

    config = session.config
    benchmarks = read_benchmarks(config.evaluation, config.runtime.random_seed)
    policies = _policies(session)
    _warn_of_unchecked(session.run, benchmarks)
    inputs = {name: fingerprint_model(folder) for name, folder in policies.items()}
    inputs |= {f"benchmark {name}": _ids_hash(questions) for name, questions in benchmarks.items()}
    session.run_step("evaluate", inputs, lambda: _evaluate_policies(session, benchmarks, policies))


def _warn_of_unchecked(run: RunDir, benchmarks: dict[str, list[Question]]) -> None:
    """Say which benchmarks came after the synthesis, whose questions were thus not compared with them."""
    if run.is_finished("synthesize"):
        checked = read_synthesis_summary(run.synthesis.summary).checked_against
        if later := [name for name in benchmarks if name not in checked]:
            logger.warning("the synthetic questions were not checked for contamination with %s", ", ".join(later))


def _evaluate_policies(session: Session, benchmarks: dict[str, list[Question]], policies: dict[str, Path]) -> None:
    from medssr_dist.evaluation.protocol import evaluate_policy
    from medssr_dist.evaluation.score_report import write_report
    from medssr_dist.evaluation.scores import build_scores
    from medssr_dist.inference.placement import open_engine_pool
    from medssr_dist.runtime.models import fingerprint_model, load_tokenizer

    session.start_ray()
    config, events = session.config, session.run.evaluation.engine_events
    questions = [question for items in benchmarks.values() for question in items]
    answers, seconds = {}, {}
    for name, folder in policies.items():
        started = time.monotonic()
        logger.info("evaluate %s: %s", name, folder)
        tokenizer = load_tokenizer(folder, config.policy)
        with open_engine_pool(config, folder, events, with_servers=False) as pool:
            answers[name] = evaluate_policy(
                pool,
                tokenizer,
                questions,
                config.evaluation,
                config.runtime.random_seed,
                session.run.evaluation.answers,
                policy=fingerprint_model(folder),
                should_stop=session.should_stop,
            )
        seconds[name] = round(time.monotonic() - started, 1)
    scores = build_scores(benchmarks, answers, config.evaluation, config.runtime.random_seed, seconds)
    write_report(scores, session.run.evaluation.folder)


def close(session: Session) -> None:
    """Write summary.json and print the closing table."""
    summary = build_summary(session.run.root)
    write_json(session.run.summary_file, summary)
    print(render_summary(summary))


def _policies(session: Session) -> dict[str, Path]:
    """Those of `evaluation.policies` that the run has: name -> model directory."""
    folders = {"base": _base_model(session)}
    for stage in STAGES:
        if getattr(session.config.training, stage).enabled:
            folders[stage] = session.run.stage(stage).hf
    wanted = {name: folders[name] for name in session.config.evaluation.policies if name in folders}
    for name, folder in wanted.items():
        if not folder.exists():
            raise InputError(
                f"{name} has no checkpoint in {folder}; run `medssr train`, or leave it out of evaluation.policies"
            )
    return wanted


def _base_model(session: Session) -> Path:
    from medssr_dist.runtime.models import resolve_model

    return resolve_model(session.config.policy)


def _finished_questions(session: Session) -> QuestionFeed:
    if not session.run.is_finished("synthesize"):
        raise InputError(f"{session.run.root} has no finished questions; run `medssr synthesize` first")
    return QuestionFeed(session.run.synthesis.questions)


def _most_questions(session: Session) -> int:
    """How many synthetic questions there are, or will be at most."""
    if session.run.is_finished("synthesize"):
        return read_synthesis_summary(session.run.synthesis.summary).accepted
    return session.config.synthesis.accepted


def _supervised_questions(config: Config) -> list[Question]:
    """Stage 2's questions, each with an answer and none from a benchmark."""
    questions = read_all(config.training.stage2.data, config.runtime.random_seed)
    refuse_unlabelled(questions)
    refuse_evaluation_items(questions, read_all(config.evaluation.benchmarks, config.runtime.random_seed))
    return questions


def _labels_hash(labels: Path) -> str:
    digest = sha256()
    for label in read_kept_labels(labels):
        digest.update(f"{label.question.id} {label.answer}\n".encode())
    return digest.hexdigest()


def _ids_hash(questions: list[Question]) -> str:
    return hash_content([[question.id, question.truth] for question in questions])
