"""One attempt of a run on the nodes of a Slurm job, as the batch script sees it.

    supervisors on every node -> preflight on every node -> Ray on the head, then on the others -> driver -> end

No phase sleeps for a fixed time: it ends with an event from its nodes, or with the reason why it failed. The first
component to fail ends the attempt, and its reason is the last line of the log. `__main__.py` then requeues the job, or
submits it again if requeue is off, until the work is done or several attempts in a row have made no progress.
"""

from __future__ import annotations

import asyncio
import math
import os
import signal
from collections.abc import Callable, Sequence
from typing import Any

from medssr_dist.errors import EXIT_BAD_INPUT, EXIT_STOPPED, InputError
from medssr_dist.launch.attempts import Attempt, AttemptExit, read_step_states
from medssr_dist.launch.channel import DRIVER, Event, Hub, NodeLost
from medssr_dist.launch.launch_plan import LaunchPlan
from medssr_dist.launch.ray_watch import READY
from medssr_dist.launch.slurm import SlurmJob
from medssr_dist.launch.srun import build_srun_command, clean_for_srun
from medssr_dist.launch.timings import Timings
from medssr_dist.run.paths import RunPaths
from medssr_dist.runtime.network import find_node_address

EXIT_FAULT = 4  # a node or a component was lost; the run can be resumed
# Limits of the phases before the driver, seconds, unless these variables set others. A cold shared file system needs
# minutes to import the libraries.
JOIN_VARIABLE, PREFLIGHT_VARIABLE, RAY_VARIABLE = "MEDSSR_JOIN_S", "MEDSSR_PREFLIGHT_S", "MEDSSR_RAY_S"
_LIMITS_S = {JOIN_VARIABLE: 600.0, PREFLIGHT_VARIABLE: 900.0, RAY_VARIABLE: 600.0}
_ANSWER_S = 300.0  # for an answer of a supervisor that is connected
# How long the driver has to save and end: after Slurm's warning (300 s before the limit, see slurm/*.sh); after a
# fault (None), which may block the driver forever; after SIGTERM, since SIGKILL follows KillWait (30 s) later.
_STOP_S = {signal.SIGUSR1: 240.0, signal.SIGINT: 240.0, None: 60.0, signal.SIGTERM: 5.0}
_END_S = 20.0  # how long the supervisors have to end everything and to clean up
_SRUN_S = 10.0  # srun waits for the tasks of a dead node until it gets a signal
_TICK_S = 1.0
_IMPORT_ERRORS = ("ImportError", "ModuleNotFoundError", "AttributeError")
_USER_SITE = "/.local/lib/python"  # in the path of a package that `pip install --user` has installed
_LAST_LINES = 50  # of a supervisor's log, in which an error is looked for


def _limit(variable: str) -> float:
    """Return the limit of a phase in seconds. Raises InputError if its variable is set to no positive number."""
    text = os.environ.get(variable, "")
    try:
        seconds = float(text) if text else _LIMITS_S[variable]
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise InputError(f"{variable} = {text!r} is not a time; give seconds, for example {_LIMITS_S[variable]:.0f}")
    return seconds


def _explain_import(error: str, lines: Sequence[str]) -> str:
    """Return which packages hide the installed ones, if that may be why `error`, of a log's `lines`, was raised."""
    if not error.startswith(_IMPORT_ERRORS):
        return ""
    if any(_USER_SITE in line for line in lines):
        return " (packages in ~/.local come before the installed packages; export PYTHONNOUSERSITE=1)"
    shadow = os.environ.get("PYTHONPATH", "")
    return f" (PYTHONPATH={shadow} comes before the installed packages)" if shadow else ""


class AttemptEnded(Exception):
    """The attempt is over, with this exit code and reason."""

    def __init__(self, code: int, reason: str):
        super().__init__(reason)
        self.exit = AttemptExit(code, reason)


class Launcher:
    """Runs one attempt of `job`."""

    def __init__(self, plan: LaunchPlan, job: SlurmJob, attempt: Attempt, timings: Timings):
        self.plan, self.job, self.attempt, self.timings = plan, job, attempt, timings
        self.hub = Hub(attempt.log)
        self.overrides = plan.overrides
        self.lost_in_vote: str | None = None  # the first node lost while the vote continues without it
        self.is_driver_running = False
        self.stopped_by: signal.Signals | None = None

    @property
    def head(self) -> str:
        """The node of the batch script: Ray's head and the driver run there."""
        return self.job.host

    @property
    def _others(self) -> list[str]:
        return [name for name in self.job.nodes if name != self.head]

    async def run(self) -> AttemptExit:
        """Run all phases and return how the attempt ended. Raises OSError or InputError if it cannot start."""
        token = self.attempt.create_token()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.hub.put, Event(self.head, "signal", {"number": number}))
        async with self.hub.listen(find_node_address(self._others), token):
            srun = await self._start_supervisors()
            try:
                for phase in (self._join, self._preflight, self._start_ray, self._drive):
                    await phase()
                return AttemptExit(0, "done")
            except AttemptEnded as ended:
                return ended.exit
            except NodeLost as lost:
                return AttemptExit(EXIT_FAULT, f"{lost}{self._read_last_error(lost.node)}")
            finally:
                await self._end_supervisors(srun)

    def _read_last_error(self, node: str) -> str:
        """Return the last error that the node's supervisor has logged, to be appended to a reason; "" if none."""
        log = self.attempt.paths.component_log(node, "supervisor")
        lines = log.read_text("utf-8", "replace").splitlines() if log.exists() else []
        errors = [line.strip() for line in lines[-_LAST_LINES:] if "Error" in line.partition(":")[0]]
        if not errors:
            return ""
        return f": {errors[-1]}{_explain_import(errors[-1], lines)}"

    async def _start_supervisors(self) -> asyncio.subprocess.Process:
        plan, log = self.plan, self.attempt.paths.component_log("%N", "supervisor")
        supervisor = [plan.python, "-m", "medssr_dist.launch.supervisor"]
        supervisor += ["--launcher", self.hub.address, "--attempt", str(self.attempt.folder), "--job", str(self.job.id)]
        srun = await asyncio.create_subprocess_exec(
            *build_srun_command(len(self.job.nodes), log, plan.srun_options),
            *plan.prefix,
            *supervisor,
            env=clean_for_srun(os.environ),
            start_new_session=True,
        )
        self._srun = asyncio.create_task(self._report_srun_end(srun))
        return srun

    async def _report_srun_end(self, srun: asyncio.subprocess.Process) -> None:
        self.hub.put(Event(self.head, "srun", {"code": await srun.wait()}))

    async def _join(self) -> None:
        self.timings.record("launcher started")
        await self._gather("hello", self.job.nodes, _limit(JOIN_VARIABLE), "connected to the launcher")
        self.timings.record("a supervisor on every node")

    async def _preflight(self) -> None:
        """Fit the config to the nodes, and run `medssr doctor` on every node in parallel."""
        layout = await self._fit_config() if self.plan.config else {"slots": self.plan.slots, "secrets": []}
        hosts = list(self.job.nodes)
        self.hub.send_all({"do": "prepare", "hosts": hosts} | layout)
        if not self.plan.config:
            return
        folder = str(self.attempt.paths.preflight)
        step = ["--step", self.plan.step]
        node = self.plan.build_command("doctor", "--node", "--out", folder, *step)
        for name in hosts:
            self.hub.start(name, "preflight", [*node, *self.overrides])
        await self._wait_for_ends("preflight", hosts, _limit(PREFLIGHT_VARIABLE))
        self.hub.start(
            self.head, "gather", [*self.plan.build_command("doctor", "--gather", folder, *step), *self.overrides]
        )
        await self._wait_for_ends("gather", [self.head], _limit(PREFLIGHT_VARIABLE))
        self.timings.record("preflight passed")

    async def _fit_config(self) -> dict[str, Any]:
        """Replace the overrides by those that fit the job; return what else the nodes have to know of the config."""
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
        (event,) = await self._gather("layout", [self.head], _ANSWER_S, "read the config")
        self.overrides = event.data["overrides"]
        return {name: event.data[name] for name in ("slots", "secrets")}

    async def _start_ray(self) -> None:
        if not self.plan.needs_ray:
            return
        address = self.hub.nodes[self.head].gcs
        self.hub.send(self.head, {"do": "ray", "head": None})
        wanted = [f"{name}={node.ip}" for name, node in self.hub.nodes.items()]
        watch = [self.plan.python, "-m", "medssr_dist.launch.ray_watch", "--address", address, "--nodes", *wanted]
        limit = _limit(RAY_VARIABLE)
        await self._wait(lambda event: event.is_line("ray", "Ray runtime started"), limit, "Ray's head did not start")
        for name in self._others:
            self.hub.send(name, {"do": "ray", "head": address})
        self.hub.start(self.head, "watch", watch)
        await self._wait(lambda event: event.is_line("watch", READY), limit, "Ray did not start on every node")
        self.timings.record("Ray on every node")

    async def _drive(self) -> None:
        """Run the driver until it ends; stop it if the job has to stop or a node is lost."""
        command = self.plan.command or [*self.plan.build_command(self.plan.step), *self.overrides]
        env = {"RAY_ADDRESS": self.hub.nodes[self.head].gcs} if self.plan.needs_ray else {}
        end = self.job.read_end()
        env["MEDSSR_DEADLINE"] = "" if end is None else str(end)  # not a local time: a container may be in another zone
        self.hub.start(self.head, DRIVER, command, env)
        self.is_driver_running = True
        try:
            ended = await self._wait_for_driver()
        except (AttemptEnded, NodeLost):
            await self._stop_driver()
            raise
        code, last = ended.data["code"], _find_reason_line(ended)
        if code == 0:
            return
        if self.lost_in_vote:
            raise AttemptEnded(EXIT_FAULT, self.lost_in_vote)
        if code in (EXIT_BAD_INPUT, EXIT_STOPPED):
            raise AttemptEnded(code, last)
        await self._find_cause()
        raise AttemptEnded(1, f"the driver ended with exit code {code}: {last}")

    async def _wait_for_driver(self) -> Event:
        """Return the event of the driver's end. Raises AttemptEnded or NodeLost if the attempt ends before it."""
        while True:
            try:
                event = await self._next(_TICK_S)
            except NodeLost as lost:
                self._continue_without(lost)
                continue
            self.timings.record_from_files()
            if event and event.ended == DRIVER:
                return event
            if self.lost_in_vote and self.plan.step == "run" and self._is_finished("vote"):
                raise AttemptEnded(EXIT_FAULT, f"{self.lost_in_vote}; the vote continued and is finished")

    def _continue_without(self, lost: NodeLost) -> None:
        """Let the vote continue with the remaining engines. Raises `lost` in other steps, or if it is the head."""
        if lost.node == self.head or not self._is_only_voting():
            raise lost
        self.lost_in_vote = str(lost)
        self.attempt.log("launcher", f"{lost}; the vote continues with the remaining engines")

    def _is_only_voting(self) -> bool:
        steps = read_step_states(RunPaths(self.plan.run_dir))
        return steps.get("vote") is False and "stage1" not in steps

    def _is_finished(self, step: str) -> bool:
        return read_step_states(RunPaths(self.plan.run_dir)).get(step, False)

    async def _stop_driver(self) -> None:
        """Ask the driver to save and end. Events that come meanwhile are dropped: the attempt's end is decided."""
        if not self.is_driver_running:
            return
        self.hub.send(self.head, {"do": "signal", "name": DRIVER, "number": signal.SIGTERM})
        await self.hub.skip_until(lambda event: event.ended == DRIVER, self.head, _STOP_S[self.stopped_by])

    async def _find_cause(self) -> None:
        """Raise NodeLost if a node that is gone, or whose Ray is gone, explains what happened."""
        self.hub.send_all({"do": "probe"})
        for event in await self._gather("probed", list(self.hub.connected), _ANSWER_S, "answered"):
            if not event.data["ray"]:
                raise NodeLost(event.node, f"Ray on {self.hub.describe(event.node)} is gone")

    def _describe_stranger(self, name: str) -> str:
        return (
            f"a node has connected as {name!r}, which is not a node of this job ({', '.join(self.job.nodes)}): its "
            "container hides Slurm's variables; leave out --cleanenv, or pass SLURMD_NODENAME and the other SLURM_* on"
        )

    async def _gather(self, kind: str, names: Sequence[str], within_s: float, what: str) -> list[Event]:
        """Wait for an event of `kind` from each node of `names`. Raises AttemptEnded naming the nodes that are late."""
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

    async def _wait_for_ends(self, component: str, names: list[str], within_s: float) -> None:
        """Wait for the end of a part of the preflight on each of `names`. Raises AttemptEnded if it fails on one."""
        waiting = set(names)
        while waiting:
            event = await self._wait(lambda event: event.ended == component, within_s, f"{component} did not end")
            waiting.discard(event.node)
            if event.data["code"]:
                code = EXIT_BAD_INPUT if event.data["code"] == EXIT_BAD_INPUT else EXIT_FAULT
                where = "" if component == "gather" else f" on {event.node}"  # `gather` checks the reports of all nodes
                raise AttemptEnded(code, f"the preflight failed{where}: {_find_reason_line(event)}")

    async def _wait(self, is_wanted: Callable[[Event], bool], within_s: float, failure: str) -> Event:
        deadline = asyncio.get_running_loop().time() + within_s
        while event := await self._next(deadline - asyncio.get_running_loop().time()):
            if is_wanted(event):
                return event
        raise AttemptEnded(EXIT_FAULT, f"{failure} within {within_s:.0f} s")

    async def _next(self, within_s: float) -> Event | None:
        """Return the next event; None after `within_s` seconds. Raises AttemptEnded or NodeLost to end the attempt."""
        event = await self.hub.next(within_s)
        if event is None:
            return None
        if event.kind == "signal":
            self.stopped_by = signal.Signals(event.data["number"])
            raise AttemptEnded(EXIT_STOPPED, f"stopped by {self.stopped_by.name}")
        if event.kind == "hello" and event.node not in self.job.nodes:
            raise AttemptEnded(EXIT_BAD_INPUT, self._describe_stranger(event.node))
        if event.kind == "srun":
            error = next(filter(None, map(self._read_last_error, self.job.nodes)), "")
            logs = self.attempt.paths.component_log("*", "supervisor")
            raise AttemptEnded(EXIT_FAULT, f"srun ended with {event.data['code']}{error}; see {logs}")
        if event.kind in ("refused", "unfit"):
            code = EXIT_BAD_INPUT if event.kind == "refused" else EXIT_FAULT
            raise AttemptEnded(code, f"{event.node}: {event.data['text']}")
        if event.kind == "failed":
            hint = _explain_import(event.data["text"], event.data["lines"])
            raise AttemptEnded(EXIT_FAULT, f"{event.node}: the supervisor failed: {event.data['text']}{hint}")
        if event.ended == DRIVER:
            self.is_driver_running = False
        if event.ended == "ray":
            raise NodeLost(
                event.node, f"Ray on {self.hub.describe(event.node)} ended: {_find_reason_line(event, 'exit code')}"
            )
        if event.ended == "watch" and not self.lost_in_vote:
            await self._find_cause()
            raise AttemptEnded(EXIT_FAULT, _find_reason_line(event))
        return event

    async def _end_supervisors(self, srun: asyncio.subprocess.Process) -> None:
        """Ask all supervisors to end, and wait for srun; a node that cannot be reached does not block this."""
        self.hub.send_all({"do": "stop"})
        await self.hub.skip_until_disconnected(_END_S)
        for end in (None, srun.terminate, srun.kill):
            if end and srun.returncode is None:
                end()
            done, _ = await asyncio.wait([self._srun], timeout=_SRUN_S)
            if done:
                return


def _find_reason_line(ended: Event, text: str = "") -> str:
    """Return the line that says why a component ended: the first of its last lines with `text`, else the last line."""
    code, tail = ended.data["code"], ended.data["tail"]
    if not tail:
        return f"exit code {code}, nothing printed"
    if not text:
        return tail[-1]
    return next((line.strip() for line in tail if text in line), f"exit code {code}, at the end: {tail[-1]}")
