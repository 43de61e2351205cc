"""What slurm/*.sh run in the batch script: one attempt, its record, and what comes after it.

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

from medssr_dist.errors import EXIT_BAD_INPUT, InputError
from medssr_dist.launch.attempts import Attempt, count_idle_attempts, find_unfinished
from medssr_dist.launch.launcher import EXIT_FAULT, Launcher, LaunchPlan
from medssr_dist.launch.slurm import SlurmError, SlurmJob
from medssr_dist.launch.timings import Timings
from medssr_dist.run.paths import STEPS


def main(arguments: list[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    os.umask(0o077)
    run_dir = args.run_dir.resolve()
    job = SlurmJob.current()
    if job is None:
        print("medssr: not in a Slurm job; submit slurm/medssr_ssl.sh with sbatch", file=sys.stderr)
        return EXIT_BAD_INPUT
    if args.killed is None:
        attempt = Attempt.begin(run_dir)
        code, reason = _run(_plan(args, run_dir), job, attempt)
    else:
        attempt = find_unfinished(run_dir) or Attempt.begin(run_dir)
        code, reason = EXIT_FAULT, f"the launcher on {job.host} was killed by signal {args.killed}"
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what a requeue sends to this very job
    attempt.finish(code, reason)
    _go_on(attempt, job, code, reason, args.overrides)
    return code


def _run(plan: LaunchPlan, job: SlurmJob, attempt: Attempt) -> tuple[int, str]:
    timings = Timings(attempt, job.started())
    attempt.log("launcher", f"attempt {attempt.number} of {plan.run_dir}: job {job.id} on {', '.join(job.nodes)}")
    try:
        return asyncio.run(Launcher(plan, job, attempt, timings).run())
    except (InputError, OSError) as error:  # no address to listen at, no srun
        return EXIT_FAULT, str(error)
    except Exception as error:  # a fault of the launcher itself is told like any other
        traceback.print_exc()
        return 1, f"the launcher failed: {error!r}"
    finally:
        timings.write()


def _go_on(attempt: Attempt, job: SlurmJob, code: int, reason: str, arguments: list[str]) -> None:
    """Let the job go on where there is work left. The last line of the log: why the attempt ended, and what then."""
    then, act = _what_then(attempt, job, code)
    attempt.log("launcher", f"attempt {attempt.number} ended with {code}: {reason}{then}")
    if act:
        try:
            job.go_on(os.environ.get("MEDSSR_SCRIPT", ""), arguments, str(attempt.run.root))
        except SlurmError as error:
            attempt.log("launcher", f"attempt {attempt.number} ended with {code}: {reason}; not requeued: {error}")


def _what_then(attempt: Attempt, job: SlurmJob, code: int) -> tuple[str, bool]:
    """What follows this attempt, in words, and whether it is this process that brings it about."""
    if code in (0, EXIT_BAD_INPUT):
        return "", False
    state, why = job.state()
    if state != "RUNNING" and why != "TimeLimit":
        return "; Slurm itself ends or requeues the job", False
    most = int(os.environ.get("MEDSSR_IDLE_ATTEMPTS", "3"))
    if count_idle_attempts(attempt.run.root) >= most:
        return f"; not requeued: {most} attempts in a row have added nothing (MEDSSR_IDLE_ATTEMPTS)", False
    return f"; job {job.id} goes on in another attempt", True


def _plan(args: argparse.Namespace, run_dir: Path) -> LaunchPlan:
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


def _parser() -> argparse.ArgumentParser:
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
    parser.add_argument("--killed", type=int, metavar="SIGNAL", help="the launcher was killed: only record and go on")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides; with --slots, the command")
    return parser


if __name__ == "__main__":
    sys.exit(main())
