"""`medssr status --watch`: the status of a run as a live table, until the run ends or Ctrl-C."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from medssr_dist.commands.status import RunStatus, StepStatus, read_status, render_status
from medssr_dist.errors import InputError, escape_controls
from medssr_dist.run.clock import format_duration
from medssr_dist.secret_registry import scrub

_COLOURS = {"running": "green", "finished": "cyan", "interrupted": "yellow", "not begun": "dim", "off": "dim"}
_SHOWN_METRICS = ("step", "reward", "kl", "entropy", "response_length", "validation_accuracy")


def watch_status(run_dir: Path, every: float) -> None:
    """Show the status anew every `every` seconds, until the run is no longer running.

    Where the output is no terminal, each look is printed below the last one.

    Raises:
        InputError: `run_dir` is not a run directory, or `every` is not above 0.
    """
    if not 0 < every < float("inf"):
        raise InputError(f"--every {every:g} is no time between two looks; give seconds above 0")
    status = read_status(run_dir)
    if not sys.stdout.isatty():
        _print_looks(status, run_dir, every)
        return
    # The stream of the process itself: the table is clean, and its cursor moves must pass.
    with Live(render_live(status), console=Console(file=sys.__stdout__), auto_refresh=False) as live:
        while status.running:
            time.sleep(every)
            status = read_status(run_dir)
            live.update(render_live(status), refresh=True)


def _print_looks(status: RunStatus, run_dir: Path, every: float) -> None:
    print(render_status(status), end="", flush=True)
    while status.running:
        time.sleep(every)
        status = read_status(run_dir)
        print(f"\n{render_status(status)}", end="", flush=True)


def render_live(status: RunStatus) -> Group:
    """Return the status as a table with a bar for each step, the newest metrics and the newest problem."""
    table = Table(title=_clean(f"run {status.run}"), title_justify="left", expand=True)
    for column in ("step", "state", "done", "", "time left", "notes"):
        table.add_column(column, overflow="fold", ratio=3 if column == "notes" else None)
    for step in status.steps:
        table.add_row(*_list_cells(step))
    lines = [_describe_metrics(stage, found) for stage, found in status.metrics.items()]
    lines += [f"attempt {attempt.number}: {attempt.end}" for attempt in status.attempts[-1:]]
    lines.append(f"newest problem: {status.problem}" if status.problem else "no problem in the logs")
    lines.append(f"{'running' if status.running else 'not running'}, {time.strftime('%H:%M:%S')}; Ctrl-C ends the view")
    return Group(table, *map(_clean, lines))


def _list_cells(step: StepStatus) -> list[Text | ProgressBar]:
    done = "" if step.done is None else f"{step.done:,}" + ("" if step.total is None else f" of {step.total:,}")
    bar: Text | ProgressBar = Text("")
    if step.done is not None and step.total:
        bar = ProgressBar(total=step.total, completed=min(step.done, step.total), width=20)
    left = "" if step.seconds_left is None else format_duration(step.seconds_left)
    state = Text(step.state, style=_COLOURS[step.state])
    return [Text(step.step), state, _clean(f"{done} {step.unit}".strip()), bar, Text(left), _clean(step.note)]


def _describe_metrics(stage: str, found: dict[str, object]) -> str:
    shown = [f"{name} {value:.4g}" for name in _SHOWN_METRICS if isinstance(value := found.get(name), int | float)]
    return f"{stage}: {', '.join(shown)}"


def _clean(text: str) -> Text:
    """Return a text without secrets, and with control characters as text: nothing in a file steers the terminal."""
    return Text(escape_controls(scrub(text)))
