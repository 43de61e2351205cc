"""The arguments of some commands, beside those that every command with a config has."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]  # argparse has no public name for it

BENCHES = {
    "synthesis": "the API client compared with other clients; its memory; decontamination; retrieval",
    "voting": "the engine pool compared with vLLM alone; adaptive voting; coordinator; simulated clusters; stream mode",
    "answers": "the reader of answers compared with two others: wrong and missed letters",
    "method": "the whole method on the mini policy: ablations, and controls with shuffled labels and a random reward",
    "guard": "the collapse guard on 20 runs with wrong labels and 20 sound ones: where it stops them",
    "labels": "label sources and option orders compared; the promise of the calibrated threshold, on real votes",
    "rollouts": "stage 1 of the mini policy: over-draw, votes as first rollouts, votes of the policy in training",
    "kernels": "the log-prob and GRPO loss kernels compared with torch and other libraries",
    "training": "a GRPO step compared with stock OpenRLHF, and the gain from each optimization",
    "step": "seconds of a training step by phase, idle GPUs and MFU, predicted by simulation for N nodes",
    "update": "the model update on one device: tokens/s, MFU and peak memory, with and without each optimization",
}
_EVALUATE_EXAMPLE = "medssr evaluate Qwen/Qwen3-0.6B runs/demo/training/stage2/hf --data test.csv --limit 100"


def add_model_arguments(command: argparse.ArgumentParser) -> None:
    """Add what `medssr evaluate MODEL... --data X` takes, which needs no config of a run."""
    command.description = (
        f"{command.description}\nWith MODEL: score any models on any data, with paired differences; of a config, the "
        "sections policy, voting, evaluation and runtime count."
    )
    command.epilog = f"{command.epilog}\n  {_EVALUATE_EXAMPLE}"
    for action in command._actions:
        if action.dest == "config":
            action.required = False
        elif action.dest == "overrides":
            action.metavar = "MODEL|key=value"
            action.help = "models (directory, LoRA adapter, Hugging Face id), and overrides such as policy.prompt=base"
    command.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="X",
        help="with MODEL: file, folder, Hugging Face id, `paper`, or '{path: lab/set, split: test}'; may be repeated",
    )
    command.add_argument("--limit", type=int, default=0, metavar="N", help="with MODEL: first N questions of each")
    command.add_argument("--server", default="", metavar="URL", help="with MODEL: a running vLLM server that has it")


def add_config_tools(commands: Commands, call: Callable[[argparse.Namespace], int]) -> None:
    """Add `medssr config show|keys|init`."""
    text = "show a config with where each value comes from, search its keys, or write a first one"
    command = commands.add_parser("config", help=text, description=f"{text[0].upper()}{text[1:]}.")
    tools = command.add_subparsers(dest="tool", required=True, metavar="show|keys|init")
    show = tools.add_parser("show", help="print every value of a config with where it comes from")
    show.add_argument("--config", type=Path, required=True, help="YAML file, or the name of a config of the project")
    show.add_argument("--json", action="store_true", help="print JSON")
    show.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. voting.samples=16")
    keys = tools.add_parser("keys", help="print keys with their meaning, kind of value and default")
    keys.add_argument("pattern", nargs="?", default="", metavar="PATTERN", help="a part of a key, or with *")
    keys.add_argument("--markdown", action="store_true", help="print docs/config.md")
    init = tools.add_parser("init", help="write a first config")
    init.add_argument("file", type=Path, nargs="?", default=Path("medssr.yaml"), help="default: medssr.yaml")
    init.add_argument("--from", dest="start", default="", metavar="NAME", help="copy this config of the project")
    init.add_argument("--force", action="store_true", help="replace the file if it exists")
    command.set_defaults(call=call)


def add_exchange_arguments(
    commands: Commands, write: Callable[[argparse.Namespace], int], score: Callable[[argparse.Namespace], int]
) -> None:
    """Add `medssr tasks` and `medssr score`."""
    text = "write benchmarks as tasks of lm-evaluation-harness or datasets of inspect_ai"
    tasks = commands.add_parser("tasks", help=text, description=f"{text[0].upper()}{text[1:]}.")
    tasks.add_argument("--to", type=Path, required=True, metavar="DIR", help="a new or empty folder")
    tasks.add_argument("--form", choices=["lm_eval", "inspect"], default="lm_eval", help="default: lm_eval")
    tasks.set_defaults(call=write)
    text = "score generations that lm-evaluation-harness or inspect_ai has stored, by our protocols"
    scores = commands.add_parser("score", help=text, description=f"{text[0].upper()}{text[1:]}.")
    scores.add_argument("files", type=Path, nargs="+", metavar="FILE", help="samples_*.jsonl of lm_eval, or a JSON log")
    scores.set_defaults(call=score)
    for command in (tasks, scores):
        command.add_argument("--data", action="append", required=True, metavar="X", help="as for `medssr evaluate`")
        command.add_argument("--limit", type=int, default=0, metavar="N", help="first N questions of each")
        command.add_argument("--set", action="append", default=[], metavar="key=value", help="e.g. policy.prompt=base")


def add_doctor_arguments(command: argparse.ArgumentParser, steps: Iterable[str]) -> None:
    """Add what `medssr doctor` takes beside a config. `steps`: the steps that a job may run."""
    where = command.add_mutually_exclusive_group()
    where.add_argument("--login", action="store_true", help="on a login node: leave out the checks of a job's nodes")
    where.add_argument(
        "--node", action="store_true", help="on every node of a job, at the same time: write a report to --out"
    )
    where.add_argument("--gather", type=Path, metavar="DIR", help="on the job's head node: evaluate the reports in DIR")
    command.add_argument(
        "--out", type=Path, metavar="DIR", help="with --node: a new folder on a file system shared by all nodes"
    )
    command.add_argument(
        "--wait",
        type=float,
        default=120,
        metavar="S",
        help="with --node: seconds to wait for absent nodes (default: 120)",
    )
    text = "run what only a GPU can show: kernels, attention, an update, a small run; a quarter of an hour"
    command.add_argument("--gpu-check", action="store_true", help=text)
    command.add_argument(
        "--step", choices=list(steps), default="run", help="the step that the job runs (default: run, all steps)"
    )
    command.add_argument(
        "--rates", type=Path, metavar="RUN_DIR", help="predict the wall time from an earlier run's rates"
    )


def add_bench_arguments(commands: Commands, call: Callable[[argparse.Namespace], int]) -> None:
    """Add `medssr bench`."""
    command = commands.add_parser(
        "bench",
        help="run a committed benchmark",
        description="\n".join(f"{name}: {text}" for name, text in BENCHES.items()),
        epilog="example:\n  medssr bench synthesis --json synthesis.json --quick",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("name", choices=list(BENCHES))
    command.add_argument(
        "--json", type=Path, required=True, help="file for the results; plots are written to the same folder"
    )
    command.add_argument("--quick", action="store_true", help="a shorter run with rougher results")
    command.add_argument(
        "--config", type=Path, help="step: the config whose step is predicted (default: qwen3_8b); guard: of its runs"
    )
    command.add_argument("--nodes", metavar="N,N", help="step: numbers of nodes (default: 1,4)")
    command.add_argument("--gpu", metavar="KIND", help="step: H100 (default), H200 or A100")
    command.add_argument("--rates", type=Path, metavar="RUN_DIR", help="step: fit the rates to a measured run")
    command.add_argument("--parallel", type=int, metavar="N", help="method, guard: runs at the same time")
    command.add_argument("--arms", metavar="ARM,ARM", help="method: run these arms only (default: all)")
    command.add_argument(
        "--peers-python",
        type=Path,
        metavar="PYTHON",
        help="synthesis, answers: a Python with the libraries compared with, if they are not installed in this one",
    )
    command.set_defaults(call=call)


def add_report_arguments(commands: Commands, call: Callable[[argparse.Namespace], int]) -> None:
    """Add `medssr report`."""
    text = "write report.html of a run: one file, offline, with figures, tables, and the questions down to raw votes"
    command = commands.add_parser("report", help=text, epilog="example: medssr report runs/demo")
    command.add_argument("run_dir", type=Path, metavar="RUN", help="also while it is running")
    command.set_defaults(call=call)


def add_push_arguments(commands: Commands, call: Callable[[argparse.Namespace], int]) -> None:
    """Add `medssr push`."""
    command = commands.add_parser(
        "push",
        help="upload the questions or the trained model of a run to the Hugging Face Hub, with a card",
        description="Only the data file or the model's files, and the card, are uploaded. The token is $HF_TOKEN.",
        epilog="example:\n  medssr push runs/demo --model me/medssr-demo --private --dry-run",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("run_dir", type=Path, metavar="RUN", help="e.g. runs/demo")
    what = command.add_mutually_exclusive_group(required=True)
    what.add_argument("--dataset", metavar="REPO", help="upload the questions with their labels to OWNER/NAME")
    what.add_argument("--model", metavar="REPO", help="upload the trained model to OWNER/NAME")
    command.add_argument(
        "--private", action="store_true", help="create the repository private, and refuse one that is public"
    )
    command.add_argument(
        "--labels",
        choices=["kept", "all", "none"],
        default="kept",
        help="with --dataset: which questions, as export",
    )
    command.add_argument("--stage", choices=["stage1", "stage2"], help="with --model: whose (default: the last one)")
    command.add_argument("--token-file", metavar="FILE", help="a file of mode 0600 with the token (default: $HF_TOKEN)")
    command.add_argument("--dry-run", action="store_true", help="show files and card, and send nothing")
    command.set_defaults(call=call)


def add_status_arguments(commands: Commands, call: Callable[[argparse.Namespace], int]) -> None:
    """Add `medssr status`."""
    text = "show the progress of a run: steps, counts, newest metrics"
    command = commands.add_parser("status", help=text, epilog="example: medssr status runs/demo --watch")
    where = command.add_mutually_exclusive_group(required=True)
    where.add_argument("run_dir", type=Path, nargs="?", metavar="RUN_DIR", help="e.g. runs/demo")
    where.add_argument("--run-dir", type=Path, dest="run_dir_option", metavar="RUN_DIR", help="the same, as an option")
    where.add_argument("--config", type=Path, help="show the default run directory of this config")
    form = command.add_mutually_exclusive_group()
    form.add_argument("--watch", action="store_true", help="show it anew until the run ends or Ctrl-C")
    form.add_argument("--json", action="store_true", help="print it as JSON, for programs")
    command.add_argument(
        "--every", type=float, default=5.0, metavar="SECONDS", help="with --watch: time between two looks (default: 5)"
    )
    command.set_defaults(call=call)


def _add_tool(commands: Commands, name: str, text: str, example: str, more: str = "") -> argparse.ArgumentParser:
    """Add a command without a config: `text` is its help, with `more` behind it in its description."""
    description = text[0].upper() + text[1:] + "."
    return commands.add_parser(
        name,
        help=text,
        description=f"{description}\n{more}" if more else description,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_export_arguments(commands: Commands, call: Callable[[argparse.Namespace], int]) -> None:
    """Add `medssr export`."""
    text = "write the questions of a run, with their pseudo-labels, in another format"
    command = _add_tool(commands, "export", text, "medssr export --run-dir runs/demo --to exported --form parquet")
    command.add_argument("--run-dir", type=Path, required=True, help="e.g. runs/demo")
    command.add_argument("--to", type=Path, required=True, help="a new or empty folder")
    command.add_argument(
        "--form",
        required=True,
        choices=["parquet", "jsonl", "openrlhf", "verl"],
        help="parquet, jsonl: for Hugging Face datasets; openrlhf, verl: prompts with labels for those trainers",
    )
    command.add_argument(
        "--labels",
        choices=["kept", "all", "none"],
        default="kept",
        help="kept: only questions whose pseudo-label was kept (default); all: every question; none: every question, "
        "without labels",
    )
    command.set_defaults(call=call)


def add_merge_arguments(commands: Commands, call: Callable[[argparse.Namespace], int]) -> None:
    """Add `medssr merge`."""
    text = "copy into a run the votes that other runs took on its questions"
    command = _add_tool(
        commands,
        "merge",
        text,
        "medssr merge runs/all runs/job1 runs/job2",
        "No vote is taken twice; votes of another policy or with other sampling settings are left out.",
    )
    command.add_argument(
        "run_dir", type=Path, metavar="RUN", help="the run that gets the votes; it must not be running"
    )
    command.add_argument("others", type=Path, metavar="OTHER", nargs="+", help="runs with the same questions")
    command.set_defaults(call=call)


def add_review_arguments(commands: Commands, call: Callable[[argparse.Namespace], int]) -> None:
    """Add `medssr review`."""
    text = "read back the review sheet that a physician filled in, and report it with intervals"
    command = _add_tool(commands, "review", text, "medssr review runs/demo returned.csv")
    command.add_argument("run_dir", type=Path, metavar="RUN", help="the run that wrote the sheet")
    command.add_argument("sheet", type=Path, metavar="FILE", nargs="?", help="default: RUN/synthesis/review.csv")
    command.set_defaults(call=call)


def add_compare_arguments(commands: Commands, call: Callable[[argparse.Namespace], int]) -> None:
    """Add `medssr compare`."""
    text = "compare two evaluated runs: settings that differ, and paired scores on the questions that both answered"
    command = _add_tool(commands, "compare", text, "medssr compare runs/two_stage runs/no_filter")
    command.add_argument("run_a", type=Path, metavar="RUN_A", help="differences are RUN_B - RUN_A")
    command.add_argument("run_b", type=Path, metavar="RUN_B")
    command.set_defaults(call=call)
