"""One attempt of a run on the nodes of a Slurm job, from the batch script's point of view.

    supervisors on every node -> preflight on every node -> Ray, head then others -> driver -> end of all

Nothing waits by the clock: each phase ends with an event of its nodes, or with the reason why it cannot. The first
component to fail ends the job; its reason is the last line of the log. Then the job is requeued, or submitted again
where requeue is off, until the work is done or some attempts in a row have added nothing.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medssr_dist.data.jsonl import read_json
from medssr_dist.errors import EXIT_BAD_INPUT, EXIT_STOPPED
from medssr_dist.launch.attempts import Attempt
from medssr_dist.launch.channel import DRIVER, Event, Hub, NodeLost
from medssr_dist.launch.ray_watch import READY
from medssr_dist.launch.slurm import SlurmJob
from medssr_dist.launch.timings import Timings
from medssr_dist.run.paths import RunPaths
from medssr_dist.runtime.network import find_node_address

EXIT_FAULT = 4  # a node or a component was lost; the run can be resumed
_JOIN_S, _PREFLIGHT_S, _RAY_S = 300.0, 300.0, 300.0
# What the driver has to save and end: after a warning (slurm/*.sh ask for it 300 s ahead); after a fault, which may
# hold it up for ever; and when Slurm has sent SIGTERM to all, SIGKILL following after KillWait (30 s by default).
_STOP_S = {signal.SIGUSR1: 240.0, signal.SIGINT: 240.0, None: 60.0, signal.SIGTERM: 5.0}
_END_S = 20.0  # what the supervisors have to end everything and to clean up
_SRUN_S = 10.0  # srun waits for tasks of a dead node until it is told to end
_TICK_S = 1.0


@dataclass(frozen=True)
class LaunchPlan:
    """What the job is to do, from the command line."""

    run_dir: Path
    step: str = "run"
    config: Path | None = None
    overrides: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)  # in place of `medssr STEP`
    slots: int = 0  # logical GPUs of a CPU node, for `command`
    python: str = sys.executable
    prefix: list[str] = field(default_factory=list)
    srun_options: list[str] = field(default_factory=list)

    @property
    def needs_ray(self) -> bool:
        return self.step != "synthesize"

    def medssr(self, command: str, *options: str) -> list[str]:
        """`medssr COMMAND` on this plan's config and run directory, without its overrides."""
        # The console script, not `python -m`: that would put the checkout, and its kernels/, on the import path.
        script = str(Path(self.python).with_name("medssr")) if "/" in self.python else "medssr"
        return [script, command, *options, "--config", str(self.config), "--run-dir", str(self.run_dir)]


class AttemptEnded(Exception):
    """The attempt is over: its exit code and the reason."""

    def __init__(self, code: int, reason: str):
        super().__init__(reason)
        self.code, self.reason = code, reason


class Launcher:
    """Runs one attempt. `run` returns its exit code and the reason."""

    def __init__(self, plan: LaunchPlan, job: SlurmJob, attempt: Attempt, timings: Timings):
        self.plan, self.job, self.attempt, self.timings = plan, job, attempt, timings
        self.hub = Hub(attempt.log)
        self.overrides = plan.overrides
        self.lost_while_voting: str | None = None
        self.driver_runs = False
        self.stopped_by: signal.Signals | None = None

    @property
    def head(self) -> str:
        return self.job.host

    @property
    def _others(self) -> list[str]:
        return [name for name in self.job.nodes if name != self.head]

    async def run(self) -> tuple[int, str]:
        token = self.attempt.new_token()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.hub.put, Event(self.head, "signal", {"number": number}))
        async with self.hub.listen(find_node_address(self._others), token):
            srun = await self._start_supervisors()
            try:
                for phase in (self._join, self._preflight, self._start_ray, self._drive):
                    await phase()
                return 0, "done"
            except AttemptEnded as ended:
                return ended.code, ended.reason
            except NodeLost as lost:
                return EXIT_FAULT, str(lost)
            finally:
                await self._end_supervisors(srun)

    async def _start_supervisors(self) -> asyncio.subprocess.Process:
        plan, count = self.plan, len(self.job.nodes)
        supervisor = [
            plan.python,
            "-m",
            "medssr_dist.launch.supervisor",
            "--launcher",
            self.hub.address,
            "--attempt",
            str(self.attempt.folder),
            "--job",
            str(self.job.id),
        ]
        srun = await asyncio.create_subprocess_exec(
            "srun",
            f"--nodes={count}",
            f"--ntasks={count}",
            "--ntasks-per-node=1",
            "--cpu-bind=none",
            "--mpi=none",
            "--no-kill",
            "--kill-on-bad-exit=0",
            "--wait=0",
            "--unbuffered",
            "--input=none",
            "--open-mode=append",
            f"--output={self.attempt.paths.component_log('%N', 'supervisor')}",
            *plan.srun_options,
            *plan.prefix,
            *supervisor,
            start_new_session=True,
        )
        self._srun = asyncio.create_task(self._srun_ended(srun))
        return srun

    async def _srun_ended(self, srun: asyncio.subprocess.Process) -> None:
        self.hub.put(Event(self.head, "srun", {"code": await srun.wait()}))

    async def _join(self) -> None:
        self.timings.mark("launcher started")
        await self._all("hello", self.job.nodes, _JOIN_S, "connected to the launcher")
        self.timings.mark("a supervisor on every node")

    async def _preflight(self) -> None:
        """Fit the config to the nodes, and let `medssr doctor` judge on every node at once."""
        slots = await self._layout() if self.plan.config else self.plan.slots
        hosts = list(self.job.nodes)
        self.hub.send_all({"do": "prepare", "hosts": hosts, "slots": slots})
        if not self.plan.config:
            return
        folder = str(self.attempt.paths.preflight)
        step = ["--step", self.plan.step]
        node = self.plan.medssr("doctor", "--node", "--out", folder, *step)
        for name in hosts:
            self.hub.start(name, "preflight", [*node, *self.overrides])
        await self._all_ended("preflight", hosts, _PREFLIGHT_S)
        self.hub.start(self.head, "gather", [*self.plan.medssr("doctor", "--gather", folder, *step), *self.overrides])
        await self._all_ended("gather", [self.head], _PREFLIGHT_S)
        self.timings.mark("preflight passed")

    async def _layout(self) -> int:
        self.hub.send(
            self.head,
            {
                "do": "layout",
                "config": str(self.plan.config),
                "overrides": self.overrides,
                "nodes": len(self.job.nodes),
                "step": self.plan.step,
            },
        )
        (event,) = await self._all("layout", [self.head], _JOIN_S, "read the config")
        self.overrides = event.data["overrides"]
        return event.data["slots"]

    async def _start_ray(self) -> None:
        if not self.plan.needs_ray:
            return
        address = self.hub.nodes[self.head]["gcs"]
        self.hub.send(self.head, {"do": "ray", "head": None})
        wanted = [f"{name}={data['ip']}" for name, data in self.hub.nodes.items()]
        watch = [self.plan.python, "-m", "medssr_dist.launch.ray_watch", "--address", address, "--nodes", *wanted]
        await self._wait(lambda event: event.is_line("ray", "Ray runtime started"), _RAY_S, "Ray's head did not start")
        for name in self._others:
            self.hub.send(name, {"do": "ray", "head": address})
        self.hub.start(self.head, "watch", watch)
        await self._wait(lambda event: event.is_line("watch", READY), _RAY_S, "Ray did not start on every node")
        self.timings.mark("Ray on every node")

    async def _drive(self) -> None:
        """Run the driver to its end, while all nodes live; end it where the job has to stop."""
        command = self.plan.command or [*self.plan.medssr(self.plan.step), *self.overrides]
        env = {"RAY_ADDRESS": self.hub.nodes[self.head]["gcs"]} if self.plan.needs_ray else {}
        env["MEDSSR_DEADLINE"] = self.job.ends()
        self.hub.start(self.head, DRIVER, command, env)
        self.driver_runs = True
        try:
            ended = await self._driver_end()
        except (AttemptEnded, NodeLost):
            await self._stop_driver()
            raise
        code, last = ended.data["code"], _telling(ended)
        if code == 0:
            return
        if self.lost_while_voting:
            raise AttemptEnded(EXIT_FAULT, self.lost_while_voting)
        if code in (EXIT_BAD_INPUT, EXIT_STOPPED):
            raise AttemptEnded(code, last)
        await self._find_cause()
        raise AttemptEnded(1, f"the driver ended with exit code {code}: {last}")

    async def _driver_end(self) -> Event:
        """Events until the driver's own end. Raises Ended or NodeLost for what ends the job before that."""
        while True:
            try:
                event = await self._next(_TICK_S)
            except NodeLost as lost:
                self._go_on_without(lost)
                continue
            self.timings.look()
            if event and event.ended == DRIVER:
                return event
            if self.lost_while_voting and self.plan.step == "run" and self._is_finished("vote"):
                raise AttemptEnded(EXIT_FAULT, f"{self.lost_while_voting}; the vote went on and is finished")

    def _go_on_without(self, lost: NodeLost) -> None:
        """Voting goes on with the engines that remain. Raises `lost` in every other step, and without the head."""
        if lost.node == self.head or not self._is_voting():
            raise lost
        self.lost_while_voting = str(lost)
        self.attempt.log("launcher", f"{lost}; voting goes on with the remaining engines")

    def _is_voting(self) -> bool:
        steps = self._steps()
        return "vote" in steps and not self._is_finished("vote") and "stage1" not in steps

    def _is_finished(self, step: str) -> bool:
        return bool(self._steps().get(step, {}).get("finished"))

    def _steps(self) -> dict:
        manifest = RunPaths(self.plan.run_dir).manifest_file
        return read_json(manifest)["steps"] if manifest.exists() else {}

    async def _stop_driver(self) -> None:
        """Ask the driver to save and end; what happens meanwhile changes nothing any more."""
        if not self.driver_runs:
            return
        self.hub.send(self.head, {"do": "signal", "name": DRIVER, "number": signal.SIGTERM})
        await self.hub.until(lambda event: event.ended == DRIVER, self.head, _STOP_S[self.stopped_by])

    async def _find_cause(self) -> None:
        """Raise NodeLost where what was noticed has its cause in a node that is gone or has no Ray."""
        self.hub.send_all({"do": "probe"})
        for event in await self._all("probed", list(self.hub.connected), _JOIN_S, "answered"):
            if not event.data["ray"]:
                raise NodeLost(event.node, f"Ray on {self.hub.describe(event.node)} is gone")

    async def _all(self, kind: str, names: Sequence[str], within_s: float, what: str) -> list[Event]:
        """One event of `kind` from each node of `names`; at the deadline the missing ones are named."""
        waiting, found = set(names), []
        deadline = asyncio.get_running_loop().time() + within_s
        while waiting:
            event = await self._next(deadline - asyncio.get_running_loop().time())
            if event is None:
                raise AttemptEnded(EXIT_FAULT, f"not {what} after {within_s:.0f} s: {', '.join(sorted(waiting))}")
            if event.kind == kind and event.node in waiting:
                waiting.remove(event.node)
                found.append(event)
        return found

    async def _all_ended(self, component: str, names: list[str], within_s: float) -> None:
        """Wait for this part of the preflight on each of `names`. Raises Ended with its last line where one fails."""
        waiting = set(names)
        while waiting:
            event = await self._wait(lambda event: event.ended == component, within_s, f"{component} did not end")
            waiting.discard(event.node)
            if event.data["code"]:
                code = EXIT_BAD_INPUT if event.data["code"] == EXIT_BAD_INPUT else EXIT_FAULT
                where = "" if component == "gather" else f" on {event.node}"  # that one speaks for all nodes
                raise AttemptEnded(code, f"the preflight failed{where}: {_telling(event)}")

    async def _wait(self, wanted: Callable[[Event], bool], within_s: float, failure: str) -> Event:
        deadline = asyncio.get_running_loop().time() + within_s
        while event := await self._next(deadline - asyncio.get_running_loop().time()):
            if wanted(event):
                return event
        raise AttemptEnded(EXIT_FAULT, f"{failure} within {within_s:.0f} s")

    async def _next(self, within_s: float) -> Event | None:
        """The next event, None after `within_s`. Raises Ended or NodeLost for one that ends the attempt."""
        event = await self.hub.next(within_s)
        if event is None:
            return None
        if event.kind == "signal":
            self.stopped_by = signal.Signals(event.data["number"])
            raise AttemptEnded(EXIT_STOPPED, f"stopped by {self.stopped_by.name}")
        if event.kind == "srun":
            raise AttemptEnded(
                EXIT_FAULT,
                f"srun ended with {event.data['code']}; see {self.attempt.paths.component_log('*', 'supervisor')}",
            )
        if event.kind in ("refused", "unfit"):
            code = EXIT_BAD_INPUT if event.kind == "refused" else EXIT_FAULT
            raise AttemptEnded(code, f"{event.node}: {event.data['text']}")
        if event.ended == DRIVER:
            self.driver_runs = False
        if event.ended == "ray":
            raise NodeLost(event.node, f"Ray on {self.hub.describe(event.node)} ended: {_telling(event, 'exit code')}")
        if event.ended == "watch" and not self.lost_while_voting:
            await self._find_cause()
            raise AttemptEnded(EXIT_FAULT, _telling(event))
        return event

    async def _end_supervisors(self, srun: asyncio.subprocess.Process) -> None:
        """Tell all nodes to end, and wait for srun; a node that cannot be reached does not hold it up."""
        self.hub.send_all({"do": "stop"})
        await self.hub.until_empty(_END_S)
        for end in (None, srun.terminate, srun.kill):
            if end and srun.returncode is None:
                end()
            done, _ = await asyncio.wait([self._srun], timeout=_SRUN_S)
            if done:
                return


def _telling(ended: Event, text: str = "") -> str:
    """The line that tells why a component ended: the first of its last ones with `text`, else the last of all."""
    code, tail = ended.data["code"], ended.data["tail"]
    if not tail:
        return f"exit code {code}, nothing printed"
    if not text:
        return tail[-1]
    return next((line.strip() for line in tail if text in line), f"exit code {code}, at the end: {tail[-1]}")
