"""The files of a run directory: the only place where their names are written.

    manifest.json  config.resolved.json  summary.json  report.html  clock.json  .lock  logs/  dry_run/
    synthesis/     SynthesisPaths
    voting/        VotingPaths
    training/stage1/  training/stage2/     StagePaths, with checkpoints/ as CheckpointPaths
    evaluation/    EvaluationPaths
    attempts/NNNN/ AttemptPaths, one for each attempt of a Slurm job

Nothing here reads or writes a file, apart from `CheckpointPaths.complete_steps`, `RunPaths.attempts` and methods of
StagePaths, which list folders. Standard library only: the launcher imports this module on nodes where nothing else is
installed.
"""

from __future__ import annotations

import re
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

STEPS = ("synthesize", "vote", "train", "evaluate")  # the commands
STAGES = ("stage1", "stage2")  # the two parts of `train`
RECORDED_STEPS = ("synthesize", "vote", *STAGES, "evaluate")  # as manifest.json, clock.json and summary.json name them

TRACEBACK_PREFIX = "medssr-traceback-"  # of a file below the run directory that a bug leaves

_ATTEMPT_NAME = re.compile(r"[0-9]{1,9}$")
_CANDIDATE_NAME = re.compile(r"hf_best(\d{1,9})$", re.ASCII)
_CHECKPOINT_NAME = re.compile(r"global_step(\d{1,9})$", re.ASCII)
_COMPLETE_MARK = "complete.json"


@dataclass(frozen=True)
class StepPaths:
    """The folder of one recorded step.

    Attributes:
        summary: what the step found, written when it finishes.
        results: the files that the closing table of a run names.
    """

    folder: Path

    @property
    def summary(self) -> Path:
        return self.folder / "summary.json"

    @property
    def results(self) -> tuple[Path, ...]:
        return (self.summary,)


class SynthesisPaths(StepPaths):
    """Files of `synthesis/`."""

    @property
    def journal(self) -> Path:
        """Every reply that was paid for."""
        return self.folder / "journal.jsonl"

    @property
    def questions(self) -> Path:
        """The accepted questions; the vote follows this file."""
        return self.folder / "questions.jsonl"

    @property
    def entities(self) -> Path:
        """The rare diseases of the run, the version of their list, and the counts of what is left out, by reason."""
        return self.folder / "entities.json"

    @property
    def rejected(self) -> Path:
        return self.folder / "rejected.jsonl"

    @property
    def verdicts(self) -> Path:
        """Every verdict of the judge, in the form of the journal."""
        return self.folder / "verdicts.jsonl"

    @property
    def reserved_verdict_cost(self) -> Path:
        """As `reserved_cost`, for verdicts."""
        return self.folder / "verdict_exposure.bin"

    @property
    def batches(self) -> Path:
        """Ledger of the batches submitted to a batch API."""
        return self.folder / "batches.jsonl"

    def batch_upload(self, number: int) -> Path:
        """The batch that the endpoint of this number is about to be sent."""
        return self.folder / f"batch-{number}.jsonl"

    @property
    def reserved_cost(self) -> Path:
        """The most that requests may have cost whose replies are not in the journal."""
        return self.folder / "exposure.bin"

    @property
    def progress(self) -> Path:
        return self.folder / "progress.json"

    @property
    def card(self) -> Path:
        """The dataset card."""
        return self.folder / "README.md"

    @property
    def review(self) -> Path:
        """A sample of the questions for a physician."""
        return self.folder / "review.csv"

    @property
    def review_report(self) -> Path:
        """What the physician found, once the sheet was filled in and read back."""
        return self.folder / "review.json"

    @property
    def tensorboard(self) -> Path:
        return self.folder / "tensorboard"

    @property
    def teacher_log(self) -> Path:
        """Output of the offline teacher's server."""
        return self.folder / "teacher.log"

    @property
    def results(self) -> tuple[Path, ...]:
        return self.questions, self.rejected, self.card, self.review, self.review_report


class VotingPaths(StepPaths):
    """Files of `voting/`."""

    @property
    def votes(self) -> Path:
        """Folder of the votes, in numbered segments (see `vote_segment`)."""
        return self.folder / "votes"

    @property
    def labels(self) -> Path:
        """A label for each decided question, in the order of the questions; stage 1 follows this file."""
        return self.folder / "labeled.jsonl"

    @property
    def online_questions(self) -> Path:
        """The questions of a vote of the policy in training (`StagePaths.revote_at`)."""
        return self.folder / "questions.jsonl"

    @property
    def ledger(self) -> Path:
        """Policy, way of sampling and counts of the votes."""
        return self.folder / "ledger.json"

    @property
    def engine_events(self) -> Path:
        """When each vLLM engine started, was ready and ended."""
        return self.folder / "engines.jsonl"

    @property
    def calibration(self) -> Path:
        """Votes and labels of the human-labelled questions of `voting.calibrate`; its files are named as here."""
        return self.folder / "calibration"

    @property
    def calibration_questions(self) -> Path:
        """These questions, as the vote reads them."""
        return self.calibration / "questions.jsonl"

    @property
    def certificate(self) -> Path:
        """What `voting.calibrate` promises of the kept labels, and from what."""
        return self.folder / "certificate.json"

    @property
    def quality(self) -> Path:
        return self.folder / "quality.json"

    @property
    def quality_plot(self) -> Path:
        return self.folder / "quality.png"

    @property
    def results(self) -> tuple[Path, ...]:
        return self.votes, self.labels


class StagePaths(StepPaths):
    """Files of `training/stage1/` or `training/stage2/`."""

    @property
    def metrics(self) -> Path:
        """One line for each step."""
        return self.folder / "metrics.jsonl"

    @property
    def validation(self) -> Path:
        """One line for each held-out validation."""
        return self.folder / "validation.jsonl"

    @property
    def guard(self) -> Path:
        """One line for each signal of the collapse guard that has passed its limit."""
        return self.folder / "guard.jsonl"

    @property
    def samples(self) -> Path:
        """Some rollouts of each step."""
        return self.folder / "samples.jsonl"

    @property
    def flips(self) -> Path:
        """One line for each label that the policy in training has voted differently on (`voting.online`)."""
        return self.folder / "flips.jsonl"

    @property
    def revotes(self) -> Path:
        """A vote by the policy in training for each step after which there was one; see `revote_at`."""
        return self.folder / "revotes"

    def revote_at(self, step: int) -> Path:
        """The vote after `step` steps: the folder of its VotingPaths, which also holds its questions."""
        return self.revotes / f"step{step:06d}"

    def revoted_steps(self) -> list[int]:
        """Steps after which there was a vote, in ascending order."""
        return sorted(int(folder.name.removeprefix("step")) for folder in self.revotes.glob("step*"))

    @property
    def schedule(self) -> Path:
        """The length of the learning-rate schedule, which a restart keeps."""
        return self.folder / "schedule.json"

    @property
    def checkpoints(self) -> Path:
        """What training resumes from; see CheckpointPaths."""
        return self.folder / "checkpoints"

    @property
    def hf(self) -> Path:
        """The trained policy as a Hugging Face model, once the stage has finished."""
        return self.folder / "hf"

    @property
    def hf_partial(self) -> Path:
        """`hf` while it is being written."""
        return partial_export(self.hf)

    def hf_at(self, step: int) -> Path:
        """An export in between, where `export_steps` asks for it."""
        return self.folder / f"hf_step{step}"

    def hf_candidate(self, step: int) -> Path:
        """An export in between that the stage may publish: the best one, by validation or guard."""
        return self.folder / f"hf_best{step}"

    def candidates(self) -> list[int]:
        """Steps of the exports that the stage may publish, in ascending order."""
        found = (_CANDIDATE_NAME.match(folder.name) for folder in self.folder.glob("hf_best*"))
        return sorted(int(match[1]) for match in found if match)

    def delete_candidate(self, step: int) -> None:
        """Delete an export that the stage will not publish; a kill leaves no part of it under its name."""
        folder = self.hf_candidate(step)
        rest = partial_export(folder)
        shutil.rmtree(rest, ignore_errors=True)
        with suppress(OSError):  # it stays, and is deleted next time
            folder.rename(rest)
        shutil.rmtree(rest, ignore_errors=True)

    def partial_exports(self) -> list[Path]:
        """Exports that were being written or deleted when the stage was killed."""
        return sorted(self.folder.glob("hf*.partial"))

    @property
    def tensorboard(self) -> Path:
        return self.folder / "tensorboard"

    @property
    def trackers(self) -> Path:
        """Run ids of W&B and MLflow."""
        return self.folder / "trackers.json"

    @property
    def stop_request(self) -> Path:
        """While this file exists, the stage is asked to save and end after the step it is in."""
        return self.folder / "stop"

    @property
    def results(self) -> tuple[Path, ...]:
        return self.metrics, self.validation, self.guard, self.samples, self.hf, self.tensorboard


@dataclass(frozen=True)
class CheckpointPaths:
    """Names below a stage's `checkpoints/`. OpenRLHF and DeepSpeed look for `_actor` and `latest` by these names.

    Example: CheckpointPaths(Path("checkpoints")).at(20) == Path("checkpoints/_actor/global_step20")
    """

    folder: Path

    @property
    def ranks(self) -> Path:
        """Folder of all checkpoints; each holds a part from every training rank."""
        return self.folder / "_actor"

    @property
    def latest(self) -> Path:
        """DeepSpeed's pointer to the newest checkpoint."""
        return self.ranks / "latest"

    @property
    def latest_universal(self) -> Path:
        """DeepSpeed's pointer to a checkpoint converted for another number of ranks."""
        return self.ranks / "latest_universal"

    def at(self, step: int) -> Path:
        """A complete checkpoint. Nothing else bears this name: it is renamed from `partial` once it is complete."""
        return self.ranks / f"global_step{step}"

    def partial(self, step: int) -> Path:
        """The checkpoint while it is being written."""
        return self.ranks / f"global_step{step}.partial"

    def universal(self, step: int) -> Path:
        """The checkpoint converted for another number of ranks."""
        return self.ranks / f"global_step{step}.universal"

    def complete_steps(self) -> list[int]:
        """Steps whose checkpoint is complete, in ascending order; [] where there is none."""
        names = (mark.parent.name for mark in self.ranks.glob(f"*/{_COMPLETE_MARK}"))
        return sorted(int(found[1]) for found in map(_CHECKPOINT_NAME.match, names) if found)


def complete_mark(checkpoint: Path) -> Path:
    """The file that says what a complete checkpoint holds."""
    return checkpoint / _COMPLETE_MARK


def partial_export(folder: Path) -> Path:
    """The name of a model folder while it is being written."""
    return folder.with_name(f"{folder.name}.partial")


class EvaluationPaths(StepPaths):
    """Files of `evaluation/`."""

    @property
    def answers(self) -> Path:
        """The generations of all policies."""
        return self.folder / "answers.jsonl"

    @property
    def second_passes(self) -> Path:
        """Letters that were asked for where an answer has none."""
        return self.folder / "second_pass.jsonl"

    @property
    def letters(self) -> Path:
        """The final letters of all policies for each question; the scores are computed from it."""
        return self.folder / "letters.jsonl"

    @property
    def engine_events(self) -> Path:
        """When each vLLM engine started, was ready and ended."""
        return self.folder / "engines.jsonl"

    @property
    def scores(self) -> Path:
        return self.folder / "scores.json"

    @property
    def table(self) -> Path:
        return self.folder / "scores.md"

    @property
    def plot(self) -> Path:
        return self.folder / "scores.png"

    @property
    def tensorboard(self) -> Path:
        return self.folder / "tensorboard"

    @property
    def summary(self) -> Path:
        return self.scores

    @property
    def results(self) -> tuple[Path, ...]:
        return self.scores, self.letters, self.answers, self.second_passes, self.table, self.plot


@dataclass(frozen=True)
class AttemptPaths:
    """Files of `attempts/NNNN/`, one attempt of a Slurm job."""

    folder: Path

    @property
    def log(self) -> Path:
        """The lines of all nodes and components in the order in which they came."""
        return self.folder / "launch.log"

    def component_log(self, node: str, component: str) -> Path:
        return self.folder / f"{node}.{component}.log"

    def logs(self) -> list[Path]:
        return sorted(self.folder.glob("*.log"))

    @property
    def preflight(self) -> Path:
        """Folder of the nodes' preflight reports."""
        return self.folder / "preflight"

    @property
    def token(self) -> Path:
        """The attempt's secret, deleted at its end."""
        return self.folder / "token"

    @property
    def timings(self) -> Path:
        return self.folder / "timings.json"

    @property
    def exit(self) -> Path:
        """How the attempt ended."""
        return self.folder / "exit.json"


@dataclass(frozen=True)
class RunPaths:
    """The files of the run directory `root`.

    Example: RunPaths(Path("runs/demo")).stage("stage1").metrics == Path("runs/demo/training/stage1/metrics.jsonl")
    """

    root: Path

    @property
    def manifest_file(self) -> Path:
        """Which step was begun or finished with which settings."""
        return self.root / "manifest.json"

    @property
    def config_file(self) -> Path:
        """The whole config that the run was last started with."""
        return resolved_config(self.root)

    @property
    def summary_file(self) -> Path:
        """The closing table, as data."""
        return self.root / "summary.json"

    @property
    def summary_plot(self) -> Path:
        """The closing table, as a picture."""
        return self.root / "summary.png"

    @property
    def report(self) -> Path:
        """The report: one HTML file with figures, tables and the questions down to their votes."""
        return self.root / "report.html"

    @property
    def clock_file(self) -> Path:
        """Wall time of each step over all attempts, in seconds."""
        return self.root / "clock.json"

    @property
    def lock_file(self) -> Path:
        """Held by the one process that writes in the run."""
        return self.root / ".lock"

    @property
    def logs(self) -> Path:
        """Folder of the logs of Ray and its workers."""
        return self.root / "logs"

    @property
    def dry_run(self) -> Path:
        """Folder of what `--dry-run` shows."""
        return self.root / "dry_run"

    @property
    def synthesis(self) -> SynthesisPaths:
        return SynthesisPaths(self.root / "synthesis")

    @property
    def voting(self) -> VotingPaths:
        return VotingPaths(self.root / "voting")

    def stage(self, name: str) -> StagePaths:
        """Files of training stage `name`, one of STAGES."""
        return StagePaths(self.root / "training" / name)

    @property
    def evaluation(self) -> EvaluationPaths:
        return EvaluationPaths(self.root / "evaluation")

    def step(self, name: str) -> StepPaths:
        """Files of `name`, one of RECORDED_STEPS."""
        folders = {"synthesize": self.synthesis, "vote": self.voting, "evaluate": self.evaluation}
        return folders.get(name) or self.stage(name)

    @property
    def attempts_folder(self) -> Path:
        return self.root / "attempts"

    def attempts(self) -> list[AttemptPaths]:
        """The attempts of the run's Slurm jobs, oldest first; [] for a run that no launcher has started."""
        folders = (file for file in self.attempts_folder.glob("*") if _ATTEMPT_NAME.match(file.name) and file.is_dir())
        return [AttemptPaths(folder) for folder in sorted(folders, key=lambda folder: int(folder.name))]


def resolved_config(folder: Path) -> Path:
    """The whole config, in a run directory or in its dry run."""
    return folder / "config.resolved.json"


def end_mark(stream: Path) -> Path:
    """Exists once nothing more will be appended to `stream`, which is `questions` or `labels`; holds a count."""
    return stream.with_suffix(".end.json")


def taken_file(labels: Path) -> Path:
    """How many kept labels of `labels` stage 1 has taken."""
    return labels.with_suffix(".taken.json")


def vote_segment(votes: Path, number: int) -> Path:
    """A segment of the folder `votes` that is being written."""
    return votes / f"{number:05d}.jsonl"


def packed_vote_segment(votes: Path, number: int) -> Path:
    """The segment once all its questions have labels."""
    return votes / f"{number:05d}.jsonl.gz"
