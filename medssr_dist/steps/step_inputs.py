"""What several steps need: the base model, and the fingerprints of their inputs."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from medssr_dist.data.records import Question, hash_content
from medssr_dist.errors import InputError
from medssr_dist.run.session import Session
from medssr_dist.run.stream import read_kept_labels
from medssr_dist.runtime.fingerprints import fingerprint_model
from medssr_dist.runtime.models import find_revision, resolve_model
from medssr_dist.training.stage_job import read_stage_summary


def find_base_model(session: Session) -> Path:
    return resolve_model(session.config.policy)


def fingerprint_base(session: Session) -> dict[str, str]:
    model = find_base_model(session)
    return {"model": fingerprint_for_run(session, model)} | name_revision(model)


def fingerprint_for_run(session: Session, model: Path) -> str:
    """Return the fingerprint of a model, in the form in which an earlier version has recorded it, if it has."""
    steps = session.run.read_manifest().steps.values()
    return fingerprint_model(model, {value for step in steps for value in step.inputs.values()})


def find_trained_model(session: Session, stage: str) -> Path:
    """Return the folder of the model that `stage` has trained. It may not exist.

    Raises:
        InputError: its files are not those that the stage has written.
    """
    paths = session.run.stage(stage)
    if paths.hf.exists() and paths.summary.exists():
        written = read_stage_summary(paths.summary).model
        if written and fingerprint_model(paths.hf) != written:
            raise InputError(
                f"{paths.hf} is not the model that {stage} has written: a file is damaged, or was exchanged; put back "
                "a good copy, or train in a new --run-dir"
            )
    return paths.hf


def name_revision(base: Path) -> dict[str, str]:
    """Return the hub commit of the base model as an input of a step, if it has one."""
    revision = find_revision(base)
    return {"revision": revision} if revision else {}


def hash_labels(labels: Path) -> str:
    digest = sha256()
    for label in read_kept_labels(labels):
        digest.update(f"{label.question.id} {label.answer}\n".encode())
    return digest.hexdigest()


def hash_questions(questions: list[Question]) -> str:
    return hash_content([[question.id, question.truth] for question in questions])
