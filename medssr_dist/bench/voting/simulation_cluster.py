"""A long vote on 64 and 512 simulated engines that die, hang and lag: are they kept busy, is each vote there once?

Pool, scheduler, ledger and question file are the real ones; engines and clock are simulated (`simulation.py`).

Utilisation = tokens of the votes in the ledger / tokens that the engines could have generated with a full batch while
they were up, the whole run long: ramp and tail, samples lost with an engine, aborted and drawn twice all count
against it. An engine is up from the end of a start until the pool stops it; a hanging one is up until it is noticed.
`steady_utilisation` is the same between a tenth of the run and the moment when the last question was begun.

Lost and doubled are counted in the files of the ledger, against what full voting would have said: a vote is lost if a
label counts it, or a question without a label needs it, and it is not on disk; doubled if its key is there twice.
"""

from __future__ import annotations

import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from medssr_dist.bench.voting.simulation import DrawnAnswers, Failure, SimulatedEngine, Speed, VirtualLoop
from medssr_dist.config.schema import Config
from medssr_dist.data.jsonl import read_jsonl
from medssr_dist.data.records import Label, Question, Vote
from medssr_dist.inference.pool import EnginePool
from medssr_dist.run.paths import VotingPaths
from medssr_dist.run.stream import QuestionFeed
from medssr_dist.voting.labels import label_question
from medssr_dist.voting.ledger import VoteLedger, derive_seeds
from medssr_dist.voting.segments import SEGMENT_QUESTIONS, find_segment, list_segments, read_votes
from medssr_dist.voting.tally import Tally
from medssr_dist.voting.vote_scheduler import VoteScheduler, collect_votes

POLICY, SAMPLING = "simulated", "drawn"
_LETTERS = 4


@dataclass(frozen=True)
class Cluster:
    """What is simulated.

    `mtbf_s`: mean time between an engine's failures. Meta saw 419 interruptions in 54 days on 16,384 H100s
    (arXiv 2407.21783, section 3.3.4), one in 50,000 hours of a GPU; here failures come thousands of times as often.
    """

    engines: int
    questions: int
    samples: int = 16
    adaptive: str = "lossless"
    window: int = 262144
    in_flight: int = 256  # as many as `speed.batch`: the pool gives vLLM the same limit
    stall_s: float = 60.0
    start_s: float = 60.0
    mtbf_s: float = 4 * 3600.0
    wedge_share: float = 0.2  # of the failures
    straggler_share: float = 1 / 32
    slowest: float = 50.0  # stragglers are 3 to this many times slower
    tick_s: float = 0.1
    seed: int = 1
    speed: Speed = Speed()
    answers: DrawnAnswers = DrawnAnswers()


def write_questions(path: Path, count: int) -> None:
    """Questions of about 400 characters, as the synthesize step writes them."""
    filler = "with fatigue, hepatomegaly and a rash that came after a journey " * 4
    options = [f"a diagnosis that is number {number} of those considered" for number in range(_LETTERS)]
    with open(path, "w", encoding="utf-8") as file:
        for number in range(count):
            question = Question.make(f"Patient {number} presents {filler}. Why?", options, source="simulated")
            file.write(question.model_dump_json() + "\n")


def simulated_config(**voting) -> Config:
    """A config for votes without a model."""
    return Config.model_validate(
        {
            "policy": {"model": "none"},
            "training": {"stage1": {"enabled": False}, "stage2": {"enabled": False}},
            "synthesis": {
                "accepted": 1,
                "alpha": 1.0,
                "seeds": ["hpo:seeds"],
                "endpoints": [{"base_url": "offline-teacher", "model": "none"}],
            },
            "voting": voting,
        }
    )


class PlainTokenizer:
    """Without a chat template: a prompt is the plain text."""

    chat_template = None


def simulate(cluster: Cluster, folder: Path) -> dict:
    """Run the vote in `folder` and audit its ledger; returns figures and the timeline."""
    questions = folder / "questions.jsonl"
    write_questions(questions, cluster.questions)
    config = simulated_config(
        samples=cluster.samples,
        adaptive=cluster.adaptive,
        window=cluster.window,
        in_flight=cluster.in_flight,
        stall_s=cluster.stall_s,
        engines=cluster.engines,
        max_tokens=cluster.answers.max_tokens,
    )
    loop, engines = VirtualLoop(), build_engines(cluster)
    started, cpu = time.perf_counter(), time.process_time()
    with (
        MeteredLedger(folder, POLICY, SAMPLING) as ledger,
        EnginePool(engines, config.voting, loop=loop) as pool,
        tqdm(total=cluster.questions, desc=f"simulated, {cluster.engines} engines", unit="question") as bar,
    ):
        feed = QuestionFeed(questions)
        scheduler = VoteScheduler(config, feed, ledger, PlainTokenizer())
        timeline = Timeline(loop.time, engines, ledger, lambda: feed.given == cluster.questions)
        collect_votes(pool, scheduler, ledger, bar, timeline.look)
        timeline.end()
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    found = audit(folder, config, cluster.answers)
    return (
        {"cluster": asdict(cluster), "simulated_s": round(timeline.seconds, 1), "wall_s": round(seconds, 1)}
        | {"coordinator_load": round(cpu / timeline.seconds, 2)}  # CPU s a simulated one, simulated engines included
        | timeline.figures()
        | {"utilisation": round(found.pop("tokens") / timeline.capacity, 4)}
        | found
        | {"timeline": timeline.rows()}
    )


def build_engines(cluster: Cluster) -> list[SimulatedEngine]:
    """The engines of `cluster`; stragglers are spread over them, the slowest among them."""
    draw = random.Random(cluster.seed)
    stragglers = draw.sample(range(cluster.engines), round(cluster.straggler_share * cluster.engines))
    slowness = {number: 3 * (cluster.slowest / 3) ** draw.random() for number in stragglers}
    slowness |= dict.fromkeys(stragglers[:1], cluster.slowest)

    def lives(number: int) -> Callable[[], Failure]:
        own = random.Random(f"{cluster.seed} {number}")
        return lambda: Failure(own.expovariate(1 / cluster.mtbf_s), own.random() < cluster.wedge_share)

    return [
        SimulatedEngine(
            f"engine {number}",
            cluster.speed,
            cluster.answers,
            linger_s=0.02 + cluster.engines / 1000,
            start_s=cluster.start_s * draw.uniform(0.8, 1.2),
            slowness=slowness.get(number, 1.0),
            life=lives(number),
            tick_s=cluster.tick_s,
        )
        for number in range(cluster.engines)
    ]


class MeteredLedger(VoteLedger):
    """The ledger, and the tokens of the votes that it has taken."""

    tokens = 0

    def add_votes(self, position: int, votes: list[Vote]) -> int:
        self.tokens += sum(vote.tokens for vote in votes)
        return super().add_votes(position, votes)


class Timeline:
    """What the engines did, looked at again and again.

    Args:
        all_begun: whether there is no question left to begin.
    """

    def __init__(
        self,
        now: Callable[[], float],
        engines: list[SimulatedEngine],
        ledger: MeteredLedger,
        all_begun: Callable[[], bool],
        every_s: float = 1.0,
    ):
        self._now, self._engines, self._ledger, self._all_begun = now, engines, ledger, all_begun
        self._every_s, self._next = every_s, 0.0
        self._times: list[float] = []
        self._tokens: list[int] = []
        self._capacity: list[float] = []
        self._occupancy: list[bytes] = []  # an engine's share of its batch, in 1/255
        self._begun = 0  # looks before the last question was begun

    def look(self) -> bool:
        """Never a reason to stop; `collect_votes` asks for one at each turn."""
        if self._now() >= self._next:
            self._next = self._now() + self._every_s
            self._record()
        return False

    def end(self) -> None:
        self._record()

    @property
    def seconds(self) -> float:
        return self._times[-1]

    @property
    def capacity(self) -> float:
        return self._capacity[-1]

    def figures(self) -> dict:
        failures = Counter(kind for engine in self._engines for _, kind in engine.failures)
        return {
            "steady_utilisation": self._steady(),
            "busy": round(sum(engine.generated for engine in self._engines) / self.capacity, 4),
            "died": failures["died"],
            "wedged": failures["wedged"],
            "stragglers": sum(engine.slowness > 1 for engine in self._engines),
            "tail_s": round(self.seconds - self._times[min(self._begun, len(self._times) - 1)], 1),
        }

    def rows(self) -> dict:
        """For the plot: at each time, tokens in the ledger, capacity so far, and occupancy in 1/255 by engine."""
        return {
            "time_s": [round(time, 1) for time in self._times],
            "tokens": self._tokens,
            "capacity": [round(capacity) for capacity in self._capacity],
            "occupancy": self._occupancy,
            "failures": [
                (round(time, 1), number, kind)
                for number, engine in enumerate(self._engines)
                for time, kind in engine.failures
            ],
        }

    def _steady(self) -> float | None:
        first, last = len(self._times) // 10, self._begun - 1
        if last <= first:
            return None
        capacity = self._capacity[last] - self._capacity[first]
        return round((self._tokens[last] - self._tokens[first]) / capacity, 4) if capacity else None

    def _record(self) -> None:
        now = self._now()
        self._begun += not self._all_begun()
        self._times.append(now)
        self._tokens.append(self._ledger.tokens)
        self._capacity.append(sum(engine.capacity(now) for engine in self._engines))
        self._occupancy.append(bytes(255 * engine.running // engine.speed.batch for engine in self._engines))


def audit(folder: Path, config: Config, answers: DrawnAnswers) -> dict:
    """Votes lost and doubled, labels unlike full voting's, by the files in `folder`; and how many votes and tokens."""
    found = Counter(lost=0, doubled=0, labels_unlike_full_voting=0, votes=0, tokens=0)
    labels = (Label.model_validate(row) for row in read_jsonl(VotingPaths(folder).labels))
    votes: dict[str, list[tuple[int, int]]] = {}
    for position, row in enumerate(read_jsonl(folder / "questions.jsonl")):
        if position % SEGMENT_QUESTIONS == 0:
            votes = _votes(VotingPaths(folder).votes, find_segment(position))
        question = Question.model_validate(row)
        found.update(_audited(question, next(labels, None), votes.get(question.id, []), config, answers))
    found["doubled"] += sum(1 for _ in labels)
    return dict(found)


def _votes(folder: Path, segment: int) -> dict[str, list[tuple[int, int]]]:
    """Question -> (seed, tokens) of its votes on disk."""
    found = defaultdict(list)
    if segment in list_segments(folder):
        for vote in read_votes(folder, segment):
            found[vote.question_id].append((vote.seed, vote.tokens))
    return found


def _audited(
    question: Question, label: Label | None, votes: list[tuple[int, int]], config: Config, answers: DrawnAnswers
) -> dict:
    seeds = {seed for seed, _ in votes}
    found = {"votes": len(votes), "tokens": sum(tokens for _, tokens in votes), "doubled": len(votes) - len(seeds)}
    if label is None or label.question.id != question.id or label.outcome == "quarantined":
        return found | {"lost": config.voting.samples - len(seeds), "labels_unlike_full_voting": 1}
    full = full_vote(question, config, answers)
    same = (label.outcome, label.answer, label.kept) == (full.outcome, full.answer, full.kept)
    return found | {"lost": max(0, label.taken - len(seeds)), "labels_unlike_full_voting": int(not same)}


def full_vote(question: Question, config: Config, answers: DrawnAnswers) -> Label:
    """The label from all K votes."""
    tally = Tally()
    for seed in derive_seeds(question.id, config.runtime.random_seed, config.voting.samples):
        tally = tally.add(answers.draw(question.id, question.options, seed).answer)
    return label_question(question, tally, config.voting, tokens=0, truncated=0, policy=POLICY, sampling=SAMPLING)
