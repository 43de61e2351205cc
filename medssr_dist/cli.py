"""The `medssr` command: parse the arguments, load the config, call the function that does the work.

What a command needs is imported when it is called, so that `medssr --help` is fast and needs no heavy library.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from medssr_dist import __version__
from medssr_dist.commands.tool_arguments import (
    add_bench_arguments,
    add_compare_arguments,
    add_config_tools,
    add_doctor_arguments,
    add_exchange_arguments,
    add_export_arguments,
    add_merge_arguments,
    add_model_arguments,
    add_push_arguments,
    add_report_arguments,
    add_review_arguments,
    add_status_arguments,
)
from medssr_dist.errors import (
    EXIT_BAD_INPUT,
    EXIT_FAILED,
    EXIT_STOPPED,
    ClusterFailed,
    EnginesFailed,
    InputError,
    Stopped,
    TrainingFailed,
    to_line,
)
from medssr_dist.runtime.failures import describe_foreseen, write_traceback
from medssr_dist.runtime.logs import set_up_logging
from medssr_dist.runtime.output import clean_output, discard_output
from medssr_dist.runtime.working_directory import import_no_local_modules

if TYPE_CHECKING:
    from medssr_dist.config.schema import Config

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]  # argparse has no public name for it

Call = Callable[[argparse.Namespace], int]

_DASHED_KEY = re.compile(r"--([a-z][a-z0-9_]*(?:\.\w+)+)(?:=(.*))?", re.DOTALL)
_EXAMPLE = "example:\n  medssr {name} --config configs/demo_cpu.yaml --run-dir runs/demo voting.samples=16"
_STEPS = {
    "run": "run the whole method: synthesize, vote, train (two stages), evaluate",
    "synthesize": "step 1: write new questions with a chat API",
    "vote": "step 2: give the questions pseudo-labels by majority vote of the policy",
    "train": "step 3: GRPO on the pseudo-labels (stage 1), then on human-annotated questions (stage 2)",
    "evaluate": "step 4: score the base model, stage 1 and stage 2 on the benchmarks",
}
_TOOLS = {
    "preview": "send a few requests for questions and show prompt, reply, checks and cost; nothing is kept",
    "prefetch": "download models and encoders and build the passage index (on a machine with internet access)",
    "doctor": "check this machine and the config before a long run",
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line `arguments` (default: sys.argv) and return the exit code.

    The codes: 0 done, 1 training or all engines failed, or a bug, 2 bad input or a fault of the machine, 3 stopped and
    resumable by the same command.
    """
    parser = _build_parser()
    _offer_completion(parser)
    os.umask(0o077)  # only the user may read what a command writes
    import_no_local_modules()
    set_up_logging()
    with clean_output():
        if mistake := _explain_dashes(sys.argv[1:] if arguments is None else arguments):
            return _end(mistake, EXIT_BAD_INPUT)
        return _run(_parse(parser, arguments))


def _run(args: argparse.Namespace) -> int:
    """Call the command; print why it ends early, if it does, and return its exit code."""
    try:
        call: Call = args.call
        code = call(args)
        if sys.stdout is not None:
            sys.stdout.flush()  # a full disk or a closed pipe shows here
        return code
    except InputError as error:
        return _end(error, EXIT_BAD_INPUT)
    except (TrainingFailed, EnginesFailed, ClusterFailed) as error:
        return _end(error, EXIT_FAILED)
    except Stopped as error:
        return _end(error, EXIT_STOPPED)
    except KeyboardInterrupt:
        return _end("interrupted; the same command resumes the run", EXIT_STOPPED)
    except Exception as error:
        return _end_by_failure(error, getattr(args, "run_dir", None))


def _parse(parser: argparse.ArgumentParser, arguments: list[str] | None) -> argparse.Namespace:
    """Parse the arguments; models and overrides may also stand behind options, where argparse does not expect them."""
    args, rest = parser.parse_known_args(arguments)
    if rest and (any(argument.startswith("-") for argument in rest) or not hasattr(args, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.overrides = [*args.overrides, *rest]
    return args


def _offer_completion(parser: argparse.ArgumentParser) -> None:
    """Complete the command line for a shell in which `register-python-argcomplete medssr` was evaluated."""
    if "_ARGCOMPLETE" in os.environ:
        from medssr_dist.commands.completion import complete

        complete(parser)


def _explain_dashes(arguments: list[str]) -> str:
    """Return how to write an override that is given as an option, such as `--voting.samples 16`; "" if none is."""
    for place, argument in enumerate(arguments):
        if argument == "--":
            break
        if match := _DASHED_KEY.fullmatch(argument):
            following = arguments[place + 1] if place + 1 < len(arguments) else "VALUE"
            value = following if match[2] is None else match[2]
            return f"{argument}: settings of the config have no dashes; write {match[1]}={value}"
    return ""


def _end(message: object, code: int) -> int:
    """Print why the command ends, in one line, and return its exit code."""
    print(f"medssr: {to_line(str(message))}", file=sys.stderr)
    return code


def _end_by_failure(error: Exception, run_dir: Path | None) -> int:
    """End for a fault of the machine with the fix, or for a bug with the file that holds its traceback."""
    if isinstance(error, OSError):
        discard_output(sys.stdout)
    if isinstance(error, BrokenPipeError):  # `medssr ... | head`: the reader has all it wants
        return EXIT_FAILED
    if foreseen := describe_foreseen(error):
        return _end(foreseen, EXIT_BAD_INPUT)
    file = write_traceback(error, run_dir)
    return _end(f"a bug: {type(error).__name__}: {error}; please report it with {file}", EXIT_FAILED)


class _CommandParser(argparse.ArgumentParser):
    """A parser whose errors are lines as all others are: short, printable and without keys."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(EXIT_BAD_INPUT, f"{self.prog}: {to_line(message)}\n")


def _build_parser() -> argparse.ArgumentParser:
    parser = _CommandParser(
        prog="medssr",
        description="MedSSR: question synthesis, majority-vote pseudo-labels, two-stage GRPO, evaluation.",
        epilog="exit codes: 0 done, 1 failed, 2 bad input or a fault of the machine, "
        "3 stopped and resumable by the same command",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in _STEPS.items():
        command = _add_config_command(commands, name, text, _run_steps)
        command.set_defaults(rates=None)
        if name == "evaluate":
            add_model_arguments(command)
            command.set_defaults(call=_evaluate)
        text = "with --dry-run: plan for GPUs, or for the CPU, whatever this machine has"
        command.add_argument("--device", choices=("cpu", "gpu"), help=text)
        command.add_argument(
            "--sbatch", action="store_true", help="print the batch script of a Slurm job that does this"
        )
        if name == "run":
            text = "with --dry-run: predict the wall time from this run's rates (default: from the run itself)"
            command.add_argument("--rates", type=Path, metavar="RUN_DIR", help=text)
    preview = _add_config_command(commands, "preview", _TOOLS["preview"], _preview)
    preview.add_argument("--n", type=int, default=5, metavar="N", help="requests to send (default: 5)")
    preview.add_argument("--no-prompts", action="store_true", help="leave out the prompts")
    _add_config_command(commands, "prefetch", _TOOLS["prefetch"], _prefetch)
    doctor = _add_config_command(commands, "doctor", _TOOLS["doctor"], _doctor)
    add_doctor_arguments(doctor, _STEPS)
    add_status_arguments(commands, _status)
    add_report_arguments(commands, _report)
    add_push_arguments(commands, _push)
    _add_teacher_command(commands)
    add_export_arguments(commands, _export)
    add_merge_arguments(commands, _merge)
    add_review_arguments(commands, _review)
    add_compare_arguments(commands, _compare)
    add_config_tools(commands, _config)
    add_exchange_arguments(commands, _write_tasks, _score)
    add_bench_arguments(commands, _bench)
    return parser


def _add_config_command(commands: Commands, name: str, text: str, call: Call) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=_EXAMPLE.format(name=name),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("--config", type=Path, required=True, help="YAML file, e.g. configs/demo_cpu.yaml")
    command.add_argument("--run-dir", type=Path, help="default: runs/<name of the config file>")
    command.add_argument("--dry-run", action="store_true", help="show what would be done, without doing it")
    command.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. voting.samples=16")
    command.set_defaults(call=call)
    return command


def _add_teacher_command(commands: Commands) -> None:
    from medssr_dist.offline_teacher.serve import DESCRIPTION, add_teacher_arguments, run_teacher

    text = "serve the offline stand-in for a chat API on this machine"
    command = commands.add_parser("teacher", help=text, description=DESCRIPTION)
    add_teacher_arguments(command)
    command.set_defaults(call=run_teacher)


def _load(args: argparse.Namespace) -> Config:
    """Load the config that `args` name, and set `args.run_dir` if it was not given."""
    from medssr_dist.config.load import load_config

    args.run_dir = args.run_dir or _default_run_dir(args.config)
    return load_config(args.config, args.overrides)


def _default_run_dir(config: Path) -> Path:
    return Path("runs") / config.stem


def _run_steps(args: argparse.Namespace) -> int:
    from medssr_dist.pipeline import run_steps
    from medssr_dist.run.paths import STEPS
    from medssr_dist.runtime.device import choose_device

    config = _load(args)
    steps = STEPS if args.command == "run" else (args.command,)
    if args.device and not args.dry_run:
        raise InputError("--device needs --dry-run; a run uses the GPUs that it finds, or what runtime.device says")
    if args.sbatch:
        from medssr_dist.commands.batch_script import render_batch_script

        print(render_batch_script(config, args.command, args.config, args.run_dir, args.overrides), end="")
        return 0
    if args.dry_run:
        from medssr_dist.commands.dry_run import dry_run

        choose_device(args.device or config.runtime.device)
        dry_run(config, args.run_dir, steps, args.rates)
        return 0
    if args.rates:
        raise InputError("--rates needs --dry-run; add --dry-run, or leave --rates out")
    if config.runtime.device == "cpu":
        choose_device("cpu")
    run_steps(config, args.run_dir, steps)
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    models = [argument for argument in args.overrides if "=" not in argument]
    if not models:
        if wrong := next((name for name in ("data", "limit", "server") if getattr(args, name)), ""):
            raise InputError(f"--{wrong} needs a model: medssr evaluate MODEL --data X")
        if args.config is None:
            raise InputError("evaluate needs a model and --data, or the --config of a run")
        return _run_steps(args)
    from medssr_dist.commands.evaluate_models import evaluate_models, plan_evaluation_of_models
    from medssr_dist.config.bare_evaluation import build_evaluation_config

    overrides = [argument for argument in args.overrides if "=" in argument]
    config = build_evaluation_config(models[0], args.data, args.limit, args.server, args.config, overrides)
    if args.dry_run:
        plan_evaluation_of_models(config, models)
        return 0
    args.run_dir = args.run_dir or Path("runs") / "evaluation"
    evaluate_models(config, models, args.run_dir)
    return 0


def _preview(args: argparse.Namespace) -> int:
    from medssr_dist.commands.preview import preview

    if args.n < 1:
        raise InputError(f"--n {args.n} asks for no request; give at least 1")
    preview(_load(args), args.n, not args.no_prompts)
    return 0


def _prefetch(args: argparse.Namespace) -> int:
    from medssr_dist.commands.prefetch import prefetch

    prefetch(_load(args), dry_run=args.dry_run)
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from medssr_dist.commands.doctor import DoctorForm, run_doctor, run_doctor_on_job, run_doctor_on_node

    if args.gpu_check:
        from medssr_dist.commands.doctor.gpu_check import run_gpu_check

        return run_gpu_check()
    from medssr_dist.estimates.engine_placement import choose_placement

    config, form = choose_placement(_load(args)).config, DoctorForm(args.step, args.login, args.rates)
    if args.node:
        if args.out is None:
            raise InputError("doctor --node needs --out DIR, the folder for its report")
        return run_doctor_on_node(config, args.run_dir, form, args.out, args.wait)
    if args.gather:
        return run_doctor_on_job(config, args.run_dir, form, args.gather)
    return run_doctor(config, args.run_dir, form, args.dry_run)


def _status(args: argparse.Namespace) -> int:
    run_dir = args.run_dir or args.run_dir_option or _default_run_dir(args.config)
    if args.watch:
        from medssr_dist.commands.status_watch import watch_status

        watch_status(run_dir, args.every)
        return 0
    from medssr_dist.commands.status import print_status

    print_status(run_dir, as_json=args.json)
    return 0


def _report(args: argparse.Namespace) -> int:
    from medssr_dist.report.write_report import write_report

    print(write_report(args.run_dir))
    return 0


def _push(args: argparse.Namespace) -> int:
    from medssr_dist.commands.push import push_run

    push_run(
        args.run_dir,
        "dataset" if args.dataset else "model",
        args.dataset or args.model,
        private=args.private,
        labels=args.labels,
        stage=args.stage,
        token_file=args.token_file,
        dry_run=args.dry_run,
    )
    return 0


def _export(args: argparse.Namespace) -> int:
    from medssr_dist.commands.export import export_run

    export_run(args.run_dir, args.to, args.form, args.labels)
    return 0


def _merge(args: argparse.Namespace) -> int:
    from medssr_dist.voting.merge import merge_votes

    merge_votes(args.run_dir, args.others)
    return 0


def _review(args: argparse.Namespace) -> int:
    from medssr_dist.commands.read_review import review_run

    review_run(args.run_dir, args.sheet)
    return 0


def _compare(args: argparse.Namespace) -> int:
    from medssr_dist.commands.compare import compare_runs

    compare_runs(args.run_a, args.run_b)
    return 0


def _config(args: argparse.Namespace) -> int:
    from medssr_dist.commands import config_command

    if args.tool == "show":
        config_command.show_config(args.config, args.overrides, args.json)
    elif args.tool == "keys":
        config_command.print_keys(args.pattern, args.markdown)
    else:
        config_command.init_config(args.file, args.start, args.force)
    return 0


def _write_tasks(args: argparse.Namespace) -> int:
    from medssr_dist.commands.benchmark_exchange import write_tasks
    from medssr_dist.config.bare_evaluation import build_evaluation_config

    config = build_evaluation_config("model", args.data, args.limit, "", None, args.set)
    write_tasks(config, args.to, args.form)
    return 0


def _score(args: argparse.Namespace) -> int:
    from medssr_dist.commands.benchmark_exchange import score_generations
    from medssr_dist.config.bare_evaluation import build_evaluation_config

    score_generations(build_evaluation_config("model", args.data, args.limit, "", None, args.set), args.files)
    return 0


def _bench(args: argparse.Namespace) -> int:
    from medssr_dist.bench.result_file import refuse_unfit_result

    folder_module = "training.update" if args.name == "update" else f"{args.name}.run"
    module = importlib.import_module(f"medssr_dist.bench.{folder_module}")
    measure = getattr(module, f"bench_{args.name}")
    names = ("peers_python", "parallel", "arms", "config", "nodes", "gpu", "rates")
    given = {name: getattr(args, name) for name in names}
    options = {name: value for name, value in given.items() if value is not None}
    for name in options.keys() - inspect.signature(measure).parameters.keys():
        raise InputError(f"`medssr bench {args.name}` has no --{name.replace('_', '-')}; leave it out")
    refuse_unfit_result(args.json)
    measure(args.json, quick=args.quick, **options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
