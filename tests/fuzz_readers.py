"""Feed every reader with damaged input for some minutes each; `make fuzz` calls it. Exit code 1 if one has failed.

    python tests/fuzz_readers.py --seconds 600 [NAME ...]

What a reader fails on is added to tests/fuzz_seeds.jsonl, with its traceback on the terminal.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "helpers"))

from damaged_files import DAMAGE, READERS, keep_seed, make_reader  # noqa: E402
from hypothesis import HealthCheck, Phase, given, seed, settings  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600, help="for each reader (default: 600)")
    parser.add_argument("names", nargs="*", choices=[*READERS, []], help="readers; all without a name")
    args = parser.parse_args()
    logging.disable(logging.WARNING)  # damaged votes are left out with a warning each
    failed = [name for name in args.names or READERS if not fuzz(name, args.seconds)]
    print(f"failed: {', '.join(failed)}" if failed else "no reader has failed")
    return bool(failed)


def fuzz(name: str, seconds: float) -> bool:
    """Feed one reader; return whether it has never failed."""
    deadline, rounds, examples = time.monotonic() + seconds, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        reader = make_reader(name, Path(folder))
        while time.monotonic() < deadline:
            rounds += 1

            @seed(rounds)
            @settings(
                max_examples=50,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
                phases=[Phase.generate, Phase.shrink],
            )
            @given(DAMAGE)
            def run(damage) -> None:
                nonlocal examples
                examples += 1
                reader.check(damage)

            try:
                run()
            except Exception:
                keep_seed(name, reader.last)
                traceback.print_exc()
                print(f"{name}: failed after {examples} examples", flush=True)
                return False
    print(f"{name}: {examples} examples", flush=True)
    return True


if __name__ == "__main__":
    sys.exit(main())
