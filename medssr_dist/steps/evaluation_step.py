"""Step 4: score the base model and the stages on each benchmark (paper section 4)."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from medssr_dist.config.load import dump_config
from medssr_dist.config.schema import Config
from medssr_dist.data.cards import CARD
from medssr_dist.data.records import Question
from medssr_dist.errors import InputError
from medssr_dist.evaluation.benchmarks import log_facts, read_benchmarks
from medssr_dist.evaluation.policy_answers import PolicyAnswers
from medssr_dist.evaluation.protocol import evaluate_policy
from medssr_dist.evaluation.question_letters import read_question_letters
from medssr_dist.evaluation.score_card import add_scores_to_card
from medssr_dist.evaluation.score_report import write_report
from medssr_dist.evaluation.score_tracking import ScoreTracking, track_scores
from medssr_dist.evaluation.scores import Scores
from medssr_dist.evaluation.scoring import build_scores, collect_letters
from medssr_dist.run.directory import RunDir
from medssr_dist.run.paths import STAGES
from medssr_dist.run.session import Session
from medssr_dist.runtime.models import load_tokenizer, make_prompt_renderer
from medssr_dist.steps.step_inputs import (
    find_base_model,
    find_trained_model,
    fingerprint_for_run,
    hash_questions,
    name_revision,
)
from medssr_dist.synthesis.synthesis_summary import read_synthesis_summary

if TYPE_CHECKING:
    from medssr_dist.inference.placement import PolicyEngines

logger = logging.getLogger(__name__)


def evaluate(session: Session) -> None:
    """Step 4: score the base model and the stages on each benchmark."""
    config = session.config
    benchmarks = read_benchmarks(config.evaluation, config.runtime.random_seed)
    log_facts(benchmarks)
    policies = _find_policies(session)
    _warn_of_unchecked_benchmarks(session.run, benchmarks)
    fingerprints = {name: fingerprint_for_run(session, folder) for name, folder in policies.items()}
    fingerprints |= name_revision(find_base_model(session))
    fingerprints |= {f"benchmark {name}": hash_questions(questions) for name, questions in benchmarks.items()}
    evaluated = {name: EvaluatedPolicy(folder, config) for name, folder in policies.items()}

    def score() -> None:
        scores = score_policies(session, benchmarks, evaluated)
        for name in set(STAGES) & policies.keys():
            add_scores_to_card(policies[name] / CARD, scores, name)
        letters = read_question_letters(session.run.evaluation.letters)
        track_scores(_place_scores(session), scores, letters)

    paths = session.run.evaluation
    if session.run.is_finished("evaluate") and not (paths.scores.exists() and paths.letters.exists()):
        session.run.reopen_step("evaluate")
    session.run_step("evaluate", fingerprints, score)


def _place_scores(session: Session) -> ScoreTracking:
    config, run = session.config, session.run
    return ScoreTracking(
        trackers=tuple(config.training.trackers),
        project=config.training.tracker_project,
        run=run.root,
        tensorboard=run.evaluation.tensorboard,
        samples=config.evaluation.track_samples,
        settings=dump_config(config),
    )


def _find_policies(session: Session) -> dict[str, Path]:
    """Return name -> model directory of those `evaluation.policies` that the run has."""
    folders = {"base": find_base_model(session)}
    for stage in STAGES:
        if getattr(session.config.training, stage).enabled:
            folders[stage] = find_trained_model(session, stage)
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


@dataclass(frozen=True)
class EvaluatedPolicy:
    """A policy to evaluate. Example: EvaluatedPolicy(Path("runs/demo/training/stage2/hf"), config).

    Attributes:
        folder: its directory.
        config: of its evaluation; `config.policy.model` is its name.
        with_servers: whether `voting.servers` serve it and answer, in place of engines of our own.
    """

    folder: Path
    config: Config
    with_servers: bool = False


def score_policies(
    session: Session, benchmarks: dict[str, list[Question]], policies: Mapping[str, EvaluatedPolicy]
) -> Scores:
    """Let all policies answer all benchmarks, write the report into the run directory, and return the scores.

    Args:
        policies: by name in the report; differences are between each two of them.
    """
    from medssr_dist.inference.placement import PolicyEngines

    if not all(policy.with_servers for policy in policies.values()):
        session.start_ray()
    evaluation, random_seed = session.config.evaluation, session.config.runtime.random_seed
    answers, seconds = {}, {}
    with PolicyEngines(session.run.evaluation.engine_events) as engines:
        for name, policy in policies.items():
            started = time.monotonic()
            logger.info("evaluate %s: %s", name, policy.folder)
            answers[name] = _answer_benchmarks(session, policy, engines, benchmarks)
            seconds[name] = round(time.monotonic() - started, 1)
    letters = collect_letters(benchmarks, answers)
    scores = build_scores(benchmarks, answers, letters, evaluation, random_seed, seconds)
    write_report(scores, letters, session.run.evaluation)
    return scores


def _answer_benchmarks(
    session: Session, policy: EvaluatedPolicy, engines: PolicyEngines, benchmarks: dict[str, list[Question]]
) -> PolicyAnswers:
    config = policy.config
    return evaluate_policy(
        engines.serve(config, policy.folder, policy.with_servers),
        make_prompt_renderer(load_tokenizer(policy.folder, config.policy), config.policy),
        benchmarks,
        config.evaluation,
        config.runtime.random_seed,
        session.run.evaluation,
        policy=fingerprint_for_run(session, policy.folder),
        settings=config.policy,
        should_stop=session.should_stop,
    )
