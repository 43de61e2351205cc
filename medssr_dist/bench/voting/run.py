"""`medssr bench voting`: the pool's speed, what adaptive voting saves, the coordinator alone, a cluster, the stream.

Pool against vLLM and adaptive against full voting run on a real engine (`engine.py`); the coordinator alone, in
processes of its own, on engines that answer at once (`coordinator.py`); 64 and 512 engines under a virtual clock
(`simulation_cluster.py`); stream against sequential on engines and a trainer that take real time (`stream_speed.py`).
Code under test is the real one everywhere; what is simulated is named so.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from medssr_dist.bench.result_file import write_result
from medssr_dist.bench.voting.replay import simulated_curve
from medssr_dist.bench.voting.report import draw_voting_plots, format_voting_table
from medssr_dist.bench.voting.simulation_cluster import Cluster, simulate, write_questions
from medssr_dist.bench.voting.stream_speed import stream_against_sequential

_MEMORY_FOLDER, _MEMORY_FOLDER_BYTES = Path("/dev/shm"), 4 * 2**30


@dataclass(frozen=True)
class VotingScale:
    """How much is measured.

    Memory runs take `memory_samples` votes a question, all of them, so that 10^6 questions end in minutes, and have so
    few engines that also 10^4 questions are more than are under way at once.
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
    """Measure, write `json_path` and plots beside it, print a table of aims and what was seen."""
    from medssr_dist.bench.voting import engine

    json_path, scale = Path(json_path), QUICK if quick else FULL
    json_path.parent.mkdir(parents=True, exist_ok=True)
    figures = engine.measure_real_engine(
        json_path.parent, scale.pool_questions, scale.pool_rounds, scale.demo_questions
    )
    figures |= measure_without_engine(json_path.parent, scale) | {"quick": quick, "scale": asdict(scale)}
    # Thousands of numbers a second: in the plot alone.
    occupancy = {name: cluster["timeline"].pop("occupancy") for name, cluster in figures["clusters"].items()}
    write_result(json_path, figures)
    draw_voting_plots(figures, occupancy, json_path)
    print(format_voting_table(figures))


def measure_without_engine(folder: Path, scale: VotingScale) -> dict:
    """All that needs no vLLM. Ledgers go to temporary folders in `folder`, which should be on a real disk."""
    figures = {}
    with tempfile.TemporaryDirectory(dir=folder, prefix=".bench") as scratch:
        figures |= {"adaptive_simulated": simulated_curve(Path(scratch), scale.curve_questions, 16)}
    figures |= _coordinator(folder, scale) | _clusters(folder, scale)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".bench") as scratch:
        return figures | stream_against_sequential(Path(scratch), scale.stream_s)


def _coordinator(folder: Path, scale: VotingScale) -> dict:
    engines = scale.coordinator_engines
    rounds = {
        mode: [_alone(folder, scale.coordinator_questions, 16, mode, engines) for _ in range(scale.coordinator_rounds)]
        for mode in ("lossless", "never")
    }
    rates = {mode: statistics.median(each["votes_per_s"] for each in found) for mode, found in rounds.items()}
    few, many = (
        _alone(folder, count, scale.memory_samples, "never", scale.memory_engines) for count in scale.memory_questions
    )
    return {
        "coordinator_votes_per_s": rates["lossless"],
        "coordinator_votes_per_s_full": rates["never"],
        "coordinator_peak_mb_10k": few["peak_mb"],
        "coordinator_peak_mb_1m": many["peak_mb"],
        "coordinator": {
            "engines": engines,
            "memory_engines": scale.memory_engines,
            "rounds": rounds,
            "memory": [few, many],
        },
    }


def _alone(folder: Path, questions: int, samples: int, adaptive: str, engines: int) -> dict:
    """The coordinator in a fresh process. Raises RuntimeError with its error output when it fails."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".bench") as scratch:
        file = Path(scratch) / "questions.jsonl"
        write_questions(file, questions)
        options = ["--samples", samples, "--adaptive", adaptive, "--engines", engines]
        command = [sys.executable, "-m", "medssr_dist.bench.voting.coordinator", file, scratch, *options]
        done = subprocess.run([*map(str, command)], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the coordinator failed on {questions:,} questions")
    return json.loads(done.stdout.strip().splitlines()[-1])


def _clusters(folder: Path, scale: VotingScale) -> dict:
    """Figures of each cluster, by the names of 64 and 512 engines."""
    figures, clusters = {}, {}
    for name, cluster in zip(("sim64", "sim512"), scale.clusters, strict=True):
        with tempfile.TemporaryDirectory(dir=_quick_folder(folder), prefix=".bench") as scratch:
            clusters[name] = found = simulate(cluster, Path(scratch))
        figures |= {f"{name}_{key}": found[key] for key in ("utilisation", "steady_utilisation", "lost", "doubled")}
    return figures | {"clusters": clusters}


def _quick_folder(folder: Path) -> Path:
    """In memory where there is room: a simulated second has hundreds of commits, whose syncs take none of it."""
    if os.access(_MEMORY_FOLDER, os.W_OK) and shutil.disk_usage(_MEMORY_FOLDER).free > _MEMORY_FOLDER_BYTES:
        return _MEMORY_FOLDER
    return folder
