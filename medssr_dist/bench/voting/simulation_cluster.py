"""A long vote on 64 and 512 simulated engines that die, hang and slow down: utilisation, and the audit of its votes.

Pool, scheduler, ledger and question file are the real ones. Engines and clock are simulated (`simulation.py`).

Utilisation = tokens of the votes in the ledger / tokens that the engines could have generated with a full batch while
they were up, over the whole run. Ramp-up, tail, and lost, aborted and repeated samples all reduce it. An engine is up
from the end of a start until the pool stops it; a hanging engine is up until the pool notices. `steady_utilisation` is
the same from a tenth of the run until the last question was begun.

Lost and doubled votes are counted in the ledger's files, compared with what full voting would have given. A vote is
lost if a label counts it, or a question without a label needs it, and it is not on disk. It is doubled if its key
occurs twice.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from medssr_dist.bench.voting.ledger_audit import Audit, audit_ledger
from medssr_dist.bench.voting.simulated_vote import (
    POLICY,
    SAMPLING,
    PlainPrompts,
    make_simulated_config,
    write_questions,
)
from medssr_dist.bench.voting.simulation import DrawnAnswers, Failure, SimulatedEngine, Speed, VirtualLoop
from medssr_dist.bench.voting.timeline import MeteredLedger, Timeline, TimelineFigures, TimelineRows
from medssr_dist.inference.pool import EnginePool
from medssr_dist.run.stream import QuestionFeed
from medssr_dist.voting.vote_scheduler import VoteScheduler, collect_votes


@dataclass(frozen=True)
class Cluster:
    """What is simulated.

    >>> Cluster(engines=64, questions=100_000)

    `mtbf_s`: mean time between an engine's failures. Meta reports 419 interruptions in 54 days on 16,384 H100s
    (arXiv 2407.21783, section 3.3.4), one in 50,000 hours of a GPU; here failures are thousands of times as frequent.
    """

    engines: int
    questions: int
    samples: int = 16
    adaptive: str = "lossless"
    window: int = 262144
    in_flight: int = 256  # the same as `speed.batch`: the pool gives vLLM this limit too
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


@dataclass(frozen=True)
class SimulatedRun:
    """The result of one simulated cluster. `wall_s`: real seconds; coordinator_load: CPU s for a simulated second.

    `coordinator_load` includes the simulated engines. An example of `to_json` is the key `clusters.sim64` of
    benchmarks/results/voting_cpu.json.
    """

    cluster: Cluster
    simulated_s: float
    wall_s: float
    coordinator_load: float
    utilisation: float
    engines: TimelineFigures
    audit: Audit
    timeline: TimelineRows

    @property
    def steady_utilisation(self) -> float | None:
        return self.engines.steady_utilisation

    @property
    def lost(self) -> int:
        return self.audit.lost

    @property
    def doubled(self) -> int:
        return self.audit.doubled

    def to_json(self) -> dict[str, Any]:
        """Return the keys of the result file."""
        timeline, counts = asdict(self.timeline), asdict(self.audit)
        del timeline["occupancy"], counts["tokens"]
        figures = {
            "cluster": asdict(self.cluster),
            "simulated_s": self.simulated_s,
            "wall_s": self.wall_s,
            "coordinator_load": self.coordinator_load,
        }
        return figures | asdict(self.engines) | {"utilisation": self.utilisation} | counts | {"timeline": timeline}


def simulate_cluster(cluster: Cluster, folder: Path) -> SimulatedRun:
    """Run the vote in `folder`, audit its ledger, and return the result."""
    questions = folder / "questions.jsonl"
    write_questions(questions, cluster.questions)
    config = make_simulated_config(
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
        scheduler = VoteScheduler(config, feed, ledger, PlainPrompts())
        timeline = Timeline(loop.time, engines, ledger, lambda: feed.given == cluster.questions)
        collect_votes(pool, scheduler, ledger, bar, timeline.sample)
        timeline.end()
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    audit = audit_ledger(folder, config, cluster.answers)
    return SimulatedRun(
        cluster=cluster,
        simulated_s=round(timeline.seconds, 1),
        wall_s=round(seconds, 1),
        coordinator_load=round(cpu / timeline.seconds, 2),
        utilisation=round(audit.tokens / timeline.capacity, 4),
        engines=timeline.summarise(),
        audit=audit,
        timeline=timeline.list_rows(),
    )


def build_engines(cluster: Cluster) -> list[SimulatedEngine]:
    """Return the engines of `cluster`. The stragglers, one of them the slowest, are spread over them at random."""
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
