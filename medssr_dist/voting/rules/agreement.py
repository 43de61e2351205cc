"""Agreement: the forms of a question vote, one voice each.

A form is an order of the options and a stem (`question_forms.py`). The voice of a form is the majority of the votes on
it. So an answer that wins only where it stands at a certain letter, or only in one wording, has few voices (option
orders: Zheng et al., arXiv 2309.03882; Pezeshkpour and Hruschka, arXiv 2308.11483).
"""

from __future__ import annotations

from collections import Counter, defaultdict

from medssr_dist.voting.question_votes import OptionShares, QuestionVotes


def count_forms(found: QuestionVotes) -> OptionShares:
    """Return the share of the forms that each option wins. A form with a tie, or without a valid vote, has no voice."""
    votes: defaultdict[tuple[str, int], Counter[str]] = defaultdict(Counter)
    for vote in found.votes:
        votes[vote.order, vote.paraphrase].update([vote.answer] if vote.answer else [])
    voices: Counter[str] = Counter()
    for counts in votes.values():
        (winner, most), *others = counts.most_common(2) or [("", 0)]
        if most and not (others and others[0][1] == most):
            voices[winner] += 1
    return {letter: count / len(votes) for letter, count in voices.items()}
