"""The figures of `medssr bench voting`, as its parts measure them and as its result file holds them."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from typing import Any

from medssr_dist.bench.voting.simulation_cluster import SimulatedRun


@dataclass(frozen=True)
class PoolSpeed:
    """The engine pool against vLLM itself, on the same requests.

    >>> PoolSpeed(0.968, "embedded:smollm2-135m", 20, 8, 32, {"vllm": [147.4, 141.4], "pool": [145.0, 134.6]})

    Attributes:
        ratio: median over rounds of the pool's tokens/s / vLLM's.
        samples: for each question. max_tokens: of a sample.
        tokens_per_s: "vllm" and "pool" -> the rate of each round.
    """

    ratio: float
    model: str
    questions: int
    samples: int
    max_tokens: int
    tokens_per_s: dict[str, list[float]]


@dataclass(frozen=True)
class AdaptiveCase:
    """What one mode of adaptive voting saves against full voting with the same seeds.

    >>> AdaptiveCase(0.9865, 0.9782, 0.9209, 0.9155, True, True, votes=374, wasted_samples=3)

    Attributes:
        token_ratio: tokens of all samples that were requested / tokens of full voting.
        token_ratio_of_votes: the same for the samples that became votes.
        token_ratio_told_by_engine: the same for the tokens that the engine reports.
        least_possible_ratio: the same for the cheapest votes that decide each label, chosen with hindsight.
        labels_identical, votes_identical: to those of full voting.
        wasted_samples: samples that were requested and not needed.
    """

    token_ratio: float
    token_ratio_of_votes: float
    token_ratio_told_by_engine: float
    least_possible_ratio: float
    labels_identical: bool
    votes_identical: bool
    votes: int
    wasted_samples: int


@dataclass(frozen=True)
class AdaptiveVoting:
    """Adaptive against full voting on a real engine.

    `cases`: "{mode}_{confidence}" -> its result, such as "lossless_requested"; share_of_right_votes: None where HPO
    gives no answer. An example is the key `adaptive` of benchmarks/results/voting_cpu.json.
    """

    model: str
    dtype: str
    questions: int
    samples: int
    threshold: float
    tokens_of_full_voting: int
    share_of_right_votes: float | None
    cases: dict[str, AdaptiveCase]


@dataclass(frozen=True)
class SavingsCurve:
    """Tokens of adaptive over full voting, by the accuracy of a simulated policy.

    >>> SavingsCurve(questions=500, samples=16, accuracy=[0.3, 0.95], lossless=[0.98, 0.58], kept=[0.9, 0.57])
    """

    questions: int
    samples: int
    accuracy: list[float]
    lossless: list[float]
    kept: list[float]
    simulated: bool = True


@dataclass(frozen=True)
class CoordinatorRun:
    """One vote by the coordinator alone, on engines that answer at once; `peak_mb` is its peak memory in MiB.

    >>> CoordinatorRun(questions=20000, votes=101376, seconds=8.1, cpu_s=9.8, votes_per_s=12516, peak_mb=210.4)
    """

    questions: int
    votes: int
    seconds: float
    cpu_s: float
    votes_per_s: int
    peak_mb: float


@dataclass(frozen=True)
class CoordinatorSpeed:
    """The coordinator alone: `rounds` by mode "lossless" and "never", `memory` with few and with many questions.

    An example is the key `coordinator` of benchmarks/results/voting_cpu.json.
    """

    engines: int
    memory_engines: int
    rounds: dict[str, list[CoordinatorRun]]
    memory: tuple[CoordinatorRun, CoordinatorRun]

    def median_rate(self, mode: str) -> float:
        """Return the median over rounds of votes/s in `mode`."""
        return statistics.median(run.votes_per_s for run in self.rounds[mode])


@dataclass(frozen=True)
class StreamSpeed:
    """Stage 1 streamed, while the vote runs, against stage 1 after the vote; seconds.

    >>> StreamSpeed(0.55, 941, 118, vote_s=25.1, train_s=25.4, stream_s=27.8, vote_beside_training_s=25.9, buffer=64)

    Attributes:
        wall_ratio: stream_s / (vote_s + train_s).
        kept: labels that were kept and trained on. steps: of the trainer.
        vote_beside_training_s: of the vote in the stream.
        buffer: labels that the vote may be ahead of the trainer.
    """

    wall_ratio: float
    kept: int
    steps: int
    vote_s: float
    train_s: float
    stream_s: float
    vote_beside_training_s: float
    buffer: int


@dataclass(frozen=True)
class VotingFigures:
    """All figures of one run of the benchmark.

    benchmarks/results/voting_cpu.json is an example of `to_json`. `clusters`: "sim64" and "sim512" -> the simulated
    run; the names stay so with --quick, whose clusters are smaller. `scale`: the sizes that were measured, as a dict.
    """

    pool: PoolSpeed
    adaptive: AdaptiveVoting
    adaptive_simulated: SavingsCurve
    coordinator: CoordinatorSpeed
    clusters: dict[str, SimulatedRun]
    stream: StreamSpeed
    quick: bool
    scale: dict[str, Any]

    @property
    def labels_identical(self) -> bool:
        """Whether every adaptive case has the labels of full voting."""
        return all(case.labels_identical for case in self.adaptive.cases.values())

    def to_json(self) -> dict[str, Any]:
        """Return the keys of the result file: what the aims judge at the top, and the details of each part."""
        lossless, kept = (self.adaptive.cases[f"{mode}_requested"] for mode in ("lossless", "kept"))
        pool, coordinator, stream = asdict(self.pool), asdict(self.coordinator), asdict(self.stream)
        few, many = self.coordinator.memory
        figures = {
            "pool_ratio_to_vllm": pool.pop("ratio"),
            "pool": pool,
            "adaptive_token_ratio": lossless.token_ratio,
            "adaptive_kept_token_ratio": kept.token_ratio,
            "adaptive_labels_identical": self.labels_identical,
            "adaptive_least_possible_ratio": lossless.least_possible_ratio,
            "adaptive": asdict(self.adaptive),
            "adaptive_simulated": asdict(self.adaptive_simulated),
            "coordinator_votes_per_s": self.coordinator.median_rate("lossless"),
            "coordinator_votes_per_s_full": self.coordinator.median_rate("never"),
            "coordinator_peak_mb_10k": few.peak_mb,
            "coordinator_peak_mb_1m": many.peak_mb,
            "coordinator": coordinator,
        }
        for name, run in self.clusters.items():
            figures |= {f"{name}_utilisation": run.utilisation, f"{name}_steady_utilisation": run.steady_utilisation}
            figures |= {f"{name}_lost": run.lost, f"{name}_doubled": run.doubled}
        return figures | {
            "clusters": {name: run.to_json() for name, run in self.clusters.items()},
            "stream_wall_ratio": stream.pop("wall_ratio"),
            "stream": stream,
            "quick": self.quick,
            "scale": self.scale,
        }
