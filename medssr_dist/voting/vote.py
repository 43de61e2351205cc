"""Step 2: the base policy samples up to K answers per question, and the majority is the label (paper section 3.2).

The questions come from a feed, which may still grow. The scheduler decides which votes are requested, the engine pool
answers, and the ledger stores votes and labels. A stop, an error or a kill at any moment loses no vote that has
arrived: the same call resumes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from medssr_dist.config.label_settings import MAJORITY, RULES
from medssr_dist.config.schema import Config
from medssr_dist.data.jsonl import write_json
from medssr_dist.data.label_certificate import KindThresholds, LabelCertificate, format_certificate
from medssr_dist.data.prompt_renderer import PromptRenderer
from medssr_dist.data.records import Question
from medssr_dist.errors import InputError, Stopped
from medssr_dist.inference.placement import open_engine_pool
from medssr_dist.inference.pool import EnginePool
from medssr_dist.run.paths import VotingPaths
from medssr_dist.run.stream import QuestionFeed, has_room, mark_end
from medssr_dist.runtime.fingerprints import fingerprint_model
from medssr_dist.runtime.models import load_tokenizer, make_prompt_renderer
from medssr_dist.runtime.progress_bar import ProgressBar
from medssr_dist.runtime.prompt_advice import list_prompt_advice
from medssr_dist.voting.calibration import CalibrationSlice, certify, make_slice_voting
from medssr_dist.voting.label_rule import NamedRule, load_label_rule
from medssr_dist.voting.ledger import LedgerState, VoteLedger, hash_vote_sampling
from medssr_dist.voting.quality import read_labels, write_quality
from medssr_dist.voting.quality_records import VoteSummary
from medssr_dist.voting.question_forms import Paraphrases
from medssr_dist.voting.vote_scheduler import VoteScheduler, collect_votes

logger = logging.getLogger(__name__)
_POLL_S = 0.5  # interval at which the questions and the trainer's position are read


def vote(
    config: Config,
    feed: QuestionFeed,
    total: int | None,
    model: Path,
    folder: Path,
    truth: Callable[[Question], str | None] = lambda question: question.truth,
    should_stop: Callable[[], bool] = lambda: False,
    trainer_follows: bool = False,
    calibration: CalibrationSlice | None = None,
) -> VoteSummary:
    """Label the questions of `feed` by majority vote of `model`; resumes from what `folder` holds.

    With `voting.kept`, the vote ends at the question with which so many labels are kept.

    Args:
        feed: the questions in order, from the first one on.
        total: the number of questions, for the progress bar; None = not known yet.
        model: directory of the policy.
        folder: the vote's part of the run directory (`VotingPaths`).
        truth: returns the known answer of a question, or None; it is only counted in the quality report, never used
            as a label.
        should_stop: called several times per second; True raises Stopped, with all votes so far on disk.
        trainer_follows: stage 1 trains on the labels meanwhile; the vote waits while it lags (`voting.buffer`).
        calibration: human-labelled questions, which are voted on first; they choose the threshold (`voting.calibrate`).

    Returns:
        The content of summary.json in `folder`.

    Raises:
        InputError: `folder` holds another policy's labels or labels of other questions, no engine can be placed, the
            rule of labels raises, or `calibration` gives no threshold.
        EnginesFailed: no engine is left.
        Stopped: see `should_stop`.
    """
    started = time.monotonic()
    paths = VotingPaths(folder)
    prompts = make_prompt_renderer(load_tokenizer(model, config.policy), config.policy)
    method = VoteMethod.from_config(config, prompts)
    state = LedgerState.read(paths.ledger)
    policy = fingerprint_model(model, (state.policy,) if state else ())
    for each in list_prompt_advice(config, prompts, model):
        logger.warning("%s; %s", each.detail, each.fix)
    with ExitStack() as stack:
        ledger = stack.enter_context(method.open_ledger(folder, policy))
        pool = stack.enter_context(open_engine_pool(config, model, paths.engine_events))
        certificate = None
        if calibration:
            certificate = _calibrate(method, pool, policy, paths, calibration, should_stop)
        bar = stack.enter_context(_open_bar(total, ledger.num_labels, config.voting.samples))
        _skip_labeled(feed, ledger, should_stop)
        trainer_lags = _CachedCheck(lambda: not has_room(paths.labels, ledger.num_kept, config.voting.buffer))
        should_wait = trainer_lags if trainer_follows else lambda: False
        thresholds = certificate.find_thresholds() if certificate else None
        scheduler = method.make_scheduler(feed, ledger, should_wait, thresholds)
        collect_votes(pool, scheduler, ledger, bar, should_stop)
        mark_end(paths.labels, ledger.num_kept)
    seconds = round(time.monotonic() - started, 1)
    quality = write_quality(folder, paths.labels, config.voting, truth, certificate)
    summary = VoteSummary(
        votes_taken_now=scheduler.num_votes,
        seconds=seconds,
        tokens=quality.tokens,
        quality=quality,
        kept_wanted=config.voting.kept,
    )
    write_json(paths.summary, summary.model_dump(mode="json"))
    return summary


@dataclass(frozen=True)
class VoteMethod:
    """How questions are voted on and labelled: config, prompts, rule and paraphrases, the same for slice and run."""

    config: Config
    prompts: PromptRenderer
    rule: NamedRule | None
    paraphrases: Paraphrases

    @classmethod
    def from_config(cls, config: Config, prompts: PromptRenderer) -> VoteMethod:
        """Load the rule and the paraphrases that the config names. Raises InputError where one cannot be used."""
        voting = config.voting
        rule = None if voting.rule == MAJORITY else load_label_rule(voting.rule)
        return cls(config, prompts, rule, Paraphrases.read(voting.paraphrases))

    @property
    def sampling(self) -> str:
        """Hash of the way of sampling."""
        return hash_vote_sampling(self.config, self.prompts, self.paraphrases.hash)

    def open_ledger(self, folder: Path, policy: str) -> VoteLedger:
        """Open the ledger in `folder`. See `VoteLedger`."""
        voting = self.config.voting
        return VoteLedger(folder, policy, self.sampling, voting.keep_text, hold_text=voting.rule not in RULES)

    def make_scheduler(
        self,
        feed: QuestionFeed,
        ledger: VoteLedger,
        should_wait: Callable[[], bool] = lambda: False,
        thresholds: KindThresholds | None = None,
    ) -> VoteScheduler:
        """Return the scheduler of the votes. See `VoteScheduler`."""
        config, rule, paraphrases = self.config, self.rule, self.paraphrases
        return VoteScheduler(
            config, feed, ledger, self.prompts, should_wait, rule=rule, paraphrases=paraphrases, thresholds=thresholds
        )


def _calibrate(
    method: VoteMethod,
    pool: EnginePool,
    policy: str,
    paths: VotingPaths,
    calibration: CalibrationSlice,
    should_stop: Callable[[], bool],
) -> LabelCertificate:
    """Vote on the slice, all K votes for each question, choose the thresholds and write the certificate."""
    voting = method.config.voting
    _refuse_unparaphrased(calibration, method.paraphrases)
    slice_method = replace(
        method, config=method.config.model_copy(update={"voting": make_slice_voting(method.config.voting)})
    )
    calibration.write(paths.calibration_questions)
    feed, slice_paths = QuestionFeed(paths.calibration_questions), VotingPaths(paths.calibration)
    with (
        slice_method.open_ledger(paths.calibration, policy) as ledger,
        _open_bar(
            len(calibration.questions), ledger.num_labels, voting.samples, "vote on the calibration slice"
        ) as bar,
    ):
        _skip_labeled(feed, ledger, should_stop)
        collect_votes(pool, slice_method.make_scheduler(feed, ledger), ledger, bar, should_stop)
    certificate = certify(list(read_labels(slice_paths.labels)), calibration, voting)
    write_json(paths.certificate, certificate.model_dump(mode="json"))
    logger.info("labels: %s", format_certificate(certificate))
    return certificate


def _refuse_unparaphrased(calibration: CalibrationSlice, paraphrases: Paraphrases) -> None:
    """The slice must be voted on as the run's questions are."""
    if not paraphrases.stems:
        return
    missing = [question for question in calibration.questions if question.id not in paraphrases.stems]
    if missing:
        raise InputError(
            f"voting.paraphrases has no stems for {len(missing)} of {len(calibration.questions)} questions of "
            f"voting.calibrate.data, e.g. {missing[0].id}; add a line for each: they must be voted on like the others"
        )


def _open_bar(questions: int | None, labels: int, samples: int, title: str = "vote") -> ProgressBar:
    """Open a bar of votes; those that a label does not need count as taken."""
    total = None if questions is None else questions * samples
    return ProgressBar(total=total, desc=title, unit="vote", initial=labels * samples)


def _skip_labeled(feed: QuestionFeed, ledger: VoteLedger, should_stop: Callable[[], bool]) -> None:
    """Skip the questions that have a label and compare each with its label; wait for those not yet in the feed."""
    for position in range(ledger.num_labels):
        while (question := feed.next()) is None:
            if feed.ended:
                raise InputError(
                    f"{ledger.labels_file} has {ledger.num_labels:,} labels, but there are only {position:,} "
                    "questions; put the questions back, or give a new --run-dir"
                )
            if should_stop():
                raise Stopped("voting stopped; the same command resumes")
            time.sleep(_POLL_S)
        ledger.check_order(position, question)


class _CachedCheck:
    """A check whose result is reused for a short time."""

    def __init__(self, check: Callable[[], bool]):
        self._check, self._valid_until, self._result = check, 0.0, False

    def __call__(self) -> bool:
        if time.monotonic() > self._valid_until:
            self._result, self._valid_until = self._check(), time.monotonic() + _POLL_S
        return self._result
