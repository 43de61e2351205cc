"""The cards of what `medssr push` uploads, by huggingface_hub's classes: with scores as a model-index."""

from __future__ import annotations

from typing import Any

from huggingface_hub import DatasetCard, EvalResult, ModelCard

from medssr_dist.evaluation.scores import Accuracy, Score, Scores
from medssr_dist.run.recorded_config import RecordedConfig

ONTOLOGY_TAG = "ontology-made"
_ONTOLOGY_NOTE = (
    "Ontology-made: {what} composed by rules from the Human Phenotype Ontology. They are not written by people, and a "
    "score on such questions says nothing about examination questions."
)
_RULE_TEACHER = "offline-teacher"


def build_model_card(text: str, repo: str, scores: Scores | None, policy: str, config: RecordedConfig) -> str:
    """Return the run's model card with its scores as a model-index, and a note where benchmarks are ontology-made.

    Args:
        text: the README.md of the exported model.
        policy: stage1 or stage2, whose scores are listed.
    """
    card = ModelCard(text)
    if scores is None or policy not in scores.headline:
        return str(card)
    made = list_ontology_sets(config)
    card.data.model_name = repo.rpartition("/")[2]
    card.data.eval_results = [
        _make_result(name, score, scores, name in made) for name, score in scores.headline[policy].benchmarks.items()
    ]
    if made & scores.benchmarks.keys():
        names = ", ".join(sorted(made & scores.benchmarks.keys()))
        _add_note(card, f"the questions of {names} are")
    return str(card)


def build_dataset_card(text: str, teachers: list[str]) -> str:
    """Return the run's dataset card; with a note where the offline teacher, a set of rules, wrote questions."""
    card = DatasetCard(text)
    if _RULE_TEACHER in teachers:
        _add_note(card, "the questions are")
    return str(card)


def list_ontology_sets(config: RecordedConfig) -> set[str]:
    """Return the names of the benchmarks of the run that were composed from the Human Phenotype Ontology."""
    sources = (config.evaluation.model_extra or {}).get("benchmarks") or []
    rows = [source for source in sources if isinstance(source, dict)]
    return {str(row.get("name") or row["path"]) for row in rows if str(row.get("path", "")).startswith("hpo:")}


def _add_note(card: ModelCard | DatasetCard, what: str) -> None:
    """Add the tag, and the note as the first paragraph below the title."""
    tags = list(getattr(card.data, "tags", None) or [])
    card.data.tags = [*tags, *([] if ONTOLOGY_TAG in tags else [ONTOLOGY_TAG])]
    body = card.text.strip("\n")
    title, _, rest = body.partition("\n")
    card.text = f"\n{title}\n\n> {_ONTOLOGY_NOTE.format(what=what)}\n{rest}\n"


def _make_result(name: str, score: Score, scores: Scores, made: bool) -> EvalResult:
    generations = scores.protocol.generations
    return EvalResult(
        task_type="multiple-choice",
        task_name="medical multiple-choice questions",
        dataset_type=name.replace(":", "-").replace("/", "-"),
        dataset_name=f"{name} ({ONTOLOGY_TAG})" if made else name,
        metric_type="accuracy",
        metric_name=f"accuracy, percent, mean over {generations} answers to each question",
        metric_value=round(100 * score.accuracy, 2),
        metric_args=_describe_score(score, score.questions, scores),
    )


def _describe_score(score: Accuracy, questions: int, scores: Scores) -> dict[str, Any]:
    """Return what a reader needs to judge a score: n, interval, reading rule."""
    low, high = score.interval or (None, None)
    interval = {} if low is None or high is None else {"interval_95": [round(100 * low, 2), round(100 * high, 2)]}
    return {"questions": questions, "reading_rule": scores.protocol.headline, **interval}
