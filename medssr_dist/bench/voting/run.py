"""`medssr bench voting`: the pool's speed, what adaptive voting saves, the coordinator alone, a cluster, the stream.

Pool against vLLM and adaptive against full voting run on a real engine (`engine.py`). The coordinator runs alone, in
processes of its own, on engines that answer at once (`coordinator.py`). 64 and 512 engines run under a virtual clock
(`simulation_cluster.py`). Streaming against sequential runs on engines and a trainer that take real time
(`stream_speed.py`). The code under test is the real one in all parts; what is simulated is named so.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from medssr_dist.bench.result_file import write_result
from medssr_dist.bench.voting.replay import simulate_savings
from medssr_dist.bench.voting.report import draw_voting_plots, format_voting_table
from medssr_dist.bench.voting.simulated_vote import write_questions
from medssr_dist.bench.voting.simulation_cluster import Cluster, SimulatedRun, simulate_cluster
from medssr_dist.bench.voting.stream_speed import measure_stream_speed
from medssr_dist.bench.voting.voting_figures import CoordinatorRun, CoordinatorSpeed, VotingFigures

_MEMORY_FOLDER, _MEMORY_FOLDER_BYTES = Path("/dev/shm"), 4 * 2**30


@dataclass(frozen=True)
class VotingScale:
    """The sizes that are measured.

    The memory runs take all `memory_samples` votes of each question: that few, so that 10^6 questions take minutes.
    They have so few engines that 10^4 questions are more than are in progress at a time.
    """

    pool_questions: int = 20
    pool_rounds: int = 2
    demo_questions: int = 24
    curve_questions: int = 500
    coordinator_rounds: int = 3
    coordinator_questions: int = 20_000
    coordinator_engines: int = 512
    memory_questions: tuple[int, int] = (10_000, 1_000_000)
    memory_samples: int = 2
    memory_engines: int = 64
    clusters: tuple[Cluster, ...] = (
        Cluster(engines=64, questions=100_000),
        Cluster(engines=512, questions=800_000),
    )
    stream_s: float = 25.0


FULL = VotingScale()
QUICK = VotingScale(
    pool_questions=8,
    pool_rounds=1,
    demo_questions=4,
    curve_questions=50,
    coordinator_rounds=1,
    coordinator_questions=2_000,
    coordinator_engines=8,
    memory_questions=(500, 2_000),
    memory_engines=2,
    stream_s=5.0,
    clusters=(Cluster(engines=4, questions=400, mtbf_s=300.0), Cluster(engines=8, questions=800, mtbf_s=300.0)),
)


def bench_voting(json_path: Path, quick: bool = False) -> None:
    """Run the benchmark; write `json_path` and plots next to it; print the table of aims and results."""
    from medssr_dist.bench.voting import engine

    json_path, scale = Path(json_path), QUICK if quick else FULL
    folder = json_path.parent
    folder.mkdir(parents=True, exist_ok=True)
    pool = engine.measure_pool_speed(scale.pool_questions, scale.pool_rounds)
    with _scratch_folder(folder) as scratch:
        adaptive = engine.measure_adaptive_voting(scratch, scale.demo_questions)
    with _scratch_folder(folder) as scratch:
        savings = simulate_savings(scratch, scale.curve_questions, 16)
    coordinator, clusters = _measure_coordinator(folder, scale), _simulate_clusters(folder, scale)
    with _scratch_folder(folder) as scratch:
        stream = measure_stream_speed(scratch, scale.stream_s)
    figures = VotingFigures(pool, adaptive, savings, coordinator, clusters, stream, quick, asdict(scale))
    write_result(json_path, figures.to_json())
    draw_voting_plots(figures, json_path)
    print(format_voting_table(figures))


@contextmanager
def _scratch_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder in `folder`, which should be on a real disk: ledgers are synced."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".bench") as scratch:
        yield Path(scratch)


def _measure_coordinator(folder: Path, scale: VotingScale) -> CoordinatorSpeed:
    engines, questions = scale.coordinator_engines, scale.coordinator_questions
    rounds = {
        mode: [_run_coordinator(folder, questions, 16, mode, engines) for _ in range(scale.coordinator_rounds)]
        for mode in ("lossless", "never")
    }
    few, many = (
        _run_coordinator(folder, count, scale.memory_samples, "never", scale.memory_engines)
        for count in scale.memory_questions
    )
    return CoordinatorSpeed(engines, scale.memory_engines, rounds, (few, many))


def _run_coordinator(folder: Path, questions: int, samples: int, adaptive: str, engines: int) -> CoordinatorRun:
    """Run the coordinator in a fresh process. Raises RuntimeError if it fails."""
    with _scratch_folder(folder) as scratch:
        file = scratch / "questions.jsonl"
        write_questions(file, questions)
        options = ["--samples", samples, "--adaptive", adaptive, "--engines", engines]
        command = [sys.executable, "-m", "medssr_dist.bench.voting.coordinator", file, scratch, *options]
        done = subprocess.run([*map(str, command)], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the coordinator failed on {questions:,} questions")
    return CoordinatorRun(**json.loads(done.stdout.strip().splitlines()[-1]))


def _simulate_clusters(folder: Path, scale: VotingScale) -> dict[str, SimulatedRun]:
    """Return "sim64" and "sim512" -> the run of the smaller and of the larger cluster."""
    runs = {}
    for name, cluster in zip(("sim64", "sim512"), scale.clusters, strict=True):
        with _scratch_folder(_memory_folder(folder)) as scratch:
            runs[name] = simulate_cluster(cluster, scratch)
    return runs


def _memory_folder(folder: Path) -> Path:
    """Return a folder in memory if it has room, else `folder`.

    A simulated second has hundreds of commits. Their syncs to a disk would take most of the real time.
    """
    if os.access(_MEMORY_FOLDER, os.W_OK) and shutil.disk_usage(_MEMORY_FOLDER).free > _MEMORY_FOLDER_BYTES:
        return _MEMORY_FOLDER
    return folder
