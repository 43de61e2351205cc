"""The votes that `medssr bench labels` analyses: the mini policy on questions with a known answer, in three ways.

plain: as the questions are. shuffled: `voting.shuffle_options`. paraphrased: `voting.paraphrases`, three further stems.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medssr_dist.bench.labels.paraphrased_stems import paraphrase
from medssr_dist.config.load import load_config
from medssr_dist.config.schema import Config
from medssr_dist.data.jsonl import JsonlLedger, read_jsonl
from medssr_dist.data.records import LETTERS, Question, Vote, parse_record
from medssr_dist.errors import InputError
from medssr_dist.inference.pool import EnginePool
from medssr_dist.knowledge.mini_world import EVALUATION, make_mini_cases
from medssr_dist.run.paths import VotingPaths
from medssr_dist.run.stream import QuestionFeed, has_ended, mark_end
from medssr_dist.runtime.fingerprints import fingerprint_model
from medssr_dist.runtime.models import load_tokenizer, make_prompt_renderer, resolve_model
from medssr_dist.runtime.progress_bar import ProgressBar
from medssr_dist.voting.segments import list_segments, read_votes
from medssr_dist.voting.vote_scheduler import collect_votes

CONFIG = Path(__file__).parents[3] / "configs" / "demo_cpu.yaml"
ARMS = ("plain", "shuffled", "paraphrased")
_PARAPHRASES = 3


@dataclass(frozen=True)
class VotedQuestion:
    """A question with all votes on it, by seed. Example: VotedQuestion(question, votes=(vote, ...))"""

    question: Question
    votes: tuple[Vote, ...]


def take_votes(folder: Path, count: int, samples: int) -> dict[str, list[VotedQuestion]]:
    """Let the mini policy vote on `count` questions about patients of hpo:mini-evaluation, in each way.

    Questions and votes that `folder` holds are used again.

    Returns:
        name of the arm -> its questions, in order.
    """
    folder.mkdir(parents=True, exist_ok=True)
    questions, stems = folder / "questions.jsonl", folder / "paraphrases.jsonl"
    if not questions.exists():
        cases = make_mini_cases(EVALUATION, count)
        stems.unlink(missing_ok=True)
        with JsonlLedger(stems) as ledger:
            ledger.append(*({"id": one.question.id, "stems": paraphrase(one, _PARAPHRASES)} for one in cases))
        with JsonlLedger(questions) as ledger:
            ledger.append(*(one.question.model_dump(mode="json") for one in cases))
    asked = [parse_record(Question, row, str(questions)) for row in read_jsonl(questions)]
    ways = {"shuffled": {"voting.shuffle_options": "true"}, "paraphrased": {"voting.paraphrases": str(stems)}}
    configs = {name: _make_config(ways.get(name, {}), samples) for name in ARMS}
    model = resolve_model(configs["plain"].policy)
    for name in ARMS:
        if not has_ended(VotingPaths(folder / name).labels):
            _vote(configs[name], questions, len(asked), folder / name, model)
    return {name: _read_votes(folder / name, asked, samples) for name in ARMS}


def _make_config(settings: dict[str, str], samples: int) -> Config:
    overrides = {
        "voting.samples": samples,
        "voting.adaptive": "never",
        "voting.keep_text": "false",
        "voting.record_logprobs": "true",
        "voting.in_flight": 2048,
        "runtime.mode": "sequential",
        "training.stage1.enabled": "false",
        "training.stage2.enabled": "false",
        **settings,
    }
    return load_config(CONFIG, [f"{key}={value}" for key, value in overrides.items()])


def _vote(config: Config, questions: Path, count: int, folder: Path, model: Path) -> None:
    """Take the votes as a run does, with `BatchEngine` in the pool."""
    from medssr_dist.bench.labels.batch_engine import BatchEngine
    from medssr_dist.voting.vote import VoteMethod

    method = VoteMethod.from_config(config, make_prompt_renderer(load_tokenizer(model, config.policy), config.policy))
    with (
        method.open_ledger(folder, fingerprint_model(model)) as ledger,
        EnginePool([BatchEngine(model)], config.voting) as pool,
        ProgressBar(total=count * config.voting.samples, desc=folder.name, unit="vote") as bar,
    ):
        feed = QuestionFeed(questions)
        for _ in range(ledger.num_labels):
            feed.next()
        collect_votes(pool, method.make_scheduler(feed, ledger), ledger, bar, lambda: False)
        mark_end(ledger.labels_file, ledger.num_kept)


def _read_votes(folder: Path, asked: Sequence[Question], samples: int) -> list[VotedQuestion]:
    """Read the votes back. Raises InputError where a question has not all of them."""
    votes: dict[str, list[Vote]] = {question.id: [] for question in asked}
    place = VotingPaths(folder).votes
    for number in list_segments(place):
        for vote in read_votes(place, number):
            votes[vote.question_id].append(vote)
    if short := [id for id, found in votes.items() if len(found) != samples]:
        raise InputError(
            f"{folder}: {len(short)} questions have not {samples} votes; remove the folder and start again"
        )
    return [
        VotedQuestion(question, tuple(sorted(votes[question.id], key=lambda vote: vote.seed))) for question in asked
    ]


def list_shown_letters(voted: Sequence[VotedQuestion]) -> Counter[str]:
    """Count the valid votes by the letter that the policy wrote, whatever option stood there."""
    letters: Counter[str] = Counter()
    for each in voted:
        for vote in each.votes:
            if vote.answer:
                letters[LETTERS[vote.order.index(vote.answer)] if vote.order else vote.answer] += 1
    return letters
