"""The program of the batch scripts slurm/*.sh: run one attempt, record its end, and requeue the job if work is left.

    python -m medssr_dist.launch --run-dir runs/first --config configs/qwen3_8b.yaml --step run voting.samples=16
    python -m medssr_dist.launch --run-dir runs/bench --slots 2 -- python my_ray_program.py

Exit codes: 0 done, 1 the driver failed, 2 bad input or failed preflight, 3 stopped, 4 a node or component was lost.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shlex
import signal
import sys
import traceback
from pathlib import Path
from typing import NamedTuple

from medssr_dist.errors import EXIT_BAD_INPUT, InputError
from medssr_dist.launch.attempts import Attempt, AttemptExit, count_idle_attempts, find_unfinished
from medssr_dist.launch.launch_plan import LaunchPlan
from medssr_dist.launch.launcher import EXIT_FAULT, Launcher
from medssr_dist.launch.slurm import SlurmError, SlurmJob
from medssr_dist.launch.timings import Timings
from medssr_dist.run.paths import STEPS


def main(arguments: list[str] | None = None) -> int:
    """Run one attempt of the job that this process is in. Return the exit code."""
    args = _build_parser().parse_args(arguments)
    os.umask(0o077)
    run_dir = args.run_dir.resolve()
    try:
        job = SlurmJob.current()
    except SlurmError as error:
        print(f"medssr: {error}", file=sys.stderr)
        return EXIT_FAULT
    if job is None:
        print("medssr: not in a Slurm job; submit slurm/medssr_ssl.sh with sbatch", file=sys.stderr)
        return EXIT_BAD_INPUT
    if args.killed is None:
        attempt = Attempt.begin(run_dir)
        end = _run(_build_plan(args, run_dir), job, attempt)
    else:
        attempt = find_unfinished(run_dir) or Attempt.begin(run_dir)
        end = AttemptExit(EXIT_FAULT, f"the launcher on {job.host} was killed by signal {args.killed}")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a requeue sends it to this job
    attempt.finish(end)
    _requeue_unless_done(attempt, job, end, args.overrides)
    return end.code


def _run(plan: LaunchPlan, job: SlurmJob, attempt: Attempt) -> AttemptExit:
    attempt.log("launcher", f"attempt {attempt.number} of {plan.run_dir}: job {job.name} on {', '.join(job.nodes)}")
    timings = None
    try:
        timings = Timings(attempt, job.read_start())
        return asyncio.run(Launcher(plan, job, attempt, timings).run())
    except (InputError, OSError, SlurmError) as error:  # no address to listen at, no srun, or no answer from Slurm
        return AttemptExit(EXIT_FAULT, str(error))
    except Exception as error:  # a bug of the launcher is reported like any other fault
        traceback.print_exc()
        return AttemptExit(1, f"the launcher failed: {error!r}")
    finally:
        if timings:
            timings.write()


class _Next(NamedTuple):
    """What follows an attempt: the end of the log's last line, and whether this process has to requeue the job."""

    text: str
    requeues: bool


def _requeue_unless_done(attempt: Attempt, job: SlurmJob, end: AttemptExit, arguments: list[str]) -> None:
    """Log why the attempt ended and what follows, as the log's last line; requeue the job if work is left."""
    line = f"attempt {attempt.number} ended with {end.code}: {end.reason}"
    try:
        then = _decide_next(attempt, job, end.code)
        attempt.log("launcher", f"{line}{then.text}")
        if then.requeues:
            job.requeue(os.environ.get("MEDSSR_SCRIPT", ""), arguments, str(attempt.run.root))
    except SlurmError as error:
        attempt.log("launcher", f"{line}; not requeued: {error}")


def _decide_next(attempt: Attempt, job: SlurmJob, code: int) -> _Next:
    if code in (0, EXIT_BAD_INPUT):
        return _Next("", False)
    state, why = job.read_state()
    if state != "RUNNING" and why != "TimeLimit":
        return _Next("; Slurm itself ends or requeues the job", False)
    most = int(os.environ.get("MEDSSR_IDLE_ATTEMPTS", "3"))
    if count_idle_attempts(attempt.run.root) >= most:
        return _Next(f"; not requeued: {most} attempts in a row made no progress (MEDSSR_IDLE_ATTEMPTS)", False)
    return _Next(f"; job {job.name} continues in another attempt", True)


def _build_plan(args: argparse.Namespace, run_dir: Path) -> LaunchPlan:
    command = args.overrides if args.slots is not None else []
    return LaunchPlan(
        run_dir=run_dir,
        step=args.step,
        config=args.config,
        overrides=[] if command else args.overrides,
        command=command,
        slots=args.slots or 0,
        python=args.python,
        prefix=shlex.split(args.prefix),
        srun_options=shlex.split(args.srun),
    )


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m medssr_dist.launch", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run-dir", type=Path, required=True)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config", type=Path, help="run `medssr STEP` on this config")
    what.add_argument("--slots", type=int, help="run a command; on CPU nodes, with this many logical GPUs each")
    parser.add_argument("--step", default="run", choices=["run", *STEPS])
    parser.add_argument("--python", default=sys.executable, help="Python on the nodes, inside --prefix")
    parser.add_argument("--prefix", default="", help="put before every node's command, e.g. 'apptainer exec image.sif'")
    parser.add_argument("--srun", default="", help="more options for srun, e.g. '--container-image=image.sqsh'")
    parser.add_argument("--killed", type=int, metavar="SIGNAL", help="the launcher was killed: record it and requeue")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides; with --slots, the command")
    return parser


if __name__ == "__main__":
    sys.exit(main())
