"""Vote and train on a tiny model for half an hour under random faults; `make soak` calls it. Needs root, for mounts.

    python tests/soak.py --minutes 30

It repeats runs (vote of 24 questions, stage 1) in namespaces of its own for mounts and processes, with a small disk.
Meanwhile it kills processes of the run at random, fills the disk and empties it, and sends garbage to every port on
which the run listens. A run that has ended is started again by the same command, until it is done; then its files and
what is left of its processes are counted. Exit code 1 if a vote, label or step is lost or doubled, or if something has
leaked.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "helpers"))

import psutil  # noqa: E402
import yaml  # noqa: E402
from places import REPO  # noqa: E402
from stored_votes import stored_labels, stored_votes  # noqa: E402
from tiny_policy import teach_answer_format, tiny_llama, tiny_tokenizer  # noqa: E402

from medssr_dist.bench.result_file import write_result  # noqa: E402
from medssr_dist.data.jsonl import read_jsonl  # noqa: E402
from medssr_dist.run.paths import RunPaths  # noqa: E402

INSIDE = "MEDSSR_SOAK"  # set within the namespaces
FULL_DISK = "full disk"
PARTS = {  # what the command lines of a run's processes hold
    "driver": "medssr_dist.cli",
    "engine": "ray::Vllm",
    "engine core": "VLLM::EngineCore",
    "rank": "ray::PolicyRank",
    "raylet": "raylet/raylet",
    "store": "gcs/gcs_server",
}
WRONG = ("lost", "doubled", "leaked", "failed")
GARBAGE = [b"\0" * 100, b"GET / HTTP/1.1\r\n\r\n", b"\xff\xfe\n", b"{" * 10_000, b""]
DISK_MIB = 192
PAUSE_S = (5, 300)  # least and most time between two faults: under load, a start alone takes two minutes
LEFT_S = 5.0  # in which what a run has started must be gone
HANG_S = 900.0  # after which a run without faults counts as hanging
STEPS = 4


@dataclass
class Report:
    """What was done, and what went wrong."""

    faults: Counter[str] = field(default_factory=Counter)
    faulty: Counter[str] = field(default_factory=Counter)
    ends: Counter[int] = field(default_factory=Counter)
    runs: int = 0
    ended_by_full_disk: int = 0

    def __str__(self) -> str:
        wrong = ", ".join(f"{name} {self.faulty[name]}" for name in WRONG)
        faults = f"{dict(self.faults)}, {self.ended_by_full_disk} ends by a full disk"
        return f"{self.runs} runs; faults {faults}; exit codes {dict(self.ends)}; {wrong}"

    def write(self, path: Path, minutes: float) -> None:
        """Write the counts as a benchmark's result."""
        path.parent.mkdir(parents=True, exist_ok=True)
        wrong = {name: self.faulty[name] for name in WRONG}
        ends = {"exit_codes": dict(self.ends), "ends_by_full_disk": self.ended_by_full_disk}
        write_result(path, {"minutes": minutes, "runs": self.runs, "faults": dict(self.faults)} | ends | wrong)


class SoakRun:
    """One run, its faults and its check."""

    def __init__(self, work: Path, number: int, report: Report):
        self.paths, self.report, self.number = RunPaths(work / "disk" / f"run{number}"), report, number
        self.rng, self.work = random.Random(number), work
        command = [sys.executable, "-m", "medssr_dist.cli", "run", "--config", str(work / "config.yaml")]
        self.command = [*command, "--run-dir", str(self.paths.root), f"runtime.random_seed={number}"]

    def run(self, deadline: float) -> None:
        """Start the command until it is done; faults happen before `deadline` only."""
        while True:
            with open(self.work / f"run{self.number}.log", "ab") as log:
                environment = os.environ | {"TMPDIR": str(self.work / "tmp")}
                process = subprocess.Popen(self.command, stdout=log, stderr=log, env=environment)
            while process.poll() is None and time.monotonic() < deadline:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(self.rng.uniform(*PAUSE_S))
                    break
                self._do_harm(process)
            with suppress(subprocess.TimeoutExpired):
                process.wait(HANG_S)
            if process.poll() is None or time.monotonic() > deadline + HANG_S:
                process.kill()
                self.report.faulty["failed"] += 1
                return
            self.report.ends[process.returncode] += 1
            if process.returncode == 0:
                return

    def _do_harm(self, process: subprocess.Popen) -> None:
        """Do the fault that has happened least often; where nothing of its part runs, the next one."""
        faults = self.report.faults
        for part in sorted([*PARTS, FULL_DISK], key=lambda part: (faults[part], self.rng.random())):
            if self._fill_disk(process) if part == FULL_DISK else self._kill(part):
                faults[part] += 1
                return

    def _kill(self, part: str) -> bool:
        """Kill a process of this part; return whether there is one."""
        found = [each for each in list_processes() if PARTS[part] in " ".join(read_command(each))]
        with suppress(psutil.NoSuchProcess, IndexError):
            self.rng.choice(found).send_signal(signal.SIGKILL)
            return True
        return False

    def _fill_disk(self, process: subprocess.Popen) -> bool:
        """Keep the disk full for up to a minute, or until the run has ended of it; then make it empty again."""
        filler, deadline = self.work / "disk" / "filler", time.monotonic() + self.rng.uniform(1, 60)
        with open(filler, "wb", buffering=0) as file:
            while time.monotonic() < deadline and process.poll() is None:
                with suppress(OSError):  # no space left
                    while True:
                        file.write(bytes(2**16))
                time.sleep(0.1)
        filler.unlink()
        self.report.ended_by_full_disk += process.poll() is not None
        return True

    def check(self) -> None:
        """Count what is lost, doubled or left over."""
        faulty = self.report.faulty
        voting = self.paths.voting.folder
        questions = [row["id"] for row in read_jsonl(self.paths.synthesis.questions)]
        labels = stored_labels(voting)
        named = Counter(label.question.id for label in labels)
        votes = Counter(vote.key for vote in stored_votes(voting))
        paid = Counter(row["provenance"]["index"] for row in read_jsonl(self.paths.synthesis.journal))
        steps = Counter(row["step"] for row in read_jsonl(self.paths.stage("stage1").metrics))
        faulty["doubled"] += sum(number - 1 for counts in (named, votes, paid, steps) for number in counts.values())
        faulty["lost"] += len(set(questions) - set(named)) + len(set(range(len(paid))) - set(paid))
        faulty["lost"] += len(set(range(1, STEPS + 1)) - set(steps))
        faulty["lost"] += abs(sum(label.taken for label in labels) - len(votes))
        faulty["lost"] += not self.paths.stage("stage1").hf.exists()
        faulty["leaked"] += self._count_left()
        self.report.runs += 1

    def _count_left(self) -> int:
        deadline = time.monotonic() + LEFT_S
        while (left := self._list_left()) and time.monotonic() < deadline:
            time.sleep(0.5)
        for each in left:
            print(f"left over: {each}", flush=True)
        return len(left)

    def _list_left(self) -> list[str]:
        processes = [f"process {each.pid} {' '.join(read_command(each))[:100]}" for each in list_processes()]
        files = [
            *Path("/dev/shm").iterdir(),
            *(self.work / "tmp").glob("*/session*"),
            *(self.work / "tmp").glob("*/*/session*"),
        ]
        return processes + [str(file) for file in files]


def list_processes() -> list[psutil.Process]:
    """Return all processes that runs have started: all in the namespace but its first process and this one."""
    found = []
    for each in psutil.process_iter():
        with suppress(psutil.Error):
            if each.pid not in (1, os.getpid()) and each.status() != psutil.STATUS_ZOMBIE:
                found.append(each)
    return found


def read_command(process: psutil.Process) -> list[str]:
    """Return a process's command line; [] if it has ended."""
    with suppress(psutil.Error):
        return process.cmdline()
    return []


def send_garbage(report: Report, ended: threading.Event) -> None:
    """Send garbage to every port on which processes of a run listen, again and again."""
    rng = random.Random(0)
    while not ended.wait(2):
        doors = set()
        for each in list_processes():
            with suppress(psutil.Error):
                doors |= {tuple(door.laddr) for door in each.net_connections("tcp") if door.status == "LISTEN"}
        for address, port in doors:
            with suppress(OSError), socket.create_connection((address, port), timeout=1) as link:
                link.sendall(rng.choice(GARBAGE))
                report.faults["garbage"] += 1


def prepare(work: Path) -> None:
    """Mount the disk of the runs, and write the model and the config."""
    for name in ("disk", "tmp", "model"):
        (work / name).mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(work / "disk")], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16g", "tmpfs", "/dev/shm"], check=True)
    tokenizer = tiny_tokenizer()
    teach_answer_format(tiny_llama(len(tokenizer)).float(), tokenizer).bfloat16().save_pretrained(work / "model")
    tokenizer.save_pretrained(work / "model")
    stage = {
        "prompts_per_step": 2,
        "samples_per_prompt": 4,
        "micro_batch_size": 4,
        "max_new_tokens": 1,
        "save_steps": 1,
    }
    tree = {
        "extends": str(REPO / "configs" / "smollm2_cpu.yaml"),
        "policy": {"model": str(work / "model"), "dtype": "bfloat16", "max_model_len": 256},
        "knowledge": {"corpora": [{"name": "hpo", "limit": 40}], "entities": 10},
        "synthesis": {"accepted": 24},
        "runtime": {"mode": "sequential"},
        "voting": {"samples": 16, "threshold": 0.0, "max_tokens": 1},
        "training": {
            "stage1": stage | {"steps": STEPS, "drop_zero_variance": False},
            "stage2": {"enabled": False},
        },
        "evaluation": {
            "benchmarks": [{"path": "hpo:evaluation", "limit": 2}],
            "policies": ["stage1"],
            "generations": 1,
            "max_tokens": 1,
        },
    }
    (work / "config.yaml").write_text(yaml.safe_dump(tree))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30, help="time in which faults happen (default: 30)")
    parser.add_argument("--seed", type=int, default=0, help="number of the first run, which seeds its faults")
    parser.add_argument("--json", type=Path, help="file of the counts, as a benchmark's result")
    args = parser.parse_args()
    if os.getuid():
        print("the soak mounts a small disk of its own, and needs root for it", file=sys.stderr)
        return 2
    if INSIDE not in os.environ:
        os.environ[INSIDE] = "1"
        first = ["bash", "-c", '"$@"; exit $?', "bash", sys.executable, *sys.argv]  # reaps processes without a parent
        namespaces = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
        os.execvp(namespaces[0], [*namespaces, *first])
    report, ended = Report(), threading.Event()
    with tempfile.TemporaryDirectory(prefix="soak", ignore_cleanup_errors=True) as folder:
        work = Path(folder)
        prepare(work)
        garbage = threading.Thread(target=send_garbage, args=(report, ended), daemon=True)
        garbage.start()
        start, number = time.monotonic(), args.seed
        deadline = start + 60 * args.minutes
        while time.monotonic() < deadline:
            run = SoakRun(work, number, report)
            run.run(deadline)
            run.check()
            print(report, flush=True)
            if args.json:
                report.write(args.json, round((time.monotonic() - start) / 60, 1))
            number += 1
        ended.set()
        subprocess.run(["umount", str(work / "disk")], check=False)
    return bool(sum(report.faulty.values()))


if __name__ == "__main__":
    sys.exit(main())
