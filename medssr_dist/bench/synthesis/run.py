"""`medssr bench synthesis`: is our client near the limit and faster than others, and does its memory stay flat?

Clients run in turn, round after round, each in a fresh process, against a server in its own process:
- `ours`: plan, budget, dispatcher, journal on disk; `ours_judged`: the same with every check on every reply;
- `bare` and `bare_uvloop`: a bare aiohttp loop on asyncio and on uvloop. The second is the limit that ours, which runs
  on uvloop, is compared with;
- `openai`: AsyncOpenAI, on uvloop;
- `distilabel`, where it can be imported.
Rates are measured after a warm-up, in which a client that searches for its concurrency finds it.

`peers_python` names the Python of another environment for distilabel, whose pinned versions conflict with ours:

    python -m venv peers && peers/bin/pip install "distilabel[openai]==1.5.3" requests
    medssr bench synthesis --json synthesis.json --peers-python peers/bin/python
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from medssr_dist.bench.result_file import write_result
from medssr_dist.bench.synthesis import peers
from medssr_dist.bench.synthesis.peers import Measurement
from medssr_dist.bench.synthesis.reply_server import read_refused_share, run_reply_server
from medssr_dist.bench.synthesis.report import (
    ClientCell,
    Goodput,
    SynthesisFigures,
    SynthesisRatios,
    draw_synthesis_plot,
    format_synthesis_table,
)

OURS, LIMIT = "ours", "bare_uvloop"
CONTESTANTS = (OURS, "ours_judged", LIMIT, "bare", "openai", "distilabel")
CELLS = ((0, 64), (0, 512), (200, 64), (200, 512))  # latency in ms, concurrency
_REFUSE_SHARE = 0.3
_REFUSING_LATENCY_MS, _REFUSED_CONCURRENCY = 50, 512  # would be 10,240 requests/s
_MB_CONCURRENCY = 64


@dataclass(frozen=True)
class SynthesisScale:
    """The sizes that are measured: durations in seconds, and counts."""

    rounds: int = 3
    warmup_s: float = 5
    seconds: float = 8
    memory_counts: tuple[int, int] = (10_000, 1_000_000)
    rate_limit: int = 300  # replies a second, of the server that refuses
    goodput_warmup_s: float = 15
    goodput_s: float = 30
    benchmark_items: int = 12_000
    candidates: int = 50_000
    passages: int = 125_000
    entities: int = 10_000


FULL = SynthesisScale()
QUICK = SynthesisScale(
    rounds=1,
    warmup_s=2,
    seconds=2,
    memory_counts=(2_000, 20_000),
    goodput_warmup_s=3,
    goodput_s=4,
    benchmark_items=2_000,
    candidates=10_000,
    passages=12_500,
    entities=1_000,
)


class CellKey(NamedTuple):
    """One cell of the matrix of measurements; latency in ms."""

    contestant: str
    latency_ms: int
    concurrency: int


Matrix = dict[CellKey, list[Measurement]]  # the measurement of each round


def bench_synthesis(json_path: Path, quick: bool = False, peers_python: Path | None = None) -> None:
    """Run the benchmark; write `json_path` and a plot next to it; print the table of aims and results."""
    json_path = Path(json_path)
    figures = measure_synthesis(json_path.parent, QUICK if quick else FULL, peers_python, quick=quick)
    write_result(json_path, figures.to_json())
    draw_synthesis_plot(figures, json_path.with_suffix(".png"))
    print(format_synthesis_table(figures))


def measure_synthesis(
    folder: Path,
    scale: SynthesisScale,
    peers_python: Path | None = None,
    cells: tuple[tuple[int, int], ...] = CELLS,
    contestants: tuple[str, ...] = CONTESTANTS,
    quick: bool = False,
) -> SynthesisFigures:
    """Return all figures. Journals go to temporary folders in `folder`, which should be on a real disk.

    Args:
        peers_python: the Python that runs distilabel.
        cells: (latency in ms, concurrency) of each cell.
        contestants: names of the clients. quick: noted in the figures.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pythons = {"distilabel": str(peers_python or sys.executable)}
    names = [name for name in contestants if name != "distilabel" or _imports_distilabel(pythons[name])]
    total = scale.rounds * len(cells) * len(names) + 6  # two each of memory, goodput and local work
    with tqdm(total=total, desc="bench synthesis", unit="measurement") as bar:
        matrix = _measure_matrix(folder, scale, pythons, cells, names, bar)
        few_mb, many_mb = _measure_memory(folder, scale, bar)
        goodput = _measure_goodput(folder, scale, bar)
        checked_per_s, retrieval_s = _measure_local_work(scale, bar)
    return SynthesisFigures(
        scale=asdict(scale),
        contestants=names,
        prompt_chars=peers.PROMPT_CHARS,
        ratios=compute_ratios(matrix, names),
        peak_mb_10k=few_mb,
        peak_mb_1m=many_mb,
        memory_requests=scale.memory_counts,
        goodput=goodput,
        decontamination_per_s=checked_per_s,
        retrieval_10k_entities_s=retrieval_s,
        cells=[_summarise(key, rounds) for key, rounds in matrix.items()],
        quick=quick,
    )


def _imports_distilabel(python: str) -> bool:
    """Return whether that Python has distilabel. Without it, its figures are left out and the table notes it."""
    return subprocess.run([python, "-c", "import distilabel.models.llms"], capture_output=True).returncode == 0


def _measure_matrix(
    folder: Path,
    scale: SynthesisScale,
    pythons: dict[str, str],
    cells: tuple[tuple[int, int], ...],
    names: list[str],
    bar: tqdm,
) -> Matrix:
    found: Matrix = defaultdict(list)
    window = ("--warmup-s", scale.warmup_s, "--seconds", scale.seconds)
    for _ in range(scale.rounds):
        for latency, concurrency in cells:
            with run_reply_server(latency_ms=latency) as url:
                for name in names:
                    bar.set_postfix_str(f"{name}, {concurrency} x {latency} ms")
                    python = pythons.get(name, sys.executable)
                    measurement = _run_client(name, python, url, folder, concurrency, window)
                    found[CellKey(name, latency, concurrency)].append(measurement)
                    bar.update()
    return found


def _run_client(
    name: str, python: str, url: str, folder: Path, concurrency: int, options: tuple[str | float, ...]
) -> Measurement:
    """Return one measurement, made in a fresh process."""
    common = ["--concurrency", str(concurrency), *map(str, options)]
    if not name.startswith(OURS):
        return _run_measurement([python, peers.__file__, name, url, *common])
    judge = ["--judge"] if name == "ours_judged" else []
    with tempfile.TemporaryDirectory(dir=folder, prefix=".bench") as journal:
        return _run_measurement([python, "-m", "medssr_dist.bench.synthesis.ours", url, journal, *common, *judge])


def _run_measurement(command: list[str]) -> Measurement:
    """Run `command` and parse its last line. Raises RuntimeError with its error output if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return Measurement(**json.loads(done.stdout.strip().splitlines()[-1]))


def _measure_memory(folder: Path, scale: SynthesisScale, bar: tqdm) -> list[float]:
    """Return the peak memory of our client after few and after many requests, in MiB."""
    peaks = []
    for count in scale.memory_counts:
        bar.set_postfix_str(f"memory of {count:,} requests")
        with run_reply_server() as url:
            found = _run_client(OURS, sys.executable, url, folder, _MB_CONCURRENCY, ("--count", count))
        peaks.append(found.peak_mb)
        bar.update()
    return peaks


def _measure_goodput(folder: Path, scale: SynthesisScale, bar: tqdm) -> dict[str, Goodput]:
    """Return the goodput with load over the server's limit, and with 30% of the requests refused at random as well."""
    cases = {}
    for name, refused in (("over_limit", 0.0), ("random_429", _REFUSE_SHARE)):
        bar.set_postfix_str(f"goodput, {name}")
        window = ("--warmup-s", scale.goodput_warmup_s, "--seconds", scale.goodput_s)
        with run_reply_server(_REFUSING_LATENCY_MS, scale.rate_limit, refused) as url:
            rate = _run_client(OURS, sys.executable, url, folder, _REFUSED_CONCURRENCY, window).requests_per_s
            cases[name] = Goodput(round(rate / scale.rate_limit, 3), read_refused_share(url))
        bar.update()
    return cases


def _measure_local_work(scale: SynthesisScale, bar: tqdm) -> tuple[float, float]:
    """Return (questions/s of decontamination, seconds of retrieval)."""
    from medssr_dist.bench.synthesis.local import measure_decontamination, measure_retrieval

    bar.set_postfix_str("decontamination")
    rate = measure_decontamination(scale.benchmark_items, scale.candidates)
    bar.update()
    bar.set_postfix_str("retrieval")
    seconds = measure_retrieval(scale.passages, scale.entities)
    bar.update()
    return rate, seconds


def compute_ratios(matrix: Matrix, names: list[str]) -> SynthesisRatios:
    """Return the ratios of our client to the others; SynthesisRatios describes them."""

    def ratio(name: str, other: str, latency: int) -> float | None:
        found = [
            _median_ratio(matrix[CellKey(name, latency, key.concurrency)], matrix[key._replace(contestant=other)])
            for key in [*matrix]
            if name in names and other in names and key.latency_ms == latency
        ]
        return min(filter(None, found), default=None)

    latencies = {key.latency_ms for key in matrix}
    slow = max(matrix, key=lambda key: (key.contestant == OURS, key.latency_ms * key.concurrency))
    rates = [found.requests_per_s for found in matrix[slow]]
    ideal = 1000 * slow.concurrency / slow.latency_ms if slow.latency_ms else None
    return SynthesisRatios(
        ratio_to_bare_loop=ratio(OURS, LIMIT, min(latencies)),
        ratio_to_async_openai=ratio(OURS, "openai", min(latencies)),
        ratio_to_distilabel=ratio(OURS, "distilabel", min(latencies)),
        ratio_judged_to_bare_loop=ratio("ours_judged", LIMIT, min(latencies)),
        share_of_ideal_512x200ms=round(statistics.median(rates) / ideal, 3) if ideal else None,
        share_of_bare_512x200ms=ratio(OURS, LIMIT, max(latencies)),
    )


def _median_ratio(ours: list[Measurement], theirs: list[Measurement]) -> float | None:
    """Return the median over rounds in which the other client had a reply; AsyncOpenAI can be too slow for one."""
    pairs = [(one.requests_per_s, other.requests_per_s) for one, other in zip(ours, theirs, strict=True)]
    ratios = [one / other for one, other in pairs if other]
    return round(statistics.median(ratios), 3) if ratios else None


def _summarise(key: CellKey, rounds: list[Measurement]) -> ClientCell:
    """Return the medians over rounds of one cell."""

    def median(name: str) -> float | None:
        values = [getattr(found, name) for found in rounds if getattr(found, name) is not None]
        return round(statistics.median(values), 1) if values else None

    return ClientCell(
        *key,
        requests_per_s=median("requests_per_s"),
        cpu_us_per_request=median("cpu_us_per_request"),
        p50_ms=median("p50_ms"),
        p99_ms=median("p99_ms"),
        peak_mb=median("peak_mb"),
        rounds=rounds,
    )
