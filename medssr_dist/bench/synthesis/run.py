"""`medssr bench synthesis`: is the client near the limit, is it far ahead of others, does its memory stay flat?

Contestants, each in a fresh process, in turn, round after round, against a server in a process of its own:
ours (plan, budget, dispatcher, journal on disk), the same with every check on every reply (`ours_judged`), a
bare aiohttp loop on asyncio and on uvloop (the limit; ours runs on uvloop, so that is the one it is compared
with), AsyncOpenAI (on uvloop too), and distilabel where it imports. Rates leave the warm-up out: a client that
finds its concurrency by trying is measured once it has found it.

`peers_python` names another environment's Python for distilabel, whose pins do not go with ours:

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

from tqdm import tqdm

from medssr_dist.bench.result_file import write_result
from medssr_dist.bench.synthesis import peers
from medssr_dist.bench.synthesis.reply_server import refused_share, reply_server
from medssr_dist.bench.synthesis.report import draw_synthesis_plot, format_synthesis_table

OURS, LIMIT = "ours", "bare_uvloop"
CONTESTANTS = (OURS, "ours_judged", LIMIT, "bare", "openai", "distilabel")
CELLS = ((0, 64), (0, 512), (200, 64), (200, 512))  # latency in ms, concurrency
_REFUSE_SHARE = 0.3
_REFUSING_LATENCY_MS, _REFUSED_CONCURRENCY = 50, 512  # would be 10,240 requests/s
_MB_CONCURRENCY = 64


@dataclass(frozen=True)
class SynthesisScale:
    """How long and how often is measured."""

    rounds: int = 3
    warmup_s: float = 5
    seconds: float = 8
    memory_counts: tuple[int, int] = (10_000, 1_000_000)
    rate_limit: int = 300  # of the server that refuses, replies a second
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


def bench_synthesis(json_path: Path, quick: bool = False, peers_python: Path | None = None) -> None:
    """Measure, write `json_path` and a plot beside it, print a table of aims and what was seen."""
    figures = measure_synthesis(Path(json_path).parent, QUICK if quick else FULL, peers_python) | {"quick": quick}
    write_result(json_path, figures)
    draw_synthesis_plot(figures, Path(json_path).with_suffix(".png"))
    print(format_synthesis_table(figures))


def measure_synthesis(
    folder: Path, scale: SynthesisScale, peers_python: Path | None = None, cells=CELLS, contestants=CONTESTANTS
) -> dict:
    """All figures; journals go to temporary folders in `folder`, which should be on a real disk."""
    folder.mkdir(parents=True, exist_ok=True)
    pythons = {"distilabel": str(peers_python or sys.executable)}
    names = [name for name in contestants if name != "distilabel" or _imports_distilabel(pythons[name])]
    total = scale.rounds * len(cells) * len(names) + 6  # two of memory, of goodput, and of local work
    with tqdm(total=total, desc="bench synthesis", unit="measurement") as bar:
        matrix = _matrix(folder, scale, pythons, cells, names, bar)
        memory = _memory(folder, scale, bar)
        goodput = _goodput(folder, scale, bar)
        local = _local(scale, bar)
    return (
        {"scale": asdict(scale), "contestants": names, "prompt_chars": peers.PROMPT_CHARS}
        | _ratios(matrix, names)
        | memory
        | goodput
        | local
        | {"cells": [_cell(key, rounds) for key, rounds in matrix.items()]}
    )


def _imports_distilabel(python: str) -> bool:
    """Whether that Python has it. Where it has not, its figures are left out and the table says so."""
    return subprocess.run([python, "-c", "import distilabel.models.llms"], capture_output=True).returncode == 0


def _matrix(
    folder: Path, scale: SynthesisScale, pythons: dict, cells, names: list[str], bar: tqdm
) -> dict[tuple, list[dict]]:
    """(contestant, latency, concurrency) -> its result of each round."""
    found = defaultdict(list)
    for _ in range(scale.rounds):
        for latency, concurrency in cells:
            with reply_server(latency_ms=latency) as url:
                for name in names:
                    bar.set_postfix_str(f"{name}, {concurrency} x {latency} ms")
                    window = ("--warmup-s", scale.warmup_s, "--seconds", scale.seconds)
                    python = pythons.get(name, sys.executable)
                    found[name, latency, concurrency].append(
                        _contestant(name, python, url, folder, concurrency, window)
                    )
                    bar.update()
    return found


def _contestant(name: str, python: str, url: str, folder: Path, concurrency: int, options: tuple) -> dict:
    """One measurement in a fresh process."""
    common = ["--concurrency", str(concurrency), *map(str, options)]
    if not name.startswith(OURS):
        return _json_of([python, peers.__file__, name, url, *common])
    judge = ["--judge"] if name == "ours_judged" else []
    with tempfile.TemporaryDirectory(dir=folder, prefix=".bench") as journal:
        return _json_of([python, "-m", "medssr_dist.bench.synthesis.ours", url, journal, *common, *judge])


def _json_of(command: list[str]) -> dict:
    """The last line that the process prints. Raises RuntimeError with its error output when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def _memory(folder: Path, scale: SynthesisScale, bar: tqdm) -> dict:
    """Peak memory of ours after few and after many requests, MiB."""
    peaks = []
    for count in scale.memory_counts:
        bar.set_postfix_str(f"memory of {count:,} requests")
        with reply_server() as url:
            found = _contestant(OURS, sys.executable, url, folder, _MB_CONCURRENCY, ("--count", count))
        peaks.append(found["peak_mb"])
        bar.update()
    return {"peak_mb_10k": peaks[0], "peak_mb_1m": peaks[1], "memory_requests": list(scale.memory_counts)}


def _goodput(folder: Path, scale: SynthesisScale, bar: tqdm) -> dict:
    """Replies a second as a share of the server's limit: load above the limit, and 30% refused at random besides."""
    cases = {}
    for name, refused in (("over_limit", 0.0), ("random_429", _REFUSE_SHARE)):
        bar.set_postfix_str(f"goodput, {name}")
        window = ("--warmup-s", scale.goodput_warmup_s, "--seconds", scale.goodput_s)
        with reply_server(_REFUSING_LATENCY_MS, scale.rate_limit, refused) as url:
            rate = _contestant(OURS, sys.executable, url, folder, _REFUSED_CONCURRENCY, window)["requests_per_s"]
            cases[name] = {"share_of_limit": round(rate / scale.rate_limit, 3), "refused_share": refused_share(url)}
        bar.update()
    return {"goodput_share_at_30pct_429": min(case["share_of_limit"] for case in cases.values()), "goodput": cases}


def _local(scale: SynthesisScale, bar: tqdm) -> dict:
    from medssr_dist.bench.synthesis.local import decontamination_per_s, retrieval_s

    bar.set_postfix_str("decontamination")
    rate = decontamination_per_s(scale.benchmark_items, scale.candidates)
    bar.update()
    bar.set_postfix_str("retrieval")
    seconds = retrieval_s(scale.passages, scale.entities)
    bar.update()
    return {"decontamination_per_s": rate, "retrieval_10k_entities_s": seconds}


def _ratios(matrix: dict, names: list[str]) -> dict:
    """Ratios within a round, their median over rounds, and the worse concurrency; None where a side is missing."""

    def ratio(name: str, other: str, latency: int) -> float | None:
        found = [
            _median_ratio(matrix[name, latency, concurrency], matrix[other, latency, concurrency])
            for _, at, concurrency in matrix
            if name in names and other in names and at == latency
        ]
        return min(filter(None, found), default=None)

    latencies = {latency for _, latency, _ in matrix}
    slow = max(matrix, key=lambda key: (key[0] == OURS, key[1] * key[2]))
    rates = [found["requests_per_s"] for found in matrix[slow]]
    ideal = 1000 * slow[2] / slow[1] if slow[1] else None
    return {
        "ratio_to_bare_loop": ratio(OURS, LIMIT, min(latencies)),
        "ratio_to_async_openai": ratio(OURS, "openai", min(latencies)),
        "ratio_to_distilabel": ratio(OURS, "distilabel", min(latencies)),
        "ratio_judged_to_bare_loop": ratio("ours_judged", LIMIT, min(latencies)),
        "share_of_ideal_512x200ms": round(statistics.median(rates) / ideal, 3) if ideal else None,
        "share_of_bare_512x200ms": ratio(OURS, LIMIT, max(latencies)),
    }


def _median_ratio(ours: list[dict], theirs: list[dict]) -> float | None:
    """None where theirs had no reply within any window: AsyncOpenAI may need longer than the window for one."""
    pairs = [(one["requests_per_s"], other["requests_per_s"]) for one, other in zip(ours, theirs, strict=True)]
    ratios = [one / other for one, other in pairs if other]
    return round(statistics.median(ratios), 3) if ratios else None


def _cell(key: tuple, rounds: list[dict]) -> dict:
    """Medians over rounds of one contestant at one latency and concurrency."""
    columns = ("requests_per_s", "cpu_us_per_request", "p50_ms", "p99_ms", "peak_mb")
    medians = {}
    for column in columns:
        values = [found[column] for found in rounds if found[column] is not None]
        medians[column] = round(statistics.median(values), 1) if values else None
    name, latency, concurrency = key
    return {"contestant": name, "latency_ms": latency, "concurrency": concurrency} | medians | {"rounds": rounds}
