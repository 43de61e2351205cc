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
from pathlib import Path

from medssr_dist.config.schema import Config
from medssr_dist.data.jsonl import write_json
from medssr_dist.errors import InputError
from medssr_dist.estimates.engine_placement import choose_placement
from medssr_dist.estimates.memory import refuse_too_little_memory
from medssr_dist.evaluation.benchmarks import read_benchmarks
from medssr_dist.readers import read_calibration_questions, read_validation_questions
from medssr_dist.report.write_report import write_report
from medssr_dist.run.background import BackgroundSteps
from medssr_dist.run.clock import time_step
from medssr_dist.run.demand import refuse_unvoted_demand
from medssr_dist.run.paths import STEPS
from medssr_dist.run.session import Session, open_session
from medssr_dist.run.stream import QuestionFeed, clear_end, has_ended
from medssr_dist.runtime.model_faults import refuse_unfit_model
from medssr_dist.steps.evaluation_step import evaluate
from medssr_dist.steps.step_inputs import find_base_model
from medssr_dist.steps.synthesis_step import open_finished_questions, start_synthesis, synthesize, wants_more_questions
from medssr_dist.steps.training_steps import (
    fingerprint_stage1,
    read_supervised_questions,
    start_stage1,
    train_stage1,
    train_stage2,
)
from medssr_dist.steps.vote_step import vote, warn_of_missing_labels
from medssr_dist.summary.closing_table import build_summary, render_summary
from medssr_dist.summary.question_story import tell_question_story
from medssr_dist.summary.summary_plot import draw_summary
from medssr_dist.synthesis.prompts import load_question_prompt
from medssr_dist.voting.label_rule import load_label_rule
from medssr_dist.voting.question_forms import Paraphrases

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
    choice = choose_placement(config)
    config = choice.config
    if "train" in steps:
        logger.info("rollout engines: %s (%s)", config.training.placement, choice.reason)
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
            vote(session, open_finished_questions(session))
        while {"synthesize", "vote"} <= set(steps) and wants_more_questions(session):
            synthesize(session)
            vote(session, open_finished_questions(session))
        if "train" in steps:
            train_stage1(session)
    if "vote" in steps:
        warn_of_missing_labels(session)
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
        refuse_unfit_model(config, find_base_model(session))
    if "vote" in steps:
        load_label_rule(config.voting.rule)
        Paraphrases.read(config.voting.paraphrases)
        read_calibration_questions(config)
    if "train" in steps:
        _refuse_bad_training(config)
    if "evaluate" in steps:
        read_benchmarks(config.evaluation, config.runtime.random_seed)


def _refuse_bad_training(config: Config) -> None:
    from medssr_dist.training.deadline import find_end_time
    from medssr_dist.training.rollout.reward import load_reward
    from medssr_dist.training.trackers import check_trackers

    check_trackers(config.training)
    load_reward(config.training.reward)
    find_end_time(config.runtime)
    read_validation_questions(config)
    if config.training.stage2.enabled:
        read_supervised_questions(config)


def stream_steps(session: Session) -> None:
    """Steps 1, 2 and 3a at the same time: the vote follows the accepted questions, and stage 1 the kept labels.

    If one of them fails, the others end too. The same command then resumes all of them.
    """
    questions = session.run.synthesis.questions
    if not session.run.is_finished("vote"):
        clear_end(session.run.voting.labels)  # of an earlier round
    feed = QuestionFeed(questions, lambda: has_ended(questions))
    with BackgroundSteps(session) as background:
        if synthesis := start_synthesis(session, feed):
            background.add("synthesize", synthesis)
        else:
            feed = open_finished_questions(session)
        if session.config.training.stage1.enabled and session.begin_step("stage1", fingerprint_stage1(session)):
            background.add("stage1", start_stage1(session))
        vote(session, feed, background.poll, trainer_follows="stage1" in background.running)
        background.wait()


def _close_run(session: Session) -> None:
    """Write summary.json, summary.png and report.html, and print the closing table and the story of one question."""
    run = session.run
    summary = build_summary(run.root)
    write_json(run.summary_file, summary.model_dump(mode="json"))
    draw_summary(summary, run.summary_plot)
    print(render_summary(summary) + tell_question_story(run.root))
    try:
        print(f"report: {write_report(run.root)}")
    except InputError as error:  # the run is complete without it
        logger.warning("no report: %s; then run `medssr report %s`", error, run.root)
