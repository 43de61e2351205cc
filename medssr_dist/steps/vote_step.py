"""Step 2: pseudo-labels by majority vote of the base model (paper section 3.2)."""

from __future__ import annotations

import logging
from collections.abc import Callable

from medssr_dist.knowledge.vignettes import find_hpo_truth
from medssr_dist.run.session import Session
from medssr_dist.run.stream import QuestionFeed, read_kept_count
from medssr_dist.steps.step_inputs import find_base_model, fingerprint_base
from medssr_dist.steps.synthesis_step import limit_questions
from medssr_dist.synthesis.synthesis_summary import read_synthesis_summary

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

    def should_stop() -> bool:
        watch()
        return session.should_stop()

    def take_votes() -> None:
        session.start_ray()
        total = None if session.config.voting.kept else limit_questions(session)
        label_questions(session.config, feed, total, model, folder, find_hpo_truth, should_stop, trainer_follows)

    session.run_step("vote", fingerprint_base(session), take_votes)


def warn_of_missing_labels(session: Session) -> None:
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
