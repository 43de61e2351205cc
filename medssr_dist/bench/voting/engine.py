"""The parts of `medssr bench voting` on a real engine: SmolLM2 under vLLM, on whatever device there is.

Pool against vLLM: raw `LLM.generate` and the pool answer the same questions with the same seeds in turn, round after
round, so that what else the machine does falls on both; start-up is left out.

Adaptive against full voting: the demo's questions, made as the demo makes them, are voted on in every mode with
the same seeds, weights in float32 (on CPU, what bf16 samples depends on who shares the batch). A sample that was asked
for counts with all its tokens, also where it was aborted, so that the ratio is not flattered by what was thrown away.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from medssr_dist.bench.voting.replay import least_tokens
from medssr_dist.config.base import DataSource
from medssr_dist.config.load import load_config
from medssr_dist.config.schema import Config
from medssr_dist.data.answers import render_prompt
from medssr_dist.data.jsonl import read_jsonl
from medssr_dist.data.records import Label, Question, Vote
from medssr_dist.inference.pool import EnginePool
from medssr_dist.inference.requests import SampleRequest
from medssr_dist.inference.vllm_args import build_engine_env, build_engine_kwargs
from medssr_dist.knowledge.vignettes import find_hpo_truth
from medssr_dist.readers import read_questions
from medssr_dist.run.paths import RunPaths, VotingPaths
from medssr_dist.run.stream import QuestionFeed
from medssr_dist.runtime.models import fingerprint_model, load_tokenizer, resolve_model
from medssr_dist.voting.labels import label_question
from medssr_dist.voting.ledger import VoteLedger
from medssr_dist.voting.segments import list_segments, read_votes
from medssr_dist.voting.tally import Tally
from medssr_dist.voting.vote_scheduler import VoteScheduler, collect_votes

DEMO = Path(__file__).parents[3] / "configs" / "demo_cpu.yaml"
_VOTE_ONLY = ("training.stage1.enabled=false", "training.stage2.enabled=false")
_SAMPLES = 16


def pool_against_vllm(questions: int, rounds: int) -> dict:
    """Tokens/s of the pool over those of raw vLLM: the median over rounds."""
    config = load_config(DEMO)
    model = resolve_model(config.policy)
    requests = _requests(load_tokenizer(model, config.policy), questions)
    with _engines(config, model) as pool:
        raw = _raw_vllm(config, model, requests)
        rates = _alternate({"vllm": raw, "pool": lambda: _pool_tokens(pool, requests)}, rounds)
    ratios = [ours / theirs for ours, theirs in zip(rates["pool"], rates["vllm"], strict=True)]
    return {
        "pool_ratio_to_vllm": round(statistics.median(ratios), 3),
        "pool": {
            "model": config.policy.model,
            "questions": len(requests),
            "samples": requests[0].n,
            "max_tokens": requests[0].max_tokens,
            "tokens_per_s": rates,
        },
    }


@contextmanager
def _engines(config: Config, model: Path) -> Iterator[EnginePool]:
    """A pool of one engine, on a Ray as a run starts it."""
    from medssr_dist.inference.placement import open_engine_pool
    from medssr_dist.runtime.cluster import open_ray_cluster

    with (
        tempfile.TemporaryDirectory(prefix="bench") as logs,
        open_ray_cluster(config, Path(logs)),
        open_engine_pool(config, model) as pool,
    ):
        yield pool


def _requests(tokenizer, questions: int) -> list[SampleRequest]:
    return [
        SampleRequest(key=question.id, prompt=render_prompt(tokenizer, question), n=8, seed=1000 * index, max_tokens=32)
        for index, question in enumerate(read_questions(DataSource(path="hpo:seeds", limit=questions)))
    ]


def _raw_vllm(config: Config, model: Path, requests: list[SampleRequest]) -> Callable[[], int]:
    """Start vLLM in this process; returns a function that answers all requests and counts the tokens."""
    import vllm

    os.environ |= build_engine_env(config.runtime, os.cpu_count() or 1)
    kwargs = build_engine_kwargs(model, config.policy, config.runtime, 1) | {"max_num_seqs": config.voting.in_flight}
    engine = vllm.LLM(**kwargs)
    prompts = [
        {"prompt_token_ids": engine.get_tokenizer()(request.prompt, add_special_tokens=False)["input_ids"]}
        for request in requests
    ]
    params = [
        vllm.SamplingParams(n=request.n, seed=request.seed, max_tokens=request.max_tokens) for request in requests
    ]

    def answer() -> int:
        outputs = engine.generate(prompts, params, use_tqdm=False)
        return sum(len(sample.token_ids) for output in outputs for sample in output.outputs)

    return answer


def _pool_tokens(pool: EnginePool, requests: list[SampleRequest]) -> int:
    return sum(completion.tokens for _, completions in pool.generate(requests) for completion in completions)


def _alternate(ways: dict[str, Callable[[], int]], rounds: int) -> dict[str, list[float]]:
    """Tokens/s of each way in each round; the first call of each is a warm-up and does not count."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for turn in tqdm(range(rounds + 1), desc="pool against vLLM", unit="round"):
        for name, answer in ways.items():
            started = time.perf_counter()
            tokens = answer()
            if turn:
                rates[name].append(round(tokens / (time.perf_counter() - started), 1))
    return rates


# --- adaptive against full voting ----------------------------------------------------------------------------------


class RecordingScheduler(VoteScheduler):
    """VoteScheduler that remember what they have asked for, needed or not."""

    def __init__(self, *args):
        super().__init__(*args)
        self.asked: set[tuple[str, int]] = set()

    def next_request(self, max_samples: int) -> SampleRequest | None:
        return self._noted(super().next_request(max_samples))

    def spare_request(self, max_samples: int) -> SampleRequest | None:
        return self._noted(super().spare_request(max_samples))

    def _noted(self, request: SampleRequest | None) -> SampleRequest | None:
        if request:
            self.asked |= {(request.key, request.seed + index) for index in range(request.n)}
        return request


def adaptive_against_full(folder: Path, questions: int) -> dict:
    """Tokens of adaptive over full voting on the demo's first `questions` questions, and whether labels agree."""
    file = demo_questions(folder, questions)
    config = load_config(DEMO, [*_VOTE_ONLY, "policy.dtype=float32", f"voting.samples={_SAMPLES}"])
    model = resolve_model(config.policy)
    tokenizer = load_tokenizer(model, config.policy)
    with _engines(config, model) as pool:
        full = Voted(with_voting(config, "never", "requested"), file, folder / "never", pool, tokenizer, model)
        cases = {}
        for confidence in ("requested", "valid"):
            for mode in ("lossless", "kept"):
                case = with_voting(config, mode, confidence)
                voted = Voted(case, file, folder / f"{mode}_{confidence}", pool, tokenizer, model)
                cases[f"{mode}_{confidence}"] = voted.against(full, case.voting)
    return {
        "adaptive_token_ratio": cases["lossless_requested"]["token_ratio"],
        "adaptive_kept_token_ratio": cases["kept_requested"]["token_ratio"],
        "adaptive_labels_identical": all(case["labels_identical"] for case in cases.values()),
        "adaptive_least_possible_ratio": cases["lossless_requested"]["least_possible_ratio"],
        "adaptive": {
            "model": config.policy.model,
            "dtype": config.policy.dtype,
            "questions": len(full.labels),
            "samples": _SAMPLES,
            "threshold": config.voting.threshold,
            "tokens_of_full_voting": full.tokens,
            "share_of_right_votes": full.accuracy(),
            "cases": cases,
        },
    }


def demo_questions(folder: Path, count: int) -> Path:
    """The file of questions that the demo's synthesize step makes of the offline teacher's replies."""
    run = folder / "demo"
    command = [sys.executable, "-m", "medssr_dist.cli", "synthesize", "--config", str(DEMO), "--run-dir", str(run)]
    done = subprocess.run([*command, f"synthesis.accepted={count}"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the demo's synthesize step failed:\n{done.stderr[-3000:]}")
    return RunPaths(run).synthesis.questions


def with_voting(config: Config, adaptive: str, confidence: str) -> Config:
    voting = config.voting.model_copy(update={"adaptive": adaptive, "confidence": confidence})
    return config.model_copy(update={"voting": voting})


class Voted:
    """A vote on all questions of `file`, done on making this.

    Attributes:
        labels: in order.
        votes: (question, seed) -> the vote.
        tokens: of these votes.
        asked: (question, seed) of all samples that were asked for.
    """

    def __init__(self, config: Config, file: Path, folder: Path, pool: EnginePool, tokenizer, model: Path):
        before, paths = pool.tokens, VotingPaths(folder)
        with (
            VoteLedger(folder, fingerprint_model(model), "bench") as ledger,
            tqdm(desc=f"vote, {folder.name}", unit="question") as bar,
        ):
            scheduler = RecordingScheduler(config, QuestionFeed(file), ledger, tokenizer)
            collect_votes(pool, scheduler, ledger, bar, lambda: False)
        self.generated = pool.tokens - before
        self.asked = scheduler.asked
        self.labels = [Label.model_validate(row) for row in read_jsonl(paths.labels)]
        numbers = list_segments(paths.votes)
        votes = [vote for number in numbers for vote in read_votes(paths.votes, number)]
        self.votes: dict[tuple[str, int], Vote] = {(vote.question_id, vote.seed): vote for vote in votes}
        self.tokens = sum(vote.tokens for vote in votes)

    def accuracy(self) -> float | None:
        """Share of the votes that are right, on the questions whose answer HPO gives."""
        truths = {label.question.id: find_hpo_truth(label.question) for label in self.labels}
        known = [vote for vote in self.votes.values() if truths[vote.question_id]]
        right = sum(vote.answer == truths[vote.question_id] for vote in known)
        return round(right / len(known), 3) if known else None

    def against(self, full: Voted, voting) -> dict:
        """What was saved of `full`, which took all votes, and whether the labels are those of full voting."""
        expected = [self._full_label(label.question, full, voting) for label in full.labels]
        asked_tokens = sum(full.votes[key].tokens for key in self.asked)
        least = sum(
            least_tokens(full.votes_on(each.question), tuple(each.question.options), voting) for each in expected
        )
        return {
            "token_ratio": round(asked_tokens / full.tokens, 4),
            "token_ratio_of_votes": round(self.tokens / full.tokens, 4),
            "token_ratio_told_by_engine": round(self.generated / full.generated, 4),
            "least_possible_ratio": round(least / full.tokens, 4),
            "labels_identical": _shown(self.labels, voting) == _shown(expected, voting),
            "votes_identical": all(vote.text == full.votes[key].text for key, vote in self.votes.items()),
            "votes": len(self.votes),
            "wasted_samples": len(self.asked) - len(self.votes),
        }

    def votes_on(self, question: Question) -> list[tuple[str | None, int]]:
        return [(vote.answer, vote.tokens) for (key, _), vote in self.votes.items() if key == question.id]

    @staticmethod
    def _full_label(question: Question, full: Voted, voting) -> Label:
        tally = Tally.from_answers(answer for answer, _ in full.votes_on(question))
        return label_question(question, tally, voting, tokens=0, truncated=0, policy="", sampling="")


def _shown(labels: list[Label], voting) -> list[tuple]:
    """What must be equal: everything that is decided; with `kept`, what the trainer is given."""
    if voting.adaptive == "kept":
        return [(label.question.id, label.kept, label.answer if label.kept else None) for label in labels]
    return [(label.question.id, label.outcome, label.answer, label.kept) for label in labels]


def measure_real_engine(folder: Path, pool_questions: int, rounds: int, questions: int) -> dict:
    """Both parts; ledgers go to a temporary folder in `folder`."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".bench") as scratch:
        return pool_against_vllm(pool_questions, rounds) | adaptive_against_full(Path(scratch), questions)
