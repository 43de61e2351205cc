"""README.md of a trained checkpoint: data, method, prompt, metrics, settings, versions, and what it is not for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from medssr_dist.config.schema import Policy
from medssr_dist.data.cards import CARD, render_header
from medssr_dist.data.jsonl import write_atomic
from medssr_dist.data.label_certificate import LabelCertificate, format_certificate
from medssr_dist.data.records import read_record
from medssr_dist.errors import InputError
from medssr_dist.readers import name_source
from medssr_dist.run.directory import find_commit, list_versions
from medssr_dist.run.paths import RunPaths, StagePaths
from medssr_dist.runtime.models import find_revision, resolve_model
from medssr_dist.training.stage_job import StageJob, read_stage_summary
from medssr_dist.training.step_metrics import StepMetrics, read_metrics
from medssr_dist.training.validation_log import read_validations

_NOTICE = """\
> **For research only. Not for clinical use.** The model was trained to choose the letter of an option in medical
> multiple-choice questions, on labels that may be wrong. It must not be used for diagnosis, treatment, triage or
> medical advice, and no physician has reviewed its answers."""
_TITLES = {"stage1": "stage 1 (self-supervised GRPO)", "stage2": "stage 2 (supervised GRPO)"}
_SHOWN = ("reward", "kl", "entropy", "response_length", "truncated", "grad_norm")
_LIMITS = """\
- The reward is only the agreement of the chosen letter with the label; correct explanations are not rewarded.
- Pseudo-labels are majority votes of the base policy. If it is confidently wrong, the error is learnt.
- The model may have the biases of the base model, of the questions and of their sources.
- The terms of the base model and of the training data apply to the weights."""


def write_model_card(folder: Path, job: StageJob, step: int) -> None:
    """Write `folder`/README.md for the checkpoint of `step` in this folder."""
    steps = [metrics for metrics in read_metrics(job.paths.metrics) if metrics.step <= step]
    sections = {
        "Training data": _describe_data(job, step),
        "Training": _describe_training(job, step),
        "Prompt": _describe_prompt(job.config.policy),
        "Metrics": _describe_metrics(steps) + _describe_validation(job, step),
        "Settings": _render_table(["setting", "value"], job.stage.model_dump(mode="json", exclude={"data"}).items()),
        "Versions": _render_table(["package", "version"], (list_versions() | {"commit": find_commit()}).items()),
        "Known limits": _LIMITS,
    }
    policy = job.config.policy
    text = f"{render_header(_make_header(policy))}\n# {_get_base_name(policy)}, {_TITLES[job.name]}\n\n{_NOTICE}"
    text += "".join(f"\n\n## {title}\n\n{body}" for title, body in sections.items())
    write_atomic(folder / CARD, text + "\n")


def _make_header(policy: Policy) -> dict[str, object]:
    header = {
        "license": "other",
        "license_name": "depends-on-base-model-and-data",
        "language": ["en"],
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["medical", "grpo", "research-only", "not-for-clinical-use"],
    }
    return header | ({"base_model": policy.model} if _is_hub_id(policy) else {})


def _get_base_name(policy: Policy) -> str:
    """Return the base model's name without its folders, which are private to the user."""
    return policy.model.rstrip("/").rpartition("/")[2]


def _describe_data(job: StageJob, step: int) -> str:
    if step == 0:
        return f"None of this stage's, because no step of it is in the weights. The stage trained on: {job.data}"
    return job.data + _describe_promise(job)


def _describe_promise(job: StageJob) -> str:
    """Return what `voting.calibrate` promises of the pseudo-labels; "" where it is off or the stage has none."""
    uses_labels = job.name == "stage1" or job.config.training.stage2.mix_pseudo_labels
    file = RunPaths(job.paths.folder.parents[1]).voting.certificate
    if job.config.voting.calibrate is None or not uses_labels or not file.exists():
        return ""
    return f"\n\nPseudo-labels: {format_certificate(read_record(LabelCertificate, file))}."


def _describe_training(job: StageJob, step: int) -> str:
    start = _describe_start(job)
    if step == 0:
        return (
            f"No step of this stage is in the weights. They are those that it began with: {start}. A stage publishes "
            "them if no policy that it trained has a higher held-out accuracy, or if the collapse guard ends it early."
        )
    against = "stage 1" if job.reference.parent.name == "stage1" else "the base model"
    kl = f"KL to {against} with weight {job.stage.kl_coef:g}" if job.stage.kl_coef else "no KL term"
    return (
        f"{step} of {job.expected_steps} steps of GRPO (arXiv 2402.03300) from {start}, with a fresh optimizer and "
        f"{kl}: {job.stage.prompts_per_step} questions x {job.stage.samples_per_prompt} answers a step. Method: "
        "MedSSR (arXiv 2604.11547)."
    )


def _describe_start(job: StageJob) -> str:
    if job.model.parent.name != "stage1":
        return "the base model"
    summary = StagePaths(job.model.parent).summary
    unchanged = summary.exists() and read_stage_summary(summary).published_step == 0
    return "stage 1's weights" + (", which are still the base model's" if unchanged else "")


def _describe_prompt(policy: Policy) -> str:
    """Describe how the model was asked, so that a user can ask it in the same way."""
    form = policy.prompt
    turns = {"system": policy.system_prompt or form.system, "user" if form.form == "chat" else "text": form.user}
    rows = [("prompt", form.label), ("form", form.form), ("stop strings", ", ".join(map(repr, form.stop)) or "none")]
    rows += [("base model at commit", revision)] if (revision := _find_revision(policy)) else []
    rows += [(f"chat template: {name}", value) for name, value in policy.chat_template_kwargs.items()]
    texts = [f"{name}:\n\n```\n{text}\n```" for name, text in turns.items() if text]
    return "\n\n".join([_render_table(["", ""], rows), *texts])


def _find_revision(policy: Policy) -> str:
    """Return the hub commit of the base model; "" if it is not from the hub, or no longer on this machine."""
    try:
        return find_revision(resolve_model(policy)) if _is_hub_id(policy) else ""
    except InputError:
        return policy.revision


def _is_hub_id(policy: Policy) -> bool:
    return policy.model.count("/") == 1 and not policy.model.startswith((".", "/", "~"))


def _describe_metrics(steps: list[StepMetrics]) -> str:
    if not steps:
        return "None, because no step of this stage is in the weights."
    parts = {"first step": steps[:1], "last step": steps[-1:], "last 10 steps, mean": steps[-10:]}
    names = [name for name in _SHOWN if math.isfinite(getattr(steps[-1], name))]
    table = [
        (title, *(f"{sum(getattr(step, name) for step in part) / len(part):.4g}" for name in names))
        for title, part in parts.items()
    ]
    note = "Measured on training questions at the rollout temperature; not an evaluation result."
    return f"{_render_table(['', *names], table)}\n\n{note}"


def _describe_validation(job: StageJob, step: int) -> str:
    """Return a sentence about the held-out accuracy of this policy; "" if it was not validated."""
    result = next((each for each in read_validations(job.paths.validation) if each.step == step), None)
    validation = job.config.training.validation
    if result is None or validation is None:
        return ""
    names = ", ".join(map(name_source, validation.data))
    return (
        f"\n\nHeld-out validation: accuracy {result.accuracy:.3f} (standard error {result.error:.3f}) on "
        f"{len(result.right):,} questions x {result.generations} answers: {names}. It chose "
        "among the policies of this stage, so it is not an evaluation result either."
    )


def _render_table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
