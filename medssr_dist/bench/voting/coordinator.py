"""How many votes a second the coordinator processes, and whether its memory grows with the number of questions.

    python -m medssr_dist.bench.voting.coordinator QUESTIONS FOLDER --samples 16 --adaptive never

runs a whole vote in `FOLDER`, in its own process, on engines that answer at once, and prints a CoordinatorRun as JSON.
Pool, scheduler, chat prompts of a real tokenizer, and the ledger with its syncs and its packing are the real ones. As
from a real engine, samples come with their extracted answer. Their transport (Ray, HTTP) is not measured.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from dataclasses import asdict, astuple
from pathlib import Path

from tqdm import tqdm

from medssr_dist.bench.voting.simulated_vote import POLICY, SAMPLING, make_simulated_config
from medssr_dist.bench.voting.simulation import DrawnAnswers, InstantEngine
from medssr_dist.bench.voting.voting_figures import CoordinatorRun
from medssr_dist.config.schema import Policy
from medssr_dist.inference.pool import EnginePool
from medssr_dist.inference.requests import Completion, SampleRequest
from medssr_dist.run.stream import QuestionFeed
from medssr_dist.runtime.models import EMBEDDED_MODEL, load_tokenizer, make_prompt_renderer, resolve_model
from medssr_dist.voting.ledger import VoteLedger
from medssr_dist.voting.vote_scheduler import VoteScheduler, collect_votes

# About 400 characters, like an answer with a line of reasoning.
_TEXT = "The findings point to one of these more than to the others, as the course and the family history show. " * 4
_KINDS, _SAMPLES = 256, 32


class AnswerBank:
    """Samples drawn in advance, 32 for each of 256 questions, so that returning one costs almost nothing."""

    def __init__(self) -> None:
        answers = DrawnAnswers(tokens=100.0, text=_TEXT + "The answer is ({}).")
        options = dict.fromkeys("ABCD", "")
        drawn = [[answers.draw(f"{kind:x}", options, seed) for seed in range(_SAMPLES)] for kind in range(_KINDS)]
        self._bank = [[astuple(sample)[1:] for sample in samples] for samples in drawn]

    def __call__(self, request: SampleRequest, seed: int) -> Completion:
        return Completion(seed, *self._bank[int(request.key[:2], 16)][seed % _SAMPLES])


def measure_coordinator(questions: Path, folder: Path, samples: int, adaptive: str, engines: int) -> CoordinatorRun:
    """Vote on all of `questions` and return the figures; the peak memory is that of this process."""
    policy = Policy(model=EMBEDDED_MODEL)
    prompts = make_prompt_renderer(load_tokenizer(resolve_model(policy), policy), policy)
    config = make_simulated_config(samples=samples, adaptive=adaptive, engines=engines)
    answer = AnswerBank()
    handles = [InstantEngine(f"engine {number}", answer) for number in range(engines)]
    started, cpu = time.perf_counter(), time.process_time()
    with (
        VoteLedger(folder, POLICY, SAMPLING) as ledger,
        EnginePool(handles, config.voting) as pool,
        tqdm(desc="coordinator", unit="question", disable=not sys.stderr.isatty()) as bar,
    ):
        scheduler = VoteScheduler(config, QuestionFeed(questions), ledger, prompts)
        collect_votes(pool, scheduler, ledger, bar, lambda: False)
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    return CoordinatorRun(
        questions=ledger.num_labels,
        votes=scheduler.num_votes,
        seconds=round(seconds, 2),
        cpu_s=round(cpu, 2),
        votes_per_s=round(scheduler.num_votes / seconds),
        peak_mb=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", type=Path, help="file of questions")
    parser.add_argument("folder", type=Path, help="for the ledger")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--adaptive", default="lossless")
    parser.add_argument("--engines", type=int, default=64)
    args = parser.parse_args()
    run = measure_coordinator(args.questions, args.folder, args.samples, args.adaptive, args.engines)
    print(json.dumps(asdict(run)))


if __name__ == "__main__":
    main()
