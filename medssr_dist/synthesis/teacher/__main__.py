"""`python -m medssr_dist.synthesis.teacher`: the teacher without the rest of the command line."""

from __future__ import annotations

import argparse
import sys

from medssr_dist.errors import EXIT_BAD_INPUT, InputError
from medssr_dist.synthesis.teacher.cli import DESCRIPTION, add_teacher_arguments, run_teacher


def main() -> int:
    parser = argparse.ArgumentParser(prog="medssr teacher", description=DESCRIPTION)
    add_teacher_arguments(parser)
    try:
        return run_teacher(parser.parse_args())
    except InputError as error:
        print(f"medssr teacher: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
