"""The table of slurm/bench.sh: voting throughput by number of nodes, from the run directories alone.

python -m medssr_dist.launch.bench runs/bench
"""

from __future__ import annotations

import sys
from pathlib import Path

from medssr_dist.jsonl import read_json, write_json
from medssr_dist.launch.attempts import FIRST_ANSWER


def rows(folder: Path) -> list[dict]:
    """One row a finished `nodes-N`, by N: votes and tokens a second of voting, and seconds to the first answer."""
    found = []
    for file in folder.glob("nodes-*/voting/summary.json"):
        summary, run = read_json(file), file.parents[1]
        (timings, *_) = sorted(run.glob("attempts/*/timings.json"))
        rates = {f"{unit}_per_s": round(summary[unit] / summary["seconds"], 2) for unit in ("votes", "tokens")}
        nodes = int(run.name.removeprefix("nodes-"))
        found.append({"nodes": nodes} | rates | {"first_answer_s": read_json(timings).get(FIRST_ANSWER)})
    return sorted(found, key=lambda row: row["nodes"])


def main(folder: Path) -> int:
    table = rows(folder)
    if not table:
        print(f"{folder} holds no finished nodes-N/voting; wait for the jobs of slurm/bench.sh", file=sys.stderr)
        return 2
    write_json(folder / "bench.json", table)
    print("nodes   votes/s   tokens/s   tokens/s/node of the smallest   first answer after s")
    least = table[0]["tokens_per_s"] / table[0]["nodes"]
    for row in table:
        share = row["tokens_per_s"] / row["nodes"] / least
        print(
            f"{row['nodes']:5} {row['votes_per_s']:9} {row['tokens_per_s']:10} {share:31.2f} {row['first_answer_s']:22}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
