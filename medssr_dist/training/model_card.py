"""README.md of a trained checkpoint: what it is, what it was trained on and how, how it went, what it is not for."""

from __future__ import annotations

from pathlib import Path

from medssr_dist.config.schema import Policy
from medssr_dist.data.cards import CARD, render_header
from medssr_dist.data.jsonl import write_atomic
from medssr_dist.run.directory import find_commit, list_versions
from medssr_dist.run.stream import follow
from medssr_dist.training.stage_job import StageJob

_NOTICE = """\
> **For research only. Not for clinical use.** The model was trained to choose the letter of an option in medical
> multiple-choice questions, on labels that may be wrong. It must not be used for diagnosis, treatment, triage or
> medical advice, and what it says has been judged by no physician."""
_TITLES = {"stage1": "stage 1 (self-supervised GRPO)", "stage2": "stage 2 (supervised GRPO)"}
_SHOWN = ("reward", "kl", "entropy", "response_length", "truncated", "grad_norm")
_LIMITS = """\
- Reward is the agreement of the chosen letter with the label alone: nothing rewards a sound explanation.
- Pseudo-labels are a majority vote of the base policy. Where it is wrong with confidence, its error is learnt.
- Biases of the base model, of the questions and of their sources carry over.
- Terms of the base model and of the training data apply to the weights."""


def write_model_card(folder: Path, job: StageJob, step: int) -> None:
    """Write `folder`/README.md for the checkpoint of `step` that lies in it."""
    rows = [row for row in follow(job.paths.metrics, ended=lambda: True) if row["step"] <= step]
    sections = {
        "Training data": job.data,
        "Training": _training(job, step),
        "Metrics": _metrics(rows),
        "Settings": _table(["setting", "value"], job.stage.model_dump(mode="json", exclude={"data"}).items()),
        "Versions": _table(["package", "version"], (list_versions() | {"commit": find_commit()}).items()),
        "Known limits": _LIMITS,
    }
    text = (
        render_header(_header(job.config.policy)) + f"\n# {_name(job.config.policy)}, {_TITLES[job.name]}\n\n{_NOTICE}"
    )
    text += "".join(f"\n\n## {title}\n\n{body}" for title, body in sections.items())
    write_atomic(folder / CARD, text + "\n")


def _header(policy: Policy) -> dict:
    header = {
        "license": "other",
        "license_name": "depends-on-base-model-and-data",
        "language": ["en"],
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["medical", "grpo", "research-only", "not-for-clinical-use"],
    }
    is_hub_id = policy.model.count("/") == 1 and not policy.model.startswith((".", "/", "~"))
    return header | ({"base_model": policy.model} if is_hub_id else {})


def _name(policy: Policy) -> str:
    """The base model's name without the folders above it, which are the user's own."""
    return policy.model.rstrip("/").rpartition("/")[2]


def _training(job: StageJob, step: int) -> str:
    start = "stage 1's weights" if job.model.parent.name == "stage1" else "the base model"
    against = "stage 1" if job.reference.parent.name == "stage1" else "the base model"
    kl = f"KL to {against} with weight {job.stage.kl_coef:g}" if job.stage.kl_coef else "no KL term"
    return (
        f"{step} of {job.expected_steps} steps of GRPO (arXiv 2402.03300) from {start}, with a fresh optimizer and "
        f"{kl}: {job.stage.prompts_per_step} questions x {job.stage.samples_per_prompt} answers a step. Method: "
        "MedSSR (arXiv 2604.11547)."
    )


def _metrics(rows: list[dict]) -> str:
    if not rows:
        return "No step was taken."
    points = {"first step": rows[:1], "last step": rows[-1:], "last 10 steps, mean": rows[-10:]}
    names = [name for name in _SHOWN if name in rows[-1]]
    table = [
        (title, *(f"{sum(row[name] for row in part) / len(part):.4g}" for name in names))
        for title, part in points.items()
    ]
    return _table(["", *names], table) + "\n\nOn training questions, at the rollout temperature; no evaluation result."


def _table(head: list[str], rows) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
