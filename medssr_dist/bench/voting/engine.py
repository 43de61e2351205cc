"""The parts of `medssr bench voting` on a real engine: SmolLM2 under vLLM, on a GPU or the CPU.

Pool against vLLM: raw `LLM.generate` and the pool answer the same questions with the same seeds. They alternate, round
after round, so that other load on the machine affects both. Start-up is not measured.

Adaptive against full voting: the demo's questions are voted on in every mode with the same seeds. Weights are in
float32: on a CPU in bf16, a sample depends on the other samples of its batch. A requested sample counts with all its
tokens, even if it was aborted, so that waste does not improve the ratio.
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
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from medssr_dist.bench.voting.replay import find_least_tokens
from medssr_dist.bench.voting.voting_figures import AdaptiveCase, AdaptiveVoting, PoolSpeed
from medssr_dist.config.base import DataSource
from medssr_dist.config.load import load_config
from medssr_dist.config.schema import Config
from medssr_dist.config.voting import Voting
from medssr_dist.data.jsonl import read_jsonl
from medssr_dist.data.prompt_renderer import PromptRenderer
from medssr_dist.data.records import Label, Question, Vote
from medssr_dist.inference.pool import EnginePool
from medssr_dist.inference.requests import SampleRequest
from medssr_dist.inference.vllm_args import build_engine_env, build_engine_kwargs
from medssr_dist.knowledge.vignettes import find_hpo_truth
from medssr_dist.readers import read_questions
from medssr_dist.run.paths import RunPaths, VotingPaths
from medssr_dist.run.stream import QuestionFeed
from medssr_dist.runtime.fingerprints import fingerprint_model
from medssr_dist.runtime.models import load_tokenizer, make_prompt_renderer, resolve_model
from medssr_dist.voting.labels import label_question
from medssr_dist.voting.ledger import VoteLedger
from medssr_dist.voting.segments import list_segments, read_votes
from medssr_dist.voting.tally import Tally
from medssr_dist.voting.vote_scheduler import VoteScheduler, collect_votes

DEMO = Path(__file__).parents[3] / "configs" / "smollm2_cpu.yaml"
_VOTE_ONLY = ("training.stage1.enabled=false", "training.stage2.enabled=false")
_SAMPLES = 16


def measure_pool_speed(questions: int, rounds: int) -> PoolSpeed:
    """Return the pool's tokens/s against those of raw vLLM on so many questions."""
    config = load_config(DEMO)
    model = resolve_model(config.policy)
    requests = _make_requests(make_prompt_renderer(load_tokenizer(model, config.policy), config.policy), questions)
    with _open_engines(config, model) as pool:
        raw = _start_raw_vllm(config, model, requests)
        rates = alternate({"vllm": raw, "pool": lambda: _pool_tokens(pool, requests)}, rounds, "pool against vLLM")
    ratios = [ours / theirs for ours, theirs in zip(rates["pool"], rates["vllm"], strict=True)]
    return PoolSpeed(
        ratio=round(statistics.median(ratios), 3),
        model=config.policy.model,
        questions=len(requests),
        samples=requests[0].n,
        max_tokens=requests[0].max_tokens,
        tokens_per_s=rates,
    )


@contextmanager
def _open_engines(config: Config, model: Path) -> Iterator[EnginePool]:
    """Yield a pool of one engine, on a Ray cluster that is started as a run starts it."""
    from medssr_dist.inference.placement import open_engine_pool
    from medssr_dist.runtime.cluster import open_ray_cluster

    with (
        tempfile.TemporaryDirectory(prefix="bench") as logs,
        open_ray_cluster(config, Path(logs)),
        open_engine_pool(config, model) as pool,
    ):
        yield pool


def _make_requests(prompts: PromptRenderer, questions: int) -> list[SampleRequest]:
    return [
        SampleRequest(key=question.id, prompt=prompts.render(question).ids, n=8, seed=1000 * index, max_tokens=32)
        for index, question in enumerate(read_questions(DataSource(path="hpo:seeds", limit=questions)))
    ]


def _start_raw_vllm(config: Config, model: Path, requests: list[SampleRequest]) -> Callable[[], int]:
    """Start vLLM in this process and return a function that answers all requests and returns the tokens."""
    import vllm

    os.environ |= build_engine_env(config.runtime, os.cpu_count() or 1)
    kwargs = build_engine_kwargs(model, config.policy, config.runtime, 1) | {"max_num_seqs": config.voting.in_flight}
    engine = vllm.LLM(**kwargs)
    prompts = [{"prompt_token_ids": list(request.prompt)} for request in requests]
    params = [
        vllm.SamplingParams(n=request.n, seed=request.seed, max_tokens=request.max_tokens) for request in requests
    ]

    def answer() -> int:
        outputs = engine.generate(prompts, params, use_tqdm=False)
        return sum(len(sample.token_ids) for output in outputs for sample in output.outputs)

    return answer


def _pool_tokens(pool: EnginePool, requests: list[SampleRequest]) -> int:
    return sum(completion.tokens for _, completions in pool.generate(requests) for completion in completions)


def alternate(ways: dict[str, Callable[[], int]], rounds: int, title: str) -> dict[str, list[float]]:
    """Return the tokens/s of each way in each round. The first call of each is a warm-up and is not counted.

    Args:
        ways: each returns the number of tokens it has computed. title: of the progress bar.
    """
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for turn in tqdm(range(rounds + 1), desc=title, unit="round"):
        for name, answer in ways.items():
            started = time.perf_counter()
            tokens = answer()
            if turn:
                rates[name].append(round(tokens / (time.perf_counter() - started), 1))
    return rates


# --- adaptive against full voting ----------------------------------------------------------------------------------


class RecordingScheduler(VoteScheduler):
    """A scheduler that records the samples it requests, whether they turn out to be needed or not."""

    def __init__(self, *args):
        super().__init__(*args)
        self.requested: set[tuple[str, int]] = set()  # (question, seed)

    def next_request(self, max_samples: int) -> SampleRequest | None:
        return self._record(super().next_request(max_samples))

    def spare_request(self, max_samples: int) -> SampleRequest | None:
        return self._record(super().spare_request(max_samples))

    def _record(self, request: SampleRequest | None) -> SampleRequest | None:
        if request:
            self.requested |= {(request.key, request.seed + index) for index in range(request.n)}
        return request


def measure_adaptive_voting(folder: Path, questions: int) -> AdaptiveVoting:
    """Compare every mode of adaptive voting with full voting on the demo's first `questions` questions."""
    file = make_demo_questions(folder, questions)
    config = load_config(DEMO, [*_VOTE_ONLY, "policy.dtype=float32", f"voting.samples={_SAMPLES}"])
    model = resolve_model(config.policy)
    prompts = make_prompt_renderer(load_tokenizer(model, config.policy), config.policy)
    with _open_engines(config, model) as pool:
        full = run_vote(with_voting(config, "never", "requested"), file, folder / "never", pool, prompts, model)
        cases = {}
        for confidence in ("requested", "valid"):
            for mode in ("lossless", "kept"):
                case = with_voting(config, mode, confidence)
                run = run_vote(case, file, folder / f"{mode}_{confidence}", pool, prompts, model)
                cases[f"{mode}_{confidence}"] = run.compare_to(full, case.voting)
    return AdaptiveVoting(
        model=config.policy.model,
        dtype=config.policy.dtype,
        questions=len(full.labels),
        samples=_SAMPLES,
        threshold=config.voting.threshold,
        tokens_of_full_voting=full.tokens,
        share_of_right_votes=full.share_right_votes(),
        cases=cases,
    )


def make_demo_questions(folder: Path, count: int) -> Path:
    """Run the demo's synthesize step in `folder` and return its file of `count` questions.

    Raises:
        RuntimeError: with the step's error output, if it fails.
    """
    run = folder / "demo"
    command = [sys.executable, "-m", "medssr_dist.cli", "synthesize", "--config", str(DEMO), "--run-dir", str(run)]
    done = subprocess.run([*command, f"synthesis.accepted={count}"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the demo's synthesize step failed:\n{done.stderr[-3000:]}")
    return RunPaths(run).synthesis.questions


def with_voting(config: Config, adaptive: str, confidence: str) -> Config:
    """Return `config` with these two keys of its voting section."""
    voting = config.voting.model_copy(update={"adaptive": adaptive, "confidence": confidence})
    return config.model_copy(update={"voting": voting})


@dataclass(frozen=True)
class VoteRun:
    """The result of a vote on all questions of a file.

    Attributes:
        labels: in the order of the questions.
        votes: (question, seed) -> vote; `tokens`: of these votes.
        requested: (question, seed) of all samples that were requested.
        generated: tokens that the pool's engines report.
    """

    labels: list[Label]
    votes: dict[tuple[str, int], Vote]
    tokens: int
    requested: set[tuple[str, int]]
    generated: int

    def share_right_votes(self) -> float | None:
        """Return the share of right votes on the questions whose answer HPO gives; None without such a question."""
        truths = {label.question.id: find_hpo_truth(label.question) for label in self.labels}
        known = [vote for vote in self.votes.values() if truths[vote.question_id]]
        right = sum(vote.answer == truths[vote.question_id] for vote in known)
        return round(right / len(known), 3) if known else None

    def compare_to(self, full: VoteRun, voting: Voting) -> AdaptiveCase:
        """Return what this vote saves against `full`, which took all votes, and whether the labels are the same."""
        expected = [full.label_by_all_votes(label.question, voting) for label in full.labels]
        requested_tokens = sum(full.votes[key].tokens for key in self.requested)
        least = sum(
            find_least_tokens(full.list_votes(each.question), tuple(each.question.options), voting) for each in expected
        )
        return AdaptiveCase(
            token_ratio=round(requested_tokens / full.tokens, 4),
            token_ratio_of_votes=round(self.tokens / full.tokens, 4),
            token_ratio_told_by_engine=round(self.generated / full.generated, 4),
            least_possible_ratio=round(least / full.tokens, 4),
            labels_identical=_decisions(self.labels, voting) == _decisions(expected, voting),
            votes_identical=all(vote.text == full.votes[key].text for key, vote in self.votes.items()),
            votes=len(self.votes),
            wasted_samples=len(self.requested) - len(self.votes),
        )

    def list_votes(self, question: Question) -> list[tuple[str | None, int]]:
        """Return (answer, tokens) of each vote on `question`."""
        return [(vote.answer, vote.tokens) for (key, _), vote in self.votes.items() if key == question.id]

    def label_by_all_votes(self, question: Question, voting: Voting) -> Label:
        """Return the label that these votes give by the rules of `voting`."""
        tally = Tally.from_answers(answer for answer, _ in self.list_votes(question))
        return label_question(question, tally, voting, tokens=0, truncated=0, policy="", sampling="")


def run_vote(
    config: Config, file: Path, folder: Path, pool: EnginePool, prompts: PromptRenderer, model: Path
) -> VoteRun:
    """Vote on all questions of `file`, with the ledger in `folder`."""
    before, paths = pool.tokens, VotingPaths(folder)
    with (
        VoteLedger(folder, fingerprint_model(model), "bench") as ledger,
        tqdm(desc=f"vote, {folder.name}", unit="question") as bar,
    ):
        scheduler = RecordingScheduler(config, QuestionFeed(file), ledger, prompts)
        collect_votes(pool, scheduler, ledger, bar, lambda: False)
    votes = [vote for number in list_segments(paths.votes) for vote in read_votes(paths.votes, number)]
    return VoteRun(
        labels=[Label.model_validate(row) for row in read_jsonl(paths.labels)],
        votes={(vote.question_id, vote.seed): vote for vote in votes},
        tokens=sum(vote.tokens for vote in votes),
        requested=scheduler.requested,
        generated=pool.tokens - before,
    )


def _decisions(labels: list[Label], voting: Voting) -> list[tuple]:
    """Return what must be equal: all that was decided, or in mode "kept" what the trainer receives."""
    if voting.adaptive == "kept":
        return [(label.question.id, label.kept, label.answer if label.kept else None) for label in labels]
    return [(label.question.id, label.outcome, label.answer, label.kept) for label in labels]
