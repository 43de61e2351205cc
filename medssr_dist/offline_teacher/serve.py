"""`medssr teacher`, also `python -m medssr_dist.offline_teacher.serve`: its options and the server process."""

from __future__ import annotations

import argparse
import asyncio
import errno
import os
import signal
import sys
from dataclasses import fields

from aiohttp import web

from medssr_dist.errors import EXIT_BAD_INPUT, InputError
from medssr_dist.offline_teacher.faults import Faults
from medssr_dist.offline_teacher.replies import NOTICE
from medssr_dist.offline_teacher.server import make_app

DESCRIPTION = (
    f"Serve an OpenAI-compatible endpoint on loopback: an {NOTICE}. It composes multiple-choice questions by rules "
    "from the seeds and passages in the prompt, for the demo and for tests. "
    "Example: medssr teacher --port 8000, then base_url: http://127.0.0.1:8000/v1 under synthesis.endpoints"
)
_PARENT_CHECK_S = 0.5


def add_teacher_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the teacher's options: address, seed, and the faults that it shows on request."""
    parser.add_argument("--host", default="127.0.0.1", help="address to serve on (default: loopback)")
    parser.add_argument("--port", type=int, default=8000, help="0 = any free port (default: 8000)")
    parser.add_argument("--random-seed", type=int, default=42, help="seed of the replies (default: 42)")
    parser.add_argument("--exit-with-parent", type=int, metavar="PID", help="exit when this parent process has ended")
    group = parser.add_argument_group("faults", "misbehave on request; rates are shares of tries, 0 to 1")
    for field in fields(Faults):
        name = "--" + field.name.replace("_", "-") if field.name != "seed" else "--fault-seed"
        text = field.metadata["help"]
        if isinstance(field.default, bool):
            group.add_argument(name, action="store_true", help=text)
        else:
            kind = int if field.type.startswith("int") else float
            group.add_argument(name, type=kind, default=field.default, help=f"{text} (default: {field.default})")


def run_teacher(args: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM. Prints the base URL on one line as soon as requests are accepted.

    Raises:
        InputError: a rate is outside 0..1, or the port cannot be used.
    """
    names = [field.name for field in fields(Faults) if field.name != "seed"]
    faults = Faults(seed=args.fault_seed, **{name: getattr(args, name) for name in names})
    for name in names:
        if name.startswith("rate_") and not 0 <= getattr(faults, name) <= 1:
            raise InputError(f"--{name.replace('_', '-')} {getattr(faults, name):g} is not within 0..1")
    if not 0 <= args.port <= 65535:
        raise InputError(f"--port {args.port} is not within 0..65535; 0 = any free port")
    asyncio.run(serve(args.host, args.port, args.random_seed, faults, args.exit_with_parent))
    return 0


async def serve(host: str, port: int, random_seed: int, faults: Faults, parent: int | None = None) -> None:
    """Serve until a signal arrives, or until process `parent`, if given, is no longer the parent of this one."""
    runner = web.AppRunner(make_app(random_seed, faults), access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        try:
            await site.start()
        except OSError as error:
            raise _explain_port_error(host, port, error) from None
        bound = runner.addresses[0][1]
        print(f"http://{host}:{bound}/v1", flush=True)
        await _wait_for_end(parent)
    finally:
        await runner.cleanup()


async def _wait_for_end(parent: int | None) -> None:
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    while not ended.is_set() and (parent is None or os.getppid() == parent):
        try:
            await asyncio.wait_for(ended.wait(), _PARENT_CHECK_S if parent else None)
        except TimeoutError:
            continue


def _explain_port_error(host: str, port: int, error: OSError) -> Exception:
    if error.errno == errno.EADDRINUSE:
        return InputError(f"port {port} on {host} is taken; choose another with --port, or --port 0 for any free one")
    if error.errno == errno.EACCES:
        return InputError(f"port {port} on {host} needs privileges; choose one above 1023 with --port")
    return error


def main() -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(prog="medssr teacher", description=DESCRIPTION)
    add_teacher_arguments(parser)
    try:
        return run_teacher(parser.parse_args())
    except InputError as error:
        print(f"medssr teacher: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
