"""Step 3: GRPO on the pseudo-labels (stage 1), then on human-annotated questions (stage 2; paper section 3.3, 3.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medssr_dist.config.schema import Config
from medssr_dist.data.records import Question
from medssr_dist.errors import InputError
from medssr_dist.readers import read_all, refuse_evaluation_items, refuse_unlabelled
from medssr_dist.run.session import Session
from medssr_dist.steps.step_inputs import (
    find_base_model,
    find_trained_model,
    fingerprint_base,
    fingerprint_for_run,
    hash_labels,
    hash_questions,
    name_revision,
)
from medssr_dist.steps.synthesis_step import limit_questions

if TYPE_CHECKING:
    from medssr_dist.training.train_stage import RunningStage


def train_stage1(session: Session) -> None:
    """Step 3a: self-supervised GRPO on the kept pseudo-labels (paper section 3.3)."""
    if not session.config.training.stage1.enabled:
        return
    _require_vote(session)
    session.run_step("stage1", fingerprint_base(session), lambda: start_stage1(session).wait())


def _require_vote(session: Session) -> None:
    if not session.run.is_finished("vote"):
        raise InputError(f"{session.run.root} has no finished vote to train on; run `medssr vote` first")


def start_stage1(session: Session) -> RunningStage:
    from medssr_dist.training.train_stage import start_stage1 as start

    session.start_ray()
    labels, folder = session.run.voting.labels, session.run.stage("stage1").folder
    limit = limit_questions(session)
    return start(session.config, find_base_model(session), labels, folder, limit, session.should_stop)


def train_stage2(session: Session) -> None:
    """Step 3b: supervised GRPO on human-annotated questions, from the weights of stage 1 (paper section 3.4)."""
    from medssr_dist.training.train_stage import start_stage2

    config, stage = session.config, session.config.training.stage2
    if not stage.enabled:
        return
    if stage.mix_pseudo_labels:
        _require_vote(session)
    questions = read_supervised_questions(config)
    base, stage1 = find_base_model(session), find_trained_model(session, "stage1")
    model = stage1 if config.training.stage1.enabled else base
    reference = stage1 if stage.reference == "stage1" else base
    labels, folder = session.run.voting.labels, session.run.stage("stage2").folder
    if not model.exists():
        raise InputError(f"stage 2 starts from stage 1's checkpoint, but {model} does not exist; run `medssr train`")

    def train() -> None:
        session.start_ray()
        start_stage2(config, model, reference, questions, labels, folder, session.should_stop).wait()

    fingerprints = {
        "data": hash_questions(questions),
        "model": fingerprint_for_run(session, model),
        "reference": fingerprint_for_run(session, reference),
        **name_revision(base),
    }
    if stage.mix_pseudo_labels:
        fingerprints["labels"] = hash_labels(labels)
    session.run_step("stage2", fingerprints, train)


def read_supervised_questions(config: Config) -> list[Question]:
    """Read the questions of stage 2. Raises InputError if one has no answer or is in a benchmark."""
    questions = read_all(config.training.stage2.data, config.runtime.random_seed)
    refuse_unlabelled(questions)
    refuse_evaluation_items(questions, read_all(config.evaluation.benchmarks, config.runtime.random_seed))
    return questions
