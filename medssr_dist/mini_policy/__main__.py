"""`python -m medssr_dist.mini_policy`: the options of `make mini-policy`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from medssr_dist.errors import EXIT_BAD_INPUT, InputError
from medssr_dist.mini_policy.make import MiniGoal, MiniPlan, make_mini_policy
from medssr_dist.runtime.logs import set_up_logging


def main(arguments: list[str] | None = None) -> int:
    """Make the mini policy; returns the exit code: 0 done, 2 bad input or goal not met."""
    args = _build_parser().parse_args(arguments)
    set_up_logging()
    try:
        folder = make_mini_policy(_read_plan(args))
    except InputError as error:
        print(f"mini-policy: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    print(f"The mini policy is in {folder}")
    return 0


def _build_parser() -> argparse.ArgumentParser:
    goal, plan = MiniGoal(), MiniPlan(Path())
    parser = argparse.ArgumentParser(
        prog="python -m medssr_dist.mini_policy",
        description="Train the mini policy from scratch on text made from HPO, until its accuracy lies in a range. "
        "The same command continues a run that was ended.",
    )
    add = parser.add_argument
    add("--work", type=Path, required=True, help="folder for checkpoint, measurements and the finished model")
    add("--seed", type=int, default=plan.seed, help="of text, weights and questions (default: %(default)s)")
    add("--threads", type=int, default=2, help="of torch (default: %(default)s)")
    add("--hours", type=float, default=plan.limit / 3600, help="longest training (default: %(default)g)")
    add("--every", type=float, default=plan.every, help="seconds of training between checks (default: %(default)g)")
    add("--low", type=float, default=goal.low, help="lowest accuracy to stop at (default: %(default)g)")
    add("--high", type=float, default=goal.high, help="highest accuracy to stop at (default: %(default)g)")
    add("--gap", type=float, default=goal.gap, help="majority above accuracy, at least (default: %(default)g)")
    return parser


def _read_plan(args: argparse.Namespace) -> MiniPlan:
    """Check the options. Raises InputError with the option and its fix."""
    for name in ("threads", "hours", "every"):
        if getattr(args, name) <= 0:
            raise InputError(f"--{name} {getattr(args, name):g} must be above 0")
    if not 0 <= args.low < args.high <= 1:
        raise InputError(f"--low {args.low:g} and --high {args.high:g} must be shares from 0 to 1, low below high")
    if not 0 <= args.gap <= 1:
        raise InputError(f"--gap {args.gap:g} is not within 0..1")
    import torch

    torch.set_num_threads(args.threads)
    goal = MiniGoal(args.low, args.high, args.gap)
    return MiniPlan(args.work, goal, seed=args.seed, every=args.every, limit=args.hours * 3600)


if __name__ == "__main__":
    sys.exit(main())
