"""What several steps need: the base model, and the fingerprints of their inputs."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from medssr_dist.data.records import Question, hash_content
from medssr_dist.run.session import Session
from medssr_dist.run.stream import read_kept_labels
from medssr_dist.runtime.models import find_revision, fingerprint_model, resolve_model


def find_base_model(session: Session) -> Path:
    return resolve_model(session.config.policy)


def fingerprint_base(session: Session) -> dict[str, str]:
    model = find_base_model(session)
    return {"model": fingerprint_model(model)} | name_revision(model)


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
