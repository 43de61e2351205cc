"""The supervisor of one node: it connects to the launcher and follows its commands until `stop`, or until it is lost.

The launcher's srun starts one on every node. The preflight, Ray and the driver are its child processes. However the
supervisor ends, they end too, and the node's temporary directory is removed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import sys
import traceback
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from medssr_dist.errors import InputError
from medssr_dist.launch import channel
from medssr_dist.launch.channel import DRIVER, Channel, ConnectionLost, NodeInfo
from medssr_dist.launch.ports import NoPorts, claim_ports
from medssr_dist.launch.process import Component, adopt_orphans, kill_descendants
from medssr_dist.launch.ray_node import NodeResources, build_node_environment, build_ray_command
from medssr_dist.run.paths import AttemptPaths
from medssr_dist.runtime.network import find_node_address
from medssr_dist.runtime.temp_dir import open_ray_temp_dir
from medssr_dist.secret_registry import take_variable

_RAY = "ray"
_END_S = 6.0  # from SIGTERM to SIGKILL of a component; Slurm gives the whole job 30 s (KillWait)
_TEXT_CHARS = 4000  # of an error that is sent to the launcher
EXIT_LAUNCHER_LOST = 5


class Supervisor:
    """One node of the job, from its connection to the launcher until its end.

    The launcher's messages name a method: {"do": "start", ...} calls `do_start(...)`.
    """

    def __init__(self, link: Channel, name: str, job: int, attempt: AttemptPaths, temp_dir: Path):
        self.link, self.name, self.attempt, self.temp_dir = link, name, attempt, temp_dir
        self.ip = find_node_address() if "MEDSSR_IFNAME" in os.environ else link.own_ip
        self.resources = NodeResources.from_slurm()
        self.block = claim_ports(self.ip, job)
        self.components: dict[str, Component] = {}
        self.waits: dict[str, asyncio.Task[None]] = {}
        self.env: dict[str, str] = {}
        self.secrets: dict[str, str] = {}

    def say_hello(self) -> None:
        """Report this node to the launcher."""
        info = NodeInfo(self.name, self.ip, f"{self.ip}:{self.block.gcs}", **asdict(self.resources))
        self.link.send({"event": "hello"} | asdict(info))

    async def serve(self) -> None:
        """Follow the launcher's commands until `stop`. Raises ConnectionLost if the launcher is gone."""
        while (message := await self.link.receive())["do"] != "stop":
            await getattr(self, f"do_{message.pop('do')}")(**message)

    async def do_layout(self, config: str, overrides: list[str], nodes: int, step: str) -> None:
        """Answer with the overrides that fit the config to the job, and the logical GPUs of a CPU node."""
        from medssr_dist.launch.fit_config import fit_config

        try:
            fitted = fit_config(Path(config), overrides, nodes, self.resources.gpus, step)
        except InputError as error:
            self.link.send({"event": "refused", "text": str(error)[:_TEXT_CHARS]})
        else:
            secrets = list(fitted.secrets)
            self.link.send(
                {"event": "layout", "overrides": fitted.overrides, "slots": fitted.slots, "secrets": secrets}
            )

    async def do_prepare(self, hosts: list[str], slots: int, secrets: list[str]) -> None:
        """Set the environment of all components of this node; the variables `secrets` are not for Ray's workers."""
        self.slots = slots
        self.secrets = {name: value for name in secrets if (value := take_variable(name)) is not None}
        self.env = build_node_environment(
            self.ip, self.block, slots, hosts, self.resources, self.attempt.token, self.temp_dir
        )

    async def do_ray(self, head: str | None) -> None:
        """Start Ray: the head if `head` is None, else a node that joins the head at this address."""
        command = build_ray_command(head, self.ip, self.block, self.resources, self.slots, self.temp_dir)
        await self._start(_RAY, command, {})

    async def do_start(self, name: str, command: list[str], env: dict[str, str]) -> None:
        """Start a component that reads the config; its lines and its end are sent to the launcher."""
        await self._start(name, command, self.secrets | env)

    async def _start(self, name: str, command: list[str], env: dict[str, str]) -> None:
        log = self.attempt.component_log(self.name, name)
        component = await Component.start(name, command, self.env | env, log, self._send_line)
        self.components[name] = component
        self.waits[name] = asyncio.create_task(self._report_end(component))

    async def do_signal(self, name: str, number: int) -> None:
        """Send a signal to a component."""
        self.components[name].signal(number)

    async def do_probe(self) -> None:
        """Answer whether this node's Ray still listens."""
        self.link.send({"event": "probed", "ray": _RAY not in self.waits or await self._is_ray_listening()})

    async def _is_ray_listening(self) -> bool:
        port = next(int(option.split("=")[1]) for option in self.block.ray_options(True) if "node-manager" in option)
        try:
            _, writer = await asyncio.open_connection(self.ip, port)
        except OSError:
            return False
        writer.close()
        return True

    async def _report_end(self, component: Component) -> None:
        code = await component.wait()
        self.link.send({"event": "ended", "name": component.name, "code": code, "tail": list(component.tail)})

    def _send_line(self, name: str, text: str) -> None:
        self.link.send({"event": "line", "name": name, "text": text})

    async def end_all(self) -> None:
        """End the driver, which leaves Ray first, then all other components in parallel, then any process they left."""
        others = [name for name in self.components if name != DRIVER]
        for names in ([DRIVER], others):
            await asyncio.gather(*(self._end(name) for name in names if name in self.components))
        kill_descendants()

    async def _end(self, name: str) -> None:
        component = self.components[name]
        component.signal(signal.SIGTERM)
        await asyncio.wait([self.waits[name]], timeout=_END_S)
        component.kill()
        await self.waits[name]


async def supervise(launcher: str, attempt: AttemptPaths, job: int) -> int:
    """Supervise this node until the end of the job. Return the exit code.

    Args:
        launcher: its address, "IP:PORT".
        job: Slurm's id of the job; it chooses where the search for free ports starts.
    Raises:
        AuthenticationFailed: the process at that address does not know the job's token.
    """
    name = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    host, port = launcher.rsplit(":", 1)
    scratch = os.environ.get("MEDSSR_SCRATCH")
    link = await channel.connect(host, int(port), attempt.token.read_text())
    with ExitStack() as stack:
        try:
            temp_dir = stack.enter_context(
                open_ray_temp_dir(attempt.folder, Path(scratch) if scratch else None, f"{name}.")
            )
            supervisor = Supervisor(link, name, job, attempt, temp_dir)
        except (InputError, NoPorts, OSError) as error:
            link.send({"event": "unfit", "name": name, "text": str(error)[:_TEXT_CHARS]})
            await link.close()
            return 1
        return await _serve(supervisor)


async def _serve(supervisor: Supervisor) -> int:
    link = supervisor.link
    # Slurm's SIGTERM reaches every process of the job at once; the launcher decides what follows.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        asyncio.get_running_loop().add_signal_handler(number, link.send, {"event": "signal", "number": number})
    heartbeats = asyncio.create_task(link.send_heartbeats())
    supervisor.say_hello()
    try:
        await supervisor.serve()
        return 0
    except ConnectionLost as lost:
        print(f"{supervisor.name}: the launcher is lost, {lost}; everything on this node ends", flush=True)
        return EXIT_LAUNCHER_LOST
    except Exception as error:  # packages that do not fit, for example: the launcher gets the reason before the end
        lines = traceback.format_exc()[-_TEXT_CHARS:].splitlines()
        link.send({"event": "failed", "text": f"{type(error).__name__}: {error}"[:_TEXT_CHARS], "lines": lines})
        raise
    finally:
        await supervisor.end_all()
        heartbeats.cancel()
        await link.close()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m medssr_dist.launch.supervisor", description=__doc__)
    parser.add_argument("--launcher", required=True, metavar="IP:PORT")
    parser.add_argument("--attempt", required=True, type=Path, metavar="FOLDER")
    parser.add_argument("--job", required=True, type=int)
    args = parser.parse_args()
    os.umask(0o077)
    adopt_orphans()
    return asyncio.run(supervise(args.launcher, AttemptPaths(args.attempt), args.job))


if __name__ == "__main__":
    sys.exit(main())
