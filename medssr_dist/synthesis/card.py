"""README.md next to the questions: the dataset card, in the format of the Hugging Face hub.

The YAML header holds what a program needs: licence, language, task, size, files and columns. The text holds what a
reader needs before using the questions: how many of each kind there are, which replies were rejected and why, the
sources and their terms, the models, the dates, the cost, and what the questions must not be used for.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from medssr_dist.config.base import PathSource
from medssr_dist.config.schema import Config
from medssr_dist.config.synthesis import Checks
from medssr_dist.data.cards import render_header
from medssr_dist.data.checksums import CRC_KEY
from medssr_dist.data.jsonl import read_text, write_atomic
from medssr_dist.data.records import LETTERS, Question
from medssr_dist.knowledge.hpo import HPO_CITATION, read_hpo_version
from medssr_dist.knowledge.orphanet import ORPHANET_CITATION, read_orphanet_version
from medssr_dist.run.directory import find_commit
from medssr_dist.run.paths import SynthesisPaths
from medssr_dist.runtime.failures import to_line
from medssr_dist.sources.hub_sets import find_hub_place
from medssr_dist.synthesis.review_report import (
    ReviewReport,
    format_review_share,
    list_review_rows,
    read_review_report,
)
from medssr_dist.synthesis.synthesis_summary import (
    AlphaShares,
    JudgeSummary,
    LetterBalance,
    ModelReplies,
    SynthesisSummary,
)

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_TYPES = {str: "string", int: "int64", float: "float64", bool: "bool"}
_STOPPED_BY = {
    "count": "the number of accepted questions asked for was reached",
    "cap": "the cap on requests was reached",
    "budget": "the budget was spent",
}
_REVIEW = "Review by a physician"
_NOTICE = """\
> **For research only. Not for clinical use.** The questions were written by a language model and accepted by
> automatic checks of their text. No check can tell whether a question is medically sound, and none of them
> may be used for diagnosis, treatment, examination or advice."""
_LIMITS = """\
- Written by a model: facts, figures and guidelines in a question may be wrong, out of date or invented.
- There is no answer key. Where `pseudo-labels` are delivered with the questions, they are a majority vote of
  a model, not the judgement of a physician.
- The checks read text only; a question can pass them all and have no correct option, or two. `review.csv`
  is a seeded sample for a physician to judge.
- Decontamination compares words: a benchmark question in other words is not found.
- Rare diseases are over-represented by intent (alpha); shares do not reflect how often diseases occur.
- English only; the seeds' country, guidelines and style carry over.
"""


def write_card(folder: Path, config: Config, summary: SynthesisSummary) -> Path:
    """Write `folder`/README.md, the card of `folder`/questions.jsonl. Return its path."""
    sections = {
        "How the questions were made": _describe_making(config, summary),
        "Counts": _render_counts(summary),
        "Share of rare diseases (alpha)": _render_alpha(summary.alpha),
        "Letters": _render_letters(summary.letter_balance),
        "Sources and their terms": _render_sources(config),
        "Models": _render_models(summary.models),
        "Checks": _render_checks(config.synthesis.checks),
        "Judge": _render_judge(summary.judge),
        _REVIEW: _render_review(read_review_report(SynthesisPaths(folder).review_report)),
        "Cost": _render_cost(summary),
        "Known limits": _LIMITS,
    }
    text = (
        render_header(_build_header(summary.accepted)) + "\n# Synthetic medical multiple-choice questions\n\n" + _NOTICE
    )
    for title, body in sections.items():
        text += f"\n\n## {title}\n\n{body.strip()}"
    path = SynthesisPaths(Path(folder)).card
    write_atomic(path, text + "\n")
    return path


def update_review(card: Path, report: ReviewReport) -> None:
    """Replace the section on the review in the dataset card `card`, if there is a card."""
    if not card.exists():
        return
    before, found, after = read_text(card).partition(f"\n\n## {_REVIEW}\n\n")
    rest = after.partition("\n\n## ")
    section = f"\n\n## {_REVIEW}\n\n{_render_review(report)}"
    write_atomic(card, (before + section + "".join(rest[1:]) if found else before.rstrip() + section + "\n"))


def size_category(count: int) -> str:
    """Return the hub's name for the size of a data set of `count` items. Example: 43,000 gives "10K<n<100K"."""
    return next((name for below, name in _SIZES if count < below), "1M<n<10M")


def _build_header(accepted: int) -> dict[str, Any]:
    data_files = [{"split": "train", "path": SynthesisPaths(Path()).questions.name}]
    return {
        "license": "other",
        "license_name": "depends-on-sources",
        "language": ["en"],
        "task_categories": ["multiple-choice", "question-answering"],
        "size_categories": [size_category(accepted)],
        "tags": ["medical", "rare-diseases", "synthetic"],
        "pretty_name": "Synthetic medical multiple-choice questions",
        "configs": [{"config_name": "default", "data_files": data_files}],
        "dataset_info": {"features": [*_list_features(Question), {"name": CRC_KEY, "dtype": "string"}]},
    }


def _list_features(record: type[BaseModel]) -> list[dict[str, Any]]:
    """Return the columns of a record in the hub's format. Without them, types are guessed from a file's first lines."""
    return [{"name": name, **_describe_type(field.annotation)} for name, field in record.model_fields.items()]


def _describe_type(annotation: Any) -> dict[str, Any]:
    if annotation in _TYPES:
        return {"dtype": _TYPES[annotation]}
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {"struct": _list_features(annotation)}
    inner = [part for part in get_args(annotation) if part not in (NoneType, ...)]
    if get_origin(annotation) is tuple:
        return {"list": _TYPES[inner[0]]}
    if get_origin(annotation) is dict:  # the options, by letter
        return {"struct": [{"name": letter, "dtype": "string"} for letter in LETTERS]}
    if get_origin(annotation) is Literal:
        return _describe_type(type(inner[0]))
    return _describe_type(inner[0])  # X | None


def _describe_making(config: Config, summary: SynthesisSummary) -> str:
    synthesis = config.synthesis
    return f"""\
A language model was shown two seed questions and asked for a new one. With probability alpha a rare disease and
{config.knowledge.top_k} passages about it were added to the prompt, and the question had to rest on them (the method
of MedSSR, arXiv 2604.11547, section 3.1). Each line of `questions.jsonl` carries its whole provenance: seeds, entity,
passages, hash of the prompt, models, random seed and code commit.

- made between {summary.started} and {summary.ended}; code commit `{find_commit()}`; random seed
  {config.runtime.random_seed}
- ended because {_STOPPED_BY.get(summary.stopped_by, summary.stopped_by)}
- prompt: {_describe_prompt(config, summary)}
- prompt of the policy that labels the questions: {config.policy.prompt.label}
- seed pairs: {synthesis.seed_pairs}; choice of the disease: {synthesis.entity_choice}; temperature
  {synthesis.temperature:g}; at most {synthesis.max_tokens:,} tokens a reply"""


def _describe_prompt(config: Config, summary: SynthesisSummary) -> str:
    file = config.synthesis.prompt_file
    return (
        f"{f'`{Path(file).name}`' if file else 'the one of the code'}, hash `{summary.prompt_hash or 'not recorded'}`"
    )


def _render_counts(summary: SynthesisSummary) -> str:
    reasons = summary.rejected_by_reason
    rows = [("replies judged", summary.requested), ("accepted", summary.accepted)]
    rows += [(f"rejected: {name}", reasons[name]) for name in sorted(reasons, key=lambda name: (-reasons[name], name))]
    table = _render_table(
        ("", "questions", "share"), ((name, f"{n:,}", _percent(n, summary.requested)) for name, n in rows)
    )
    return f"{table}\n\nReplies received after the end was reached, and not used: {summary.surplus:,}."


def _render_alpha(alpha: AlphaShares) -> str:
    rows = [
        (
            f"of the {name}",
            f"{part.count:,} of {part.of:,}",
            "-" if part.share is None else f"{part.share:.4f}",
            "-" if part.low is None else f"{part.low:.4f} - {part.high:.4f}",
        )
        for name, part in (("requests", alpha.requests), ("accepted", alpha.accepted))
    ]
    table = _render_table(("", "rare", "share", "95% interval (Wilson)"), rows)
    return f"Asked: {alpha.asked:g}. Achieved:\n\n{table}"


def _render_letters(balance: LetterBalance) -> str:
    first, entity = balance.first_option, balance.entity_option
    table = _render_table(
        ("letter", "option that the model wrote first", "option that is the disease asked for"),
        ((letter, f"{first.get(letter, 0):,}", f"{entity.get(letter, 0):,}") for letter in sorted({*first, *entity})),
    )
    return (
        "Options were shuffled by a recorded permutation, because models tend to write the correct one first. Where "
        f"they stand now:\n\n{table}"
    )


def _render_sources(config: Config) -> str:
    rows = [("seeds", source) for source in config.synthesis.seeds]
    if config.synthesis.alpha > 0:
        rows += [("passages", source) for source in config.knowledge.corpora]
    rows += [("decontaminated against", source) for source in config.evaluation.benchmarks]
    table = _render_table(
        ("use", "source", "terms"), ((use, _name_source(source), _state_terms(source)) for use, source in rows)
    )
    return (
        "The licence of the whole depends on these and on the terms of the API that wrote the questions; whoever "
        f"publishes the set must state it.\n\n{table}{_cite_hpo(source for _, source in rows)}{_cite_orphanet(config)}"
    )


def _name_source(source: PathSource) -> str:
    """Return the name of the file, without the folder on somebody's machine."""
    place = find_hub_place(source)
    is_whole = source.path.startswith("hpo:") or place
    name = (place.label if place else source.path) if is_whole else source.name or Path(source.path).name
    return f"`{name}`" + (f", first {source.limit:,}" if source.limit else "")


def _state_terms(source: PathSource) -> str:
    if place := find_hub_place(source):
        return f"as on https://huggingface.co/datasets/{place.repo}"
    return "HPO, see below" if source.path.startswith("hpo:") else "user's file; licence to be stated by the user"


def _cite_hpo(sources: Iterable[PathSource]) -> str:
    if not any(source.path.startswith("hpo:") for source in sources):
        return ""
    return (
        f"\n\nHuman Phenotype Ontology, release {read_hpo_version()}, unaltered; its terms ask to cite it, to show its "
        f"version and not to change its content (https://hpo.jax.org/license). {HPO_CITATION}"
    )


def _cite_orphanet(config: Config) -> str:
    knowledge = config.knowledge
    uses_names = not knowledge.entities_file or any(source.path.startswith("hpo:") for source in knowledge.corpora)
    if config.synthesis.alpha == 0 or not uses_names:
        return ""
    return (
        f"\n\nNames of rare diseases, synonyms and prevalence: {ORPHANET_CITATION}, release {read_orphanet_version()}."
    )


def _render_models(models: ModelReplies) -> str:
    rows = [("asked", _render_name(name), "") for name in models.asked]
    rows += [("answered", _render_name(name), f"{count:,}") for name, count in sorted(models.answered.items())]
    return _render_table(("", "model", "replies"), rows)


def _render_name(name: str) -> str:
    """Render a name that a server gave itself, so that it is text whatever it holds."""
    return f"`{to_line(name).replace('`', chr(39))}`"


def _render_checks(checks: Checks) -> str:
    """Render every check of the config with its threshold, also those that are off."""
    rows = [
        (f"`{name}`", _render_setting(getattr(checks, name)), field.description)
        for name, field in Checks.model_fields.items()
    ]
    return (
        "Always: the reply has the form of a question, 2-10 distinct options, and no answer or explanation.\n\n"
        + _render_table(("check", "setting", "what"), rows)
    )


def _render_setting(value: bool | float) -> str:
    if isinstance(value, bool) or value == 0:
        return "on" if value else "off"
    return f"{value:g}"


def _render_judge(judge: JudgeSummary | None) -> str:
    if judge is None:
        return "None."
    rows = [
        (
            name,
            str(judge.least[name]) if judge.least[name] else "-",
            *(f"{counts[score]:,}" for score in sorted(counts)),
        )
        for name, counts in judge.scores.items()
    ]
    models = ", ".join(map(_render_name, judge.models))
    outcome = "kept" if judge.not_judged_kept else "refused"
    return (
        f"A language model ({models}) scored {judge.judged:,} questions that had passed the checks, from 1 to 5; "
        f"{judge.not_judged:,} could not be judged and were {outcome}. Refused below the least score:\n\n"
        + _render_table(("criterion", "least score", "1", "2", "3", "4", "5"), rows)
    )


def _render_review(report: ReviewReport | None) -> str:
    if report is None:
        return "None yet. `review.csv` is a seeded sample to fill in; `medssr review RUN` reads it back."
    rows = [(row.name, *map(format_review_share, row.shares.values())) for row in list_review_rows(report)]
    table = _render_table(("share of yes, 95% interval (Wilson)", *report.by_kind), rows)
    return f"{report.used:,} of {report.rows:,} questions of a seeded sample were judged.\n\n{table}"


def _render_cost(summary: SynthesisSummary) -> str:
    usd = f"{summary.usd:,.2f} US dollars"
    if summary.unpriced:
        usd = f"unknown: no price of {', '.join(summary.unpriced)}"
    return f"""\
- money: {usd}
- tokens: {summary.prompt_tokens:,} of prompts, {summary.completion_tokens:,} of replies
- requests sent: {summary.requests_sent:,}; tries over HTTP: {summary.http_attempts:,}; sent a second time after
  an interruption: {summary.asked_again:,}; tries whose reply was lost on the way and may have been billed:
  {summary.lost:,}"""


def _render_table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _percent(count: int, total: int) -> str:
    return f"{100 * count / total:.1f}%" if total else "-"
