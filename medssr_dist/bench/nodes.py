"""The two commands of slurm/bench.sh: make run directories that vote on the same questions, and print the table.

python -m medssr_dist.bench.nodes begin runs/questions runs/bench/nodes-2
python -m medssr_dist.bench.nodes table runs/bench
"""

from __future__ import annotations

import argparse
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from medssr_dist.bench.result_file import write_result
from medssr_dist.data.jsonl import read_json
from medssr_dist.data.records import parse_record
from medssr_dist.errors import EXIT_BAD_INPUT, InputError
from medssr_dist.estimates.rates import read_rates
from medssr_dist.launch.attempts import FIRST_TOKEN, list_attempts
from medssr_dist.run.directory import Manifest, RunDir
from medssr_dist.run.paths import RunPaths
from medssr_dist.voting.quality_records import VoteSummary


@dataclass(frozen=True)
class NodeRates:
    """The vote on a number of nodes: votes/s and tokens/s without start-up, and seconds to the first token.

    >>> NodeRates(nodes=2, votes_per_s=1.0, tokens_per_s=20.0, first_token_s=7.5)

    `first_token_s` counts from the start of the job; None if it was not recorded.
    """

    nodes: int
    votes_per_s: float
    tokens_per_s: float
    first_token_s: float | None


def begin_nodes_run(questions: Path, run_dir: Path) -> None:
    """Make the run `run_dir` with the questions of the run `questions` and nothing else; keep it if it exists.

    Raises:
        InputError: if `questions` has no finished questions.
    """
    source, run = RunDir(questions), RunDir(run_dir)
    if not source.is_finished("synthesize"):
        raise InputError(f"{questions} holds no finished questions; run `medssr synthesize` there first")
    if run.manifest_file.exists():
        return
    shutil.copytree(source.synthesis.folder, run.synthesis.folder, dirs_exist_ok=True)
    shutil.copy(source.config_file, run.root)
    run.write_manifest(Manifest(steps={"synthesize": source.read_manifest().steps["synthesize"]}))


def read_node_rates(folder: Path) -> list[NodeRates]:
    """Return the rates of every finished `nodes-N`, in the order of N."""
    found = []
    for run in sorted(Path(folder).glob("nodes-*")):
        rates = read_rates(run) if RunPaths(run).voting.summary.exists() else None
        if rates is None or rates.vote is None:
            continue
        summary = RunPaths(run).voting.summary
        quality = parse_record(VoteSummary, read_json(summary), str(summary)).quality
        votes_per_s = rates.vote.tokens_per_s * quality.votes / quality.tokens
        first = [attempt.timings.get(FIRST_TOKEN) for attempt in list_attempts(run)]
        found.append(
            NodeRates(
                nodes=int(run.name.removeprefix("nodes-")),
                votes_per_s=round(votes_per_s, 2),
                tokens_per_s=round(rates.vote.tokens_per_s, 2),
                first_token_s=next(filter(None, first), None),
            )
        )
    return sorted(found, key=lambda row: row.nodes)


def print_nodes_table(folder: Path) -> None:
    """Print the rates by number of nodes and write them to `folder`/bench.json.

    Raises:
        InputError: if no run has finished.
    """
    found = read_node_rates(folder)
    if not found:
        raise InputError(f"{folder} holds no finished nodes-N/voting; wait for the jobs of slurm/bench.sh")
    write_result(folder / "bench.json", {"rows": [asdict(row) for row in found]})
    print("nodes   votes/s   tokens/s   tokens/s a node, to the smallest   first token after s")
    smallest = found[0].tokens_per_s / found[0].nodes
    for row in found:
        share = row.tokens_per_s / row.nodes / smallest
        first = row.first_token_s or "-"
        print(f"{row.nodes:5} {row.votes_per_s:9} {row.tokens_per_s:10} {share:34.2f} {first:>21}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m medssr_dist.bench.nodes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, folders in {"begin": ("questions", "run_dir"), "table": ("folder",)}.items():
        command = commands.add_parser(name)
        for folder in folders:
            command.add_argument(folder, type=Path)
    args = vars(parser.parse_args(arguments))
    try:
        {"begin": begin_nodes_run, "table": print_nodes_table}[args.pop("command")](**args)
    except InputError as error:
        print(f"medssr: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    return 0


if __name__ == "__main__":
    sys.exit(main())
