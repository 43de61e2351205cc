"""`--dry-run`: what each step would do, and every artefact that it would be given, in `<run_dir>/dry_run/`.

Data files are read and checked as the run itself would, and the draws are the run's own, so the prompts
are those that would be sent. Nothing is started: no Ray, no vLLM, no request, no index, no conversion.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path

from medssr_dist.commands.prefetch import find_index
from medssr_dist.config.base import DataSource
from medssr_dist.config.load import dump_config
from medssr_dist.config.schema import Config
from medssr_dist.config.synthesis import Synthesis
from medssr_dist.config.training import Stage
from medssr_dist.data.answers import format_question, render_prompt
from medssr_dist.data.jsonl import write_atomic, write_json
from medssr_dist.data.records import Question
from medssr_dist.errors import InputError
from medssr_dist.estimates.rates import read_rates
from medssr_dist.estimates.walltime import DataCounts, describe_forecast
from medssr_dist.estimates.workload import (
    count_answers,
    count_benchmark_questions,
    count_gold_examples,
    count_mixed_labels,
    count_stage_steps,
    list_policies,
)
from medssr_dist.readers import name_source, read_all, read_questions, refuse_evaluation_items, refuse_unlabelled
from medssr_dist.run.directory import RunDir, commit
from medssr_dist.run.paths import STAGES, STEPS, resolved_config
from medssr_dist.runtime.models import policy_on_disk


def dry_run(config: Config, run_dir: Path, steps: tuple[str, ...], rates_of: Path | None = None) -> None:
    """Print the plan of `steps` and render their artefacts to `run_dir`/dry_run.

    Args:
        rates_of: the run whose rates the wall time of the whole method is predicted from; None = `run_dir` itself.

    Raises:
        InputError: what the run would refuse: unreadable data, an evaluation item among the seeds, a missing model;
            a run in `rates_of` that has no rates.
    """
    run = RunDir(run_dir)
    folder = run.dry_run
    shutil.rmtree(folder, ignore_errors=True)
    write_json(resolved_config(folder), dump_config(config))
    model, problem = _locate_model(config) if steps != ("synthesize",) else (None, None)
    if steps == STEPS and not config.training.uses_pseudo_labels:
        steps = ("train", "evaluate")
    print(f"dry run of {', '.join(steps)} in {run.root}; nothing is started")
    _print_rows("slots", _slots(config))
    for step in steps:
        _print_rows(step, [("state", _state(run, step)), *_PLANS[step](config, run, folder, model)])
    if steps == STEPS:
        _print_rows("wall time", _wall_time(config, run, rates_of))
    if model or problem:
        _print_rows("policy", [("model", config.policy.model), ("directory", problem or str(model))])
    _print_rows("rendered", [("", str(file)) for file in sorted(folder.iterdir())])
    if problem:
        raise InputError(problem)


def _wall_time(config: Config, run: RunDir, rates_of: Path | None) -> list[tuple[str, str]]:
    from medssr_dist.runtime.device import on_gpu

    rates = read_rates(rates_of or run.root)
    if rates is None and rates_of:
        raise InputError(f"--rates {rates_of}: no step of a run was measured there; name the directory of a run")
    if rates is None:
        how = "give --rates RUN_DIR of a run that has them; a short one will do, on the same kind of machine, e.g. with"
        return [("rates", f"none known: this run has none yet; {how} synthesis.accepted=64")]
    return describe_forecast(config, rates, DataCounts(count_gold_examples(config), count_answers(config)), on_gpu())


def _locate_model(config: Config) -> tuple[Path | None, str | None]:
    """The policy's directory (the configured name where there is none yet), and why a run would refuse it."""
    try:
        return policy_on_disk(config.policy) or Path(config.policy.model), None
    except InputError as error:
        return Path(config.policy.model), str(error)


def _state(run: RunDir, step: str) -> str:
    begun = run.manifest()["steps"] if run.manifest_file.exists() else {}
    states = []
    for name in STAGES if step == "train" else (step,):
        found = begun.get(name)
        state = "not begun" if not found else f"finished at {found['finished']}" if found["finished"] else "begun"
        states.append(f"{name} {state}" if step == "train" else state)
    return ", ".join(states)


def _slots(config: Config) -> list[tuple[str, str]]:
    from medssr_dist.runtime.cluster import slots_in_use, slots_needed
    from medssr_dist.runtime.device import on_gpu

    kind = "GPUs" if on_gpu() else "CPU process slots"
    needed = [(name, f"{count} {kind}") for name, count in slots_needed(config).items() if count]
    return [*needed, ("at once", f"{slots_in_use(config)} {kind} (runtime.mode={config.runtime.mode})")]


def _plan_synthesis(config: Config, run: RunDir, folder: Path, model: Path | None) -> list[tuple[str, str]]:
    from medssr_dist.knowledge.retrieval import draw_entities

    synthesis, random_seed = config.synthesis, config.runtime.random_seed
    seeds = read_all(synthesis.seeds, config.runtime.random_seed)
    refuse_evaluation_items(seeds, read_all(config.evaluation.benchmarks, config.runtime.random_seed))
    rare = draw_entities(config.knowledge, random_seed) if synthesis.alpha > 0 else []
    drawn, tokens, index_state = _render_prompts(config, seeds, rare, folder)
    share = f"{drawn:,} of the first {synthesis.accepted:,} ({drawn / synthesis.accepted:.3f})"
    return [
        ("questions", f"{synthesis.accepted:,} accepted wanted, {synthesis.most_candidates:,} requests at most"),
        *[("endpoint", f"{endpoint.base_url} ({endpoint.model})") for endpoint in synthesis.endpoints],
        ("cost", _cost(synthesis, tokens)),
        ("rare", f"alpha {synthesis.alpha:g}: {share} requests get one of {len(rare):,} entities"),
        *_sources("seeds", synthesis.seeds, config),
        ("index", index_state),
    ]


def _cost(synthesis: Synthesis, prompt_tokens: float) -> str:
    """What a request takes at most, and N of them; money where all prices are known."""
    from medssr_dist.synthesis.client.budget import cost_usd

    most = prompt_tokens + synthesis.max_tokens
    text = f"about {prompt_tokens:,.0f} prompt tokens a request and {synthesis.max_tokens:,} reply tokens at most: "
    text += f"{synthesis.accepted * most:,.0f} tokens for {synthesis.accepted:,}"
    if all(model in synthesis.prices for model in synthesis.models):
        prices = [synthesis.prices[model] for model in synthesis.models]
        usd = max(cost_usd(price, prompt_tokens, synthesis.max_tokens) for price in prices)
        text += f", ${synthesis.accepted * usd:,.2f}"
    return text


def _render_prompts(config: Config, seeds: list[Question], rare: list, folder: Path) -> tuple[int, float, str]:
    """Write the first prompt with an entity and the first without.

    Returns how many of the first N requests have one, the mean tokens of those shown, and the index's state.
    """
    from medssr_dist.synthesis.client.budget import TokenCounter
    from medssr_dist.synthesis.request_plan import Draws, RequestPlan
    from medssr_dist.synthesis.synthesize import check_inputs

    check_inputs(config, seeds, rare)
    synthesis = config.synthesis
    draws = Draws(
        config.runtime.random_seed, synthesis.alpha, seeds, rare, synthesis.seed_pairs, synthesis.entity_choice
    )
    with_entity = [draws.at(index).entity is not None for index in range(synthesis.accepted)]
    retrieve, state = _retrieval(config) if any(with_entity) else (_no_passages, "not needed")
    plan = RequestPlan(config, seeds, rare, retrieve, commit())
    shown = [with_entity.index(kind) for kind in (True, False) if kind in with_entity]
    prompts = {index: plan.request(index).messages for index in sorted(shown)}
    parts = [_render_messages(index, messages) for index, messages in prompts.items()]
    write_atomic(folder / "prompts.txt", "\n\n".join(parts) + "\n")
    tokens = sum(map(TokenCounter(), prompts.values())) / len(prompts)
    return sum(with_entity), tokens, state


def _render_messages(index: int, messages: list[dict[str, str]]) -> str:
    return "\n".join([f"===== request {index} =====", *(f"--- {m['role']} ---\n{m['content']}" for m in messages)])


def _retrieval(config: Config) -> tuple[Callable[[str], list], str]:
    from medssr_dist.knowledge.retrieval import Retriever

    folder = find_index(config.knowledge)
    if folder:
        return Retriever(config.knowledge).retrieve, f"{folder} (built)"
    return (
        _no_passages,
        f"{config.knowledge.corpus.path} under {config.knowledge.encoder}: not built; the run builds it",
    )


def _no_passages(entity: str) -> list:
    from medssr_dist.knowledge.corpus import Passage

    note = "The passage index is not built yet: `medssr prefetch` or the run itself builds it; passages come here."
    return [Passage(id="", title=f"(passages about {entity})", content=note, source="")]


def _plan_vote(config: Config, run: RunDir, folder: Path, model: Path) -> list[tuple[str, str]]:
    voting = config.voting
    question = read_questions(config.synthesis.seeds[0], config.runtime.random_seed)[0]
    write_atomic(folder / "vote_prompt.txt", _vote_prompt(config, question, model))
    write_json(folder / "vllm_engine.json", _engines(config, model))
    asked = config.synthesis.accepted
    return [
        ("votes", f"{asked:,} questions at most x {voting.samples} = {asked * voting.samples:,}"),
        ("kept", f"labels with confidence of {voting.confidence} votes >= {voting.threshold:g}"),
        ("prompt", "as the chat template renders it" if model.is_dir() else "plain: no tokenizer on disk yet"),
    ]


def _vote_prompt(config: Config, question: Question, model: Path) -> str:
    if not model.is_dir():
        return format_question(question) + "\n"
    from medssr_dist.runtime.models import load_tokenizer

    return render_prompt(load_tokenizer(model, config.policy), question)


def _engines(config: Config, model: Path) -> dict:
    from medssr_dist.inference.vllm_args import build_engine_kwargs

    sizes = {"voting": config.voting.tensor_parallel_size, "rollout": config.training.tensor_parallel_size}
    return {name: build_engine_kwargs(model, config.policy, config.runtime, size) for name, size in sizes.items()}


def _plan_training(config: Config, run: RunDir, folder: Path, model: Path) -> list[tuple[str, str]]:
    from medssr_dist.training.backend.options import openrlhf_options
    from medssr_dist.training.trackers import check_trackers

    training = config.training
    check_trackers(training)
    starts = {"stage1": model, "stage2": run.stage("stage1").hf if training.stage1.enabled else model}
    examples = {"stage1": config.synthesis.accepted, "stage2": 0}
    rows = []
    if training.stage2.enabled:
        _refuse_bad_supervised(config)
        examples["stage2"] = count_gold_examples(config) + count_mixed_labels(config)
        rows = _sources("data", training.stage2.data, config)
    plans = []
    for name in STAGES:
        stage = getattr(training, name)
        if not stage.enabled:
            plans.append((name, "off"))
            continue
        plans.append((name, _stage_plan(stage, examples[name], starts[name])))
        options = openrlhf_options(config, stage, run.stage(name).folder)
        write_json(folder / f"openrlhf_{name}.json", {key: _plain(value) for key, value in options.items()})
    return plans + rows


def _refuse_bad_supervised(config: Config) -> None:
    questions = read_all(config.training.stage2.data, config.runtime.random_seed)
    refuse_unlabelled(questions)
    refuse_evaluation_items(questions, read_all(config.evaluation.benchmarks, config.runtime.random_seed))


def _stage_plan(stage: Stage, examples: int, start: Path) -> str:
    steps = count_stage_steps(stage, examples)
    sequences = steps * stage.prompts_per_step * stage.samples_per_prompt
    limit = "" if stage.steps else " at most (one pass)"
    return f"{steps:,} GRPO steps, {sequences:,} sequences{limit}, on {examples:,} examples at most, from {start}"


def _plain(value: object) -> object:
    """JSON has no infinity; OpenRLHF uses it for 'never' and 'no limit'."""
    return str(value) if isinstance(value, float) and math.isinf(value) else value


def _plan_evaluation(config: Config, run: RunDir, folder: Path, model: Path) -> list[tuple[str, str]]:
    evaluation = config.evaluation
    policies = list_policies(config)
    asked = count_benchmark_questions(evaluation, config.runtime.random_seed)
    return [
        (
            "generations",
            f"{asked:,} questions x {evaluation.generations} x {len(policies)} policies ({', '.join(policies)}) = "
            f"{count_answers(config):,}, and a second pass for those without an answer",
        ),
        *_sources("benchmarks", evaluation.benchmarks, config),
    ]


_PLANS = {"synthesize": _plan_synthesis, "vote": _plan_vote, "train": _plan_training, "evaluate": _plan_evaluation}


def _sources(label: str, sources: list[DataSource], config: Config) -> list[tuple[str, str]]:
    rows = []
    for source in sources:
        count = len(read_questions(source, config.runtime.random_seed))
        file = "" if source.path.startswith("hpo:") else f" ({Path(source.path).resolve()})"
        rows.append((label, f"{name_source(source)}{file}, {count:,} questions"))
    return rows


def _print_rows(title: str, rows: list[tuple[str, str]]) -> None:
    print(f"{title}:")
    for label, text in rows:
        print(f"  {label:<18}{text}".rstrip())
