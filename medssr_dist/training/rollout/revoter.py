"""Re-voting while stage 1 trains (`voting.online`): the current policy votes on the questions that come next.

As in TTRL (arXiv 2504.16084), labels follow the policy as it improves; unlike there, votes are not the rollouts that
are trained on, and each is in a vote ledger under the version of the policy that gave it. The new label replaces the
old one, and a question whose new label is not kept is left out. Labels that change are lines of the stage's
flips.jsonl, with the counts and the policy of both votes.

With `voting.online.teacher`, the votes are those of a moving average of the policy's weights (`weights/teacher.py`):
the engines get its weights for the vote, and the policy's again afterwards.

A restart reads the votes up to its checkpoint and deletes later ones, because their steps are taken again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from medssr_dist.data.jsonl import JsonlLedger, read_jsonl
from medssr_dist.data.prompt_renderer import PromptRenderer
from medssr_dist.data.records import Label, parse_record
from medssr_dist.run.paths import StagePaths, VotingPaths
from medssr_dist.runtime.fingerprints import fingerprint_model
from medssr_dist.training.rollout.engines import RolloutEngines
from medssr_dist.training.rollout.examples import PromptLoader
from medssr_dist.training.vote_access import VoteFunction

if TYPE_CHECKING:
    from medssr_dist.training.rollout.workers import RolloutWorkers
    from medssr_dist.training.stage_job import StageJob

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RevoteCounts:
    """What one vote of the policy in training has changed, by field name of StepMetrics.

    Example: RevoteCounts(revoted_questions=64, revotes=701, labels_flipped=5, labels_dropped=3)

    Attributes:
        revotes: votes taken.
        labels_flipped: labels with another answer than before.
        labels_dropped: labels that were kept and are not any more.
    """

    revoted_questions: int
    revotes: int
    labels_flipped: int
    labels_dropped: int


@dataclass(frozen=True)
class VotedLabel:
    """One side of a flip. Example: VotedLabel(answer="B", kept=True, counts={"B": 9, "C": 4}, policy="3f..")"""

    answer: str | None
    kept: bool
    counts: dict[str, int]
    policy: str

    @classmethod
    def from_label(cls, label: Label) -> VotedLabel:
        return cls(label.answer, label.kept, label.counts, label.policy)


@dataclass(frozen=True)
class LabelFlip:
    """A line of flips.jsonl: after `step` steps, a question's label changed its answer, or whether it is kept.

    The votes of `after` are in `revotes/step<step>/votes`, those of `before` in the folder of its policy's votes.

    Example: LabelFlip(step=40, question_id="ab..", before=VotedLabel(...), after=VotedLabel(...))
    """

    step: int
    question_id: str
    before: VotedLabel
    after: VotedLabel


class Revoter:
    """Lets the policy vote again. Call it while no groups are being sampled: between the weight sync and the next step.

    Args:
        every: after every this many steps.
        last_step: no vote follows this one.
        wrap: whether the prompts begin again after the last one.
        policy: fingerprint of the policy that stage 1 began with, and what else names the voter.
        voter_weights: while its result is entered, the engines hold the weights that vote.
    """

    def __init__(
        self,
        vote: VoteFunction,
        every: int,
        last_step: int,
        wrap: bool,
        policy: str,
        paths: StagePaths,
        prompts: PromptLoader,
        renderer: PromptRenderer,
        engines: RolloutEngines,
        voter_weights: Callable[[], AbstractContextManager[None]] = nullcontext,
    ):
        self._voter_weights = voter_weights
        self._vote, self._every, self._last_step, self._wrap, self._policy = vote, every, last_step, wrap, policy
        self._paths, self._prompts, self._renderer, self._engines = paths, prompts, renderer, engines
        for step in paths.revoted_steps():
            prompts.relabel(read_labels(paths.revote_at(step)))

    def vote_if_due(self, step: int, drawn: int) -> RevoteCounts | None:
        """Let the policy after `step` steps vote on the questions of the next steps; None if it is not due.

        Args:
            drawn: prompts that this step has drawn; the next steps are expected to draw as many.
        """
        if step % self._every or step >= self._last_step:
            return None
        before = self._prompts.look_ahead(self._every * max(drawn, 1), self._wrap)
        if not before:
            return None
        questions, folder = [label.question for label in before], self._paths.revote_at(step)
        with self._voter_weights():
            after = self._vote(folder, f"{self._policy}-step{step}", questions, self._renderer, self._engines)
        self._prompts.relabel(after)
        flips = find_flips(step, before, after)
        if flips:
            with JsonlLedger(self._paths.flips) as ledger:
                ledger.append(*map(asdict, flips))
        counts = RevoteCounts(
            revoted_questions=len(after),
            revotes=sum(label.taken for label in after),
            labels_flipped=sum(flip.after.kept and flip.before.answer != flip.after.answer for flip in flips),
            labels_dropped=sum(flip.before.kept and not flip.after.kept for flip in flips),
        )
        _log.info("step %d: %s", step, counts)
        return counts


def make_revoter(
    job: StageJob, prompts: PromptLoader, renderer: PromptRenderer, workers: RolloutWorkers
) -> Revoter | None:
    """Return what lets the policy of the stage vote again; None if it does not."""
    online = job.config.voting.online
    if job.revote is None or online is None:
        return None
    policy, voter_weights = fingerprint_model(job.model), nullcontext
    if online.teacher is not None:
        policy, voter_weights = f"{policy}-teacher{online.teacher:g}", workers.holding_teacher
    last_step, wrap, engines = job.expected_steps, bool(job.stage.steps), workers.engines
    return Revoter(
        job.revote, online.every, last_step, wrap, policy, job.paths, prompts, renderer, engines, voter_weights
    )


def find_flips(step: int, before: Sequence[Label], after: Sequence[Label]) -> list[LabelFlip]:
    """Return the questions whose label has another answer, or is kept where it was not, or the other way round."""
    return [
        LabelFlip(step, old.question.id, VotedLabel.from_label(old), VotedLabel.from_label(new))
        for old, new in zip(before, after, strict=True)
        if (old.answer, old.kept) != (new.answer, new.kept)
    ]


def read_labels(folder: Path) -> list[Label]:
    """Read the labels of a vote. Raises InputError for a line that is none."""
    file = VotingPaths(folder).labels
    return [parse_record(Label, row, f"{file} line {line}") for line, row in enumerate(read_jsonl(file), start=1)]
