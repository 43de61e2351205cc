"""The `medssr` command: parses, loads the config, calls; all work is elsewhere and imported late."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path

from medssr_dist import __version__
from medssr_dist.errors import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_STOPPED, Diverged, InputError, Stopped
from medssr_dist.runtime.logs import set_up_logging

_EXAMPLE = "example:\n  medssr {name} --config configs/demo_cpu.yaml --run-dir runs/demo voting.samples=16"
_STEPS = {
    "run": "the whole method: synthesize, vote, train (two stages), evaluate",
    "synthesize": "step 1: write new questions through a chat API",
    "vote": "step 2: pseudo-label them by majority vote of the policy",
    "train": "step 3: GRPO on the pseudo-labels, then on human-annotated questions",
    "evaluate": "step 4: score base, stage 1 and stage 2 on the benchmarks",
}
_BENCHES = {
    "synthesis": "the API client against a bare loop and other clients; its memory; decontamination; retrieval",
    "voting": "the engine pool against vLLM itself; adaptive voting; coordinator; simulated clusters; stream",
    "kernels": "log-prob and GRPO loss kernels against torch and other libraries",
    "training": "a GRPO step against stock OpenRLHF, and the share of each piece",
    "update": "the update alone on one device: tokens/s, MFU and peak memory, with and without each piece",
}
_TOOLS = {
    "prefetch": "bring models, encoders and the passage index to local disk (run where there is internet)",
    "doctor": "check this machine and the config before a long run",
    "status": "what a run directory holds: steps, counts, newest metrics",
}


def main(arguments: list[str] | None = None) -> int:
    """Entry point. Returns 0 done, 1 training diverged, 2 bad input, 3 stopped and resumable."""
    args = _parser().parse_args(arguments)
    os.umask(0o077)  # only the user may read what a command writes
    set_up_logging()
    try:
        return args.call(args)
    except InputError as error:
        print(f"medssr: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except Diverged as error:
        print(f"medssr: {error}", file=sys.stderr)
        return EXIT_FAILED
    except Stopped as error:
        print(f"medssr: {error}", file=sys.stderr)
        return EXIT_STOPPED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="medssr",
        description="MedSSR: question synthesis, majority-vote pseudo-labels, two-stage GRPO, evaluation.",
        epilog="exit codes: 0 done, 1 failed, 2 bad input, 3 stopped and resumable by the same command",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in _STEPS.items():
        command = _config_command(commands, name, text, _run_steps)
        command.set_defaults(rates=None)
        if name == "run":
            text = "with --dry-run: the run whose rates the wall time is predicted from (default: the run itself)"
            command.add_argument("--rates", type=Path, metavar="RUN_DIR", help=text)
    _config_command(commands, "prefetch", _TOOLS["prefetch"], _prefetch)
    _doctor_command(commands)
    _status_command(commands)
    teacher = commands.add_parser("teacher", help="serve the offline rule-based stand-in for a chat API on loopback")
    _add_teacher(teacher)
    _export_command(commands)
    _merge_command(commands)
    _bench_command(commands)
    return parser


def _config_command(commands, name: str, text: str, call) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=_EXAMPLE.format(name=name),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("--config", type=Path, required=True, help="YAML file, e.g. configs/demo_cpu.yaml")
    command.add_argument("--run-dir", type=Path, help="default: runs/<name of the config file>")
    command.add_argument("--dry-run", action="store_true", help="print what would be done, start nothing")
    command.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. voting.samples=16")
    command.set_defaults(call=call)
    return command


def _doctor_command(commands) -> None:
    command = _config_command(commands, "doctor", _TOOLS["doctor"], _doctor)
    where = command.add_mutually_exclusive_group()
    where.add_argument("--login", action="store_true", help="this is a login node: leave out what the job's nodes show")
    where.add_argument("--node", action="store_true", help="on every node of a job at once: write a report to --out")
    where.add_argument("--gather", type=Path, metavar="DIR", help="on the job's head: judge the reports in DIR")
    command.add_argument("--out", type=Path, metavar="DIR", help="with --node: a new folder that all nodes share")
    command.add_argument("--wait", type=float, default=120, metavar="S", help="with --node: for absent nodes (120)")
    command.add_argument("--step", choices=list(_STEPS), default="run", help="what the job does (run: all steps)")
    command.add_argument("--rates", type=Path, metavar="RUN_DIR", help="predict the time from an earlier run's rates")


def _status_command(commands) -> None:
    command = commands.add_parser("status", help=_TOOLS["status"], epilog="example: medssr status runs/demo")
    where = command.add_mutually_exclusive_group(required=True)
    where.add_argument("run_dir", type=Path, nargs="?", metavar="RUN_DIR", help="e.g. runs/demo")
    where.add_argument("--run-dir", type=Path, dest="run_dir_option", metavar="RUN_DIR", help="the same, as an option")
    where.add_argument("--config", type=Path, help="the config whose default run directory is meant")
    command.set_defaults(call=_status)


def _export_command(commands) -> None:
    text = "write a run's questions, with its pseudo-labels where it has them, in another form"
    command = commands.add_parser(
        "export",
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog="example:\n  medssr export --run-dir runs/demo --to exported --form parquet",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("--run-dir", type=Path, required=True, help="e.g. runs/demo")
    command.add_argument("--to", type=Path, required=True, help="a folder that is not there yet, or is empty")
    command.add_argument(
        "--form",
        required=True,
        choices=["parquet", "jsonl", "openrlhf", "verl"],
        help="parquet, jsonl: for Hugging Face datasets; openrlhf, verl: prompts with labels for those trainers",
    )
    command.add_argument(
        "--labels", choices=["kept", "all", "none"], default="kept", help="which pseudo-labels (default: kept)"
    )
    command.set_defaults(call=_export)


def _merge_command(commands) -> None:
    text = "take the votes that other runs took on a run's questions"
    command = commands.add_parser(
        "merge",
        help=text,
        description=text[0].upper() + text[1:] + ", each once; votes of another policy or way of sampling stay out.",
        epilog="example:\n  medssr merge runs/all runs/job1 runs/job2",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("run_dir", type=Path, metavar="RUN", help="the run that takes them; it must not be running")
    command.add_argument("others", type=Path, metavar="OTHER", nargs="+", help="runs on the same questions")
    command.set_defaults(call=_merge)


def _bench_command(commands) -> None:
    command = commands.add_parser(
        "bench",
        help="run a committed benchmark",
        description="\n".join(f"{name}: {text}" for name, text in _BENCHES.items()),
        epilog="example:\n  medssr bench synthesis --json synthesis.json --quick",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("name", choices=list(_BENCHES))
    command.add_argument("--json", type=Path, required=True, help="where to write the figures; plots go beside it")
    command.add_argument("--quick", action="store_true", help="a shorter run, for a first look")
    command.add_argument(
        "--peers-python", type=Path, help="synthesis: a Python that has distilabel, where this one cannot have it"
    )
    command.set_defaults(call=_bench)


def _add_teacher(parser: argparse.ArgumentParser) -> None:
    from medssr_dist.offline_teacher.serve import add_teacher_arguments, run_teacher

    add_teacher_arguments(parser)
    parser.set_defaults(call=run_teacher)


def _load(args: argparse.Namespace):
    from medssr_dist.config.load import load_config

    args.run_dir = args.run_dir or _default_run_dir(args.config)
    return load_config(args.config, args.overrides)


def _default_run_dir(config: Path) -> Path:
    return Path("runs") / config.stem


def _run_steps(args: argparse.Namespace) -> int:
    from medssr_dist.pipeline import STEPS, run_steps

    config = _load(args)
    steps = STEPS if args.command == "run" else (args.command,)
    if args.dry_run:
        from medssr_dist.commands.dry_run import dry_run

        dry_run(config, args.run_dir, steps, args.rates)
        return 0
    if args.rates:
        raise InputError("--rates is for the prediction of --dry-run; add --dry-run, or leave --rates out")
    run_steps(config, args.run_dir, steps)
    return 0


def _prefetch(args: argparse.Namespace) -> int:
    from medssr_dist.commands.prefetch import prefetch

    prefetch(_load(args), dry_run=args.dry_run)
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from medssr_dist.commands.doctor import DoctorForm, run_doctor, run_doctor_on_job, run_doctor_on_node

    config, form = _load(args), DoctorForm(args.step, args.login, args.rates)
    if args.node:
        if args.out is None:
            raise InputError("doctor --node needs --out DIR, the folder for its report")
        return run_doctor_on_node(config, args.run_dir, form, args.out, args.wait)
    if args.gather:
        return run_doctor_on_job(config, args.run_dir, form, args.gather)
    return run_doctor(config, args.run_dir, form, args.dry_run)


def _status(args: argparse.Namespace) -> int:
    from medssr_dist.commands.status import print_status

    print_status(args.run_dir or args.run_dir_option or _default_run_dir(args.config))
    return 0


def _export(args: argparse.Namespace) -> int:
    from medssr_dist.commands.export import export_run

    export_run(args.run_dir, args.to, args.form, args.labels)
    return 0


def _merge(args: argparse.Namespace) -> int:
    from medssr_dist.voting.merge import merge_votes

    merge_votes(args.run_dir, args.others)
    return 0


def _bench(args: argparse.Namespace) -> int:
    module = importlib.import_module(f"medssr_dist.bench.{args.name}")
    options = {"peers_python": args.peers_python} if args.peers_python else {}
    getattr(module, f"bench_{args.name}")(args.json, quick=args.quick, **options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
