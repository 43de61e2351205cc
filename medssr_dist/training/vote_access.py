"""What stage 1 is given to read votes and to take new ones. The vote is another step, which `steps/` connects."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from medssr_dist.data.prompt_renderer import PromptRenderer
from medssr_dist.data.records import Label, Question, WeightedVote

if TYPE_CHECKING:
    from medssr_dist.training.rollout.engines import RolloutEngines


class VoteSource(Protocol):
    """Where the votes on a question are read (`voting.first_votes.FirstVotes`)."""

    def find(self, position: int, label: Label) -> list[WeightedVote]:
        """Return the votes with the first G seeds that were taken; `position`: of the question in the ledger."""


class VoteFunction(Protocol):
    """Takes the votes of a policy (`voting.online_vote.vote_online`)."""

    def __call__(
        self,
        folder: Path,
        policy: str,
        questions: Sequence[Question],
        prompts: PromptRenderer,
        engines: RolloutEngines,
    ) -> list[Label]: ...
