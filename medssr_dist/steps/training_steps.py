"""Step 3: GRPO on the pseudo-labels (stage 1), then on human-annotated questions (stage 2; paper section 3.3, 3.4)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from medssr_dist.config.schema import Config
from medssr_dist.data.records import Question, hash_content, parse_record
from medssr_dist.errors import InputError
from medssr_dist.readers import (
    read_all,
    read_validation_questions,
    refuse_evaluation_items,
    refuse_shared,
    refuse_unlabelled,
)
from medssr_dist.run.session import Session
from medssr_dist.run.stream import follow
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
    from medssr_dist.training.vote_access import VoteFunction
    from medssr_dist.voting.first_votes import FirstVotes


def train_stage1(session: Session) -> None:
    """Step 3a: self-supervised GRPO on the kept pseudo-labels (paper section 3.3)."""
    if not session.config.training.stage1.enabled:
        return
    _require_vote(session)
    session.run_step("stage1", fingerprint_stage1(session), lambda: start_stage1(session).wait())


def fingerprint_stage1(session: Session) -> dict[str, str]:
    """Return the inputs of stage 1 by name, as hashes; the labels are not among them, because they may come later."""
    return fingerprint_base(session) | _fingerprint_validation(session.config)


def _fingerprint_validation(config: Config) -> dict[str, str]:
    """Return the hash of the held-out questions and of how they are sampled; {} if there is no validation."""
    questions = read_validation_questions(config)
    sampling = config.evaluation.model_dump(include={"temperature", "top_p", "top_k", "max_tokens"})
    return {"validation": hash_content([hash_questions(questions), sampling])} if questions else {}


def _require_vote(session: Session) -> None:
    if not session.run.is_finished("vote"):
        raise InputError(f"{session.run.root} has no finished vote to train on; run `medssr vote` first")


def start_stage1(session: Session) -> RunningStage:
    from medssr_dist.training.train_stage import start_stage1 as start

    labels, folder = session.run.voting.labels, session.run.stage("stage1").folder
    limit, validation = limit_questions(session), _read_validation(session)
    votes = _find_first_votes(session)
    session.start_ray()
    model = find_base_model(session)
    revote = _make_revote(session.config) if session.config.voting.online else None
    return start(session.config, model, labels, folder, limit, session.should_stop, validation, votes, revote)


def _make_revote(config: Config) -> VoteFunction:
    from medssr_dist.voting.online_vote import vote_online

    return partial(vote_online, config.without_secrets())


def _find_first_votes(session: Session) -> FirstVotes | None:
    """Return the votes that are stage 1's first rollouts; None if it has none.

    Raises:
        InputError: the votes that exist are of another policy, prompt or way of sampling, or lack their tokens.
    """
    from medssr_dist.runtime.fingerprints import fingerprint_model
    from medssr_dist.runtime.models import load_tokenizer, make_prompt_renderer
    from medssr_dist.voting.first_votes import FirstVotes
    from medssr_dist.voting.ledger import LedgerState, hash_vote_sampling

    config = session.config
    if config.training.stage1.first_rollouts != "votes":
        return None
    model, folder = find_base_model(session), session.run.voting.folder
    prompts = make_prompt_renderer(load_tokenizer(model, config.policy), config.policy)
    state = LedgerState.read(session.run.voting.ledger)
    policy = fingerprint_model(model, (state.policy,) if state else ())
    votes = FirstVotes(folder, config, policy, hash_vote_sampling(config, prompts))
    votes.check()
    return votes


def _read_validation(session: Session) -> list[Question]:
    """Return the held-out questions. Raises InputError if a synthetic question that exists already is one of them."""
    held_out = read_validation_questions(session.config)
    if held_out and session.config.training.uses_pseudo_labels:
        file = session.run.synthesis.questions
        written = [parse_record(Question, row, str(file)) for row in follow(file, ended=lambda: True)]
        refuse_shared(held_out, {"the synthetic questions": written})
    return held_out


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
        validation = _read_validation(session)
        session.start_ray()
        start_stage2(config, model, reference, questions, labels, folder, session.should_stop, validation).wait()

    fingerprints = {
        "data": hash_questions(questions),
        "model": fingerprint_for_run(session, model),
        "reference": fingerprint_for_run(session, reference),
        **name_revision(base),
        **_fingerprint_validation(config),
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
