"""Plant each of four faults in a copy of the code, and show that the test that the method learns fails with it.

    MEDSSR_LEARN_FOLDER=runs/learn .venv/bin/python -m pytest -m slow tests/bench/test_method_learns.py
    .venv/bin/python tests/planted_faults.py --sound runs/learn --json runs/planted_faults.json

`make plant-faults` calls both. The first command runs the test on the code as it is. Of its runs, the second takes over
the base policy and the control, which no fault touches, and trains the two stages with each fault. About ten minutes a
fault on 2 cores. The same command skips the faults that have been tried.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from medssr_dist.bench.result_file import write_result
from medssr_dist.data.jsonl import read_json

REPO = Path(__file__).resolve().parents[1]
TEST = "tests/bench/test_method_learns.py"


@dataclass(frozen=True)
class Fault:
    """A line of the code and what it becomes. Example: Fault("sign", "medssr_dist/x.py", "= a", "= -a")"""

    name: str
    file: str
    right: str
    wrong: str

    def plant(self, root: Path) -> None:
        """Change the line in the copy of the code at `root`."""
        file = root / self.file
        text = file.read_text()
        assert text.count(self.right) == 1, (
            f"{self.file} has not exactly one {self.right!r}; mend tests/planted_faults.py"
        )
        file.write_text(text.replace(self.right, self.wrong))


FAULTS = (
    Fault(
        "sign of the advantage",
        "medssr_dist/training/loop.py",
        "advantage_N = groups.advantage\n",
        "advantage_N = -groups.advantage\n",
    ),
    Fault(
        "labels one letter off",
        "medssr_dist/training/rollout/reward.py",
        "float(sample.letter == sample.answer)",
        "float(sample.letter == chr(ord(sample.answer) + 1))",
    ),
    Fault(
        "weight sync that loads nothing",
        "medssr_dist/training/weights/gloo_transfer.py",
        "self.model.load_weights(check.watch(self._receive(update_info)))",
        "list(check.watch(self._receive(update_info)))",
    ),
    Fault(
        "loss over tokens of the prompt too",
        "medssr_dist/training/rollout/groups.py",
        "action_mask[:, prompt - 1 :] = 1",
        "action_mask[:, prompt - 9 :] = 1",
    ),
)


@dataclass(frozen=True)
class Outcome:
    """What the test said. `figures`: the accuracies that it saw. `reason`: the lines that pytest marks as the error."""

    fault: str
    file: str
    changed_to: str
    failed: bool
    figures: str
    reason: list[str]


def try_fault(fault: Fault, sound: Path, work: Path) -> Outcome:
    """Run the test with the fault in a copy of the code and of the sound runs, unless it has run in `work`."""
    root, log = work / "code", work / "pytest.log"
    if not (log.exists() and fault.wrong in (root / fault.file).read_text()):
        shutil.rmtree(work, ignore_errors=True)
        _copy_code(root)
        _copy_sound_runs(sound, work / "runs")
        fault.plant(root)
        log.write_text(_run_test(root, work / "runs"))
    output = log.read_text()
    figures = re.findall(r"^base 0\..*$", output, re.MULTILINE)
    reason = list(dict.fromkeys(re.findall(r"^E  +(.*)$", output, re.MULTILINE)))
    failed = re.search(r"^1 failed", output, re.MULTILINE) is not None
    return Outcome(fault.name, fault.file, fault.wrong.strip(), failed, "".join(figures[:1]), reason)


def _run_test(root: Path, folder: Path) -> str:
    """Return what pytest prints."""
    environment = os.environ | {"MEDSSR_LEARN_FOLDER": str(folder), "PYTHONPATH": str(root)}
    call = [sys.executable, "-m", "pytest", "-q", "-m", "slow", "-rA", "-p", "no:cacheprovider", TEST]
    done = subprocess.run(call, cwd=root, env=environment, capture_output=True, text=True, check=False)
    output = done.stdout + done.stderr
    assert done.returncode in (0, 1), f"pytest did not run:\n{output}"
    return output


def _copy_code(root: Path) -> None:
    listed = subprocess.run(["git", "-C", str(REPO), "ls-files", "-z"], capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(REPO / name, root / name)


def _copy_sound_runs(sound: Path, folder: Path) -> None:
    """Copy all but the runs of the two stages."""
    models = shutil.ignore_patterns("checkpoints", "hf*", "two_stage*")
    for name in ("method.runs", "method.answers"):
        shutil.copytree(sound / name, folder / name, ignore=models)


def main() -> int:
    """Run the command line; 0 if the test fails with every fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sound", type=Path, required=True, help="MEDSSR_LEARN_FOLDER of the test on the code as it is"
    )
    parser.add_argument("--json", type=Path, required=True, help="file for the outcomes")
    parser.add_argument("--parallel", type=int, default=1, help="faults at the same time (default: 1)")
    args = parser.parse_args()
    sound = args.sound.resolve()
    folders = [sound.with_name(f"{sound.name}-fault{number}") for number in range(1, len(FAULTS) + 1)]
    with ThreadPoolExecutor(args.parallel) as pool:
        outcomes = list(pool.map(lambda fault, work: try_fault(fault, sound, work), FAULTS, folders))
    arms = read_json(sound / "method.json")["arms"]
    accuracies = {name: arm["scores"]["all"]["accuracy"] for name, arm in arms.items()}
    write_result(args.json, {"sound": accuracies, "faults": [asdict(outcome) for outcome in outcomes]})
    for outcome in outcomes:
        verdict = "the test fails" if outcome.failed else "THE TEST PASSES"
        print(f"{outcome.fault}: {verdict}; {outcome.figures or outcome.reason[-1:]}")
    return 0 if all(outcome.failed for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
