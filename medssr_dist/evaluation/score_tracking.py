"""Scores to TensorBoard, W&B and MLflow: the trackers of training get the evaluation too, under stable names.

    evaluation/<set>/<policy>/accuracy         0 to 1, mean over generations
    evaluation/<set>/<policy>/interval_low     95% interval over questions
    evaluation/<set>/<policy>/interval_high

A set is a benchmark, "macro average", "rare diseases" or "other questions". Characters that a service refuses are "-"
in names. With `evaluation.track_samples`, a table of some questions (id, right letter, letters of each policy) is sent
too; texts of questions and answers never are.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medssr_dist.data.records import hash_content
from medssr_dist.evaluation.question_letters import QuestionLetters
from medssr_dist.evaluation.score_rows import align_table, list_score_rows
from medssr_dist.evaluation.scores import Scores

_REFUSED = re.compile(r"[^A-Za-z0-9_./ -]")
_SAMPLES = "evaluation/samples"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScoreTracking:
    """Where the scores of a run go.

    Example: ScoreTracking(trackers=("tensorboard",), project="medssr", run=Path("runs/demo"),
    tensorboard=Path("runs/demo/evaluation/tensorboard"), samples=0, settings={})

    Attributes:
        run: the run directory; its name is the name of the service's run.
        samples: questions in the table; 0 = no table.
        settings: the config without secrets.
    """

    trackers: tuple[str, ...]
    project: str
    run: Path
    tensorboard: Path
    samples: int
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        """The name of the run at a service."""
        return f"{self.run.name}/evaluation"


@dataclass(frozen=True)
class SampleTable:
    """Some benchmark questions. Example: SampleTable(("set", "question", ...), (("medqa", "ab..", "B", "BB-B"),))"""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def track_scores(place: ScoreTracking, scores: Scores, letters: Sequence[QuestionLetters]) -> None:
    """Send scores and samples to each tracker. One that fails is reported by a warning, and the run continues."""
    values = list_score_tags(scores)
    table = make_sample_table(scores, letters, place.samples)
    for name in place.trackers:
        try:
            _SENDERS[name](place, values, table)
        except Exception as error:  # an external service must not end the run
            logger.warning("%s gets no scores: %s: %s", name, type(error).__name__, error)


def list_score_tags(scores: Scores) -> dict[str, float]:
    """Return the name and value of each figure, by the protocol of the headline."""
    found = {}
    for row in list_score_rows(scores):
        for policy, score in row.cells.items():
            tag = _REFUSED.sub("-", f"evaluation/{row.on or row.label}/{policy}")
            found[f"{tag}/accuracy"] = score.accuracy
            if score.interval:
                found[f"{tag}/interval_low"], found[f"{tag}/interval_high"] = score.interval
    return found


def make_sample_table(scores: Scores, letters: Sequence[QuestionLetters], count: int) -> SampleTable:
    """Return `count` questions in the order of their ids, which are hashes: a fair sample, the same in each run."""
    protocol = scores.protocol.headline
    rows = []
    for row in sorted(letters, key=lambda one: (one.question_id, one.benchmark))[:count]:
        given = [row.policies[name][protocol].letters if name in row.policies else () for name in scores.policies]
        texts = ["".join(letter or "-" for letter in one) for one in given]
        rows.append((row.benchmark, row.question_id, row.truth, *texts))
    return SampleTable(("set", "question", "right answer", *scores.policies), tuple(rows))


def _send_to_tensorboard(place: ScoreTracking, values: dict[str, float], table: SampleTable) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(place.tensorboard, purge_step=0) as writer:
        for tag, value in values.items():
            writer.add_scalar(tag, value, 0)
        if table.rows:
            writer.add_text(_SAMPLES, "\n".join(align_table([list(table.head), *map(list, table.rows)])), 0)


def _send_to_wandb(place: ScoreTracking, values: dict[str, float], table: SampleTable) -> None:
    import wandb

    run = wandb.init(
        project=place.project,
        name=place.name,
        id=f"evaluation-{hash_content([str(place.run.resolve()), place.project])}",  # the last evaluation is replaced
        resume="allow",
        dir=place.run,
        config=place.settings,
        settings=wandb.Settings(console="off", silent=True, save_code=False),
    )
    run.log(values)
    if table.rows:
        run.log({_SAMPLES: wandb.Table(columns=list(table.head), data=[list(row) for row in table.rows])})
    run.finish()
    wandb.teardown()


def _send_to_mlflow(place: ScoreTracking, values: dict[str, float], table: SampleTable) -> None:
    import mlflow

    mlflow.set_experiment(place.project)
    with mlflow.start_run(run_name=place.name):
        mlflow.log_metrics(values)
        mlflow.log_dict(place.settings, "config.json")
        if table.rows:
            columns = zip(*table.rows, strict=True)
            mlflow.log_table(dict(zip(table.head, map(list, columns), strict=True)), f"{_SAMPLES}.json")


_SENDERS: dict[str, Callable[[ScoreTracking, dict[str, float], SampleTable], None]] = {
    "tensorboard": _send_to_tensorboard,
    "wandb": _send_to_wandb,
    "mlflow": _send_to_mlflow,
}
