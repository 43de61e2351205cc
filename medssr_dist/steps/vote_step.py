"""Step 2: pseudo-labels by majority vote of the base model (paper section 3.2)."""

from __future__ import annotations

import logging
from collections.abc import Callable

from medssr_dist.data.records import Question, parse_record
from medssr_dist.knowledge.vignettes import find_hpo_truth
from medssr_dist.readers import CALIBRATION, name_source, read_calibration_questions, refuse_shared
from medssr_dist.run.session import Session
from medssr_dist.run.stream import QuestionFeed, follow, read_kept_count
from medssr_dist.steps.step_inputs import find_base_model, fingerprint_base, hash_questions
from medssr_dist.steps.synthesis_step import limit_questions
from medssr_dist.synthesis.synthesis_summary import read_synthesis_summary
from medssr_dist.voting.calibration import CalibrationSlice

logger = logging.getLogger(__name__)


def vote(
    session: Session, feed: QuestionFeed, watch: Callable[[], object] = lambda: None, trainer_follows: bool = False
) -> None:
    """Step 2: give each question of `feed` a pseudo-label by majority vote of the base model (paper section 3.2).

    Args:
        watch: called several times a second; an exception that it raises ends the vote.
        trainer_follows: stage 1 trains on the labels at the same time, so the vote waits when stage 1 lags behind.
    """
    from medssr_dist.voting.vote import vote as label_questions

    model, folder = find_base_model(session), session.run.voting.folder
    calibration = _read_calibration(session)

    def should_stop() -> bool:
        watch()
        return session.should_stop()

    def take_votes() -> None:
        session.start_ray()
        total = None if session.config.voting.kept else limit_questions(session)
        label_questions(
            session.config, feed, total, model, folder, find_hpo_truth, should_stop, trainer_follows, calibration
        )

    inputs = {"calibration": hash_questions(list(calibration.questions))} if calibration else {}
    session.run_step("vote", fingerprint_base(session) | inputs, take_votes)


def _read_calibration(session: Session) -> CalibrationSlice | None:
    """Read the slice of `voting.calibrate`. Raises InputError if a synthetic question that exists is one of its own."""
    calibrate = session.config.voting.calibrate
    if calibrate is None:
        return None
    questions = read_calibration_questions(session.config)
    file = session.run.synthesis.questions
    written = [parse_record(Question, row, str(file)) for row in follow(file, ended=lambda: True)]
    refuse_shared(questions, {"the synthetic questions": written}, CALIBRATION)
    return CalibrationSlice(tuple(questions), tuple(map(name_source, calibrate.data)))


def warn_of_missing_labels(session: Session) -> None:
    """Warn if fewer labels are kept than `voting.kept`, and of what ended synthesis."""
    synthesis, kept = session.config.synthesis, read_kept_count(session.run.voting.labels)
    if kept is None or kept >= session.config.voting.kept:
        return
    ends = {
        "cap": f"synthesis.candidates = {synthesis.most_candidates:,} requests were used up; raise it",
        "budget": "synthesis.budget was spent; raise it",
    }
    summary = read_synthesis_summary(session.run.synthesis.summary)
    used_up = summary.requested >= synthesis.most_candidates  # also if the last one brought the last question wanted
    reason = ends.get("cap" if used_up else summary.stopped_by, "there are no more questions; `medssr run` writes more")
    logger.warning("only %s of voting.kept = %s labels are kept: %s", f"{kept:,}", session.config.voting.kept, reason)
