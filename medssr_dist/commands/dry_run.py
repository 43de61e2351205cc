"""`--dry-run`: print what each step would do, and write the prompts and options it would get to `<run_dir>/dry_run/`.

The dry run reads and checks the data files as the real run does. It also makes the same random draws, so its prompts
are the prompts that the run would send. It starts nothing: no Ray, no vLLM, no request, no index, no conversion.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from medssr_dist.commands.plan_rows import PlanRow, describe_forecast, describe_sources, describe_step_times, print_rows
from medssr_dist.commands.plan_slots import describe_checkpoints, plan_memory, plan_slots
from medssr_dist.commands.prefetch import find_indexes, name_corpora
from medssr_dist.config.label_settings import MAJORITY
from medssr_dist.config.load import dump_config
from medssr_dist.config.price_table import describe_cost
from medssr_dist.config.schema import Config, Voting
from medssr_dist.config.synthesis import Knowledge, Synthesis
from medssr_dist.config.training import Stage
from medssr_dist.data.jsonl import write_atomic, write_json
from medssr_dist.data.records import Question
from medssr_dist.errors import InputError
from medssr_dist.estimates.engine_placement import choose_placement
from medssr_dist.estimates.rates import read_rates
from medssr_dist.estimates.walltime import DataCounts
from medssr_dist.estimates.workload import (
    count_answers,
    count_benchmark_questions,
    count_gold_examples,
    count_mixed_labels,
    count_stage_steps,
    expect_questions,
    list_policies,
)
from medssr_dist.evaluation.score_statistics import POWER, Assumptions, detectable_difference
from medssr_dist.readers import (
    read_all,
    read_calibration_questions,
    read_questions,
    read_validation_questions,
    refuse_evaluation_items,
    refuse_unlabelled,
)
from medssr_dist.run.demand import refuse_unvoted_demand
from medssr_dist.run.directory import RunDir, find_commit
from medssr_dist.run.paths import STAGES, STEPS, resolved_config
from medssr_dist.runtime.cluster import refuse_unfit_rollout
from medssr_dist.runtime.device import describe_device
from medssr_dist.runtime.model_faults import refuse_unfit_model
from medssr_dist.runtime.models import find_policy_on_disk

_SAMPLED_PASSAGES = 200  # of each corpus, where there is no index

if TYPE_CHECKING:
    from medssr_dist.data.prompt_renderer import PromptRenderer
    from medssr_dist.knowledge.entities import Entity
    from medssr_dist.knowledge.passages import Passage


def dry_run(config: Config, run_dir: Path, steps: tuple[str, ...], rates_of: Path | None = None) -> None:
    """Print the plan of `steps` and write their prompts and options to `run_dir`/dry_run.

    Args:
        rates_of: the run whose measured rates give the forecast of the wall time; None for `run_dir` itself. There is
            a forecast of the whole run only if `steps` is the whole method.

    Raises:
        InputError: the real run would refuse its input or its placement (unreadable data, an evaluation item among the
            seeds, a missing model), or `rates_of` has no rates.
    """
    refuse_unvoted_demand(config, steps)
    choice = choose_placement(config)
    config = choice.config
    run = RunDir(run_dir)
    folder = run.dry_run
    shutil.rmtree(folder, ignore_errors=True)
    write_json(resolved_config(folder), dump_config(config))
    policy = _locate_policy(config) if steps != ("synthesize",) else None
    model = policy.folder if policy else Path(config.policy.model)
    if steps == STEPS and not config.training.uses_pseudo_labels:
        steps = ("train", "evaluate")
    print(f"dry run of {', '.join(steps)} in {run.root}; nothing is started")
    refuse_unfit_rollout(config)
    placement = PlanRow("placement", f"{config.training.placement} ({choice.reason})")
    print_rows("slots", [PlanRow("device", describe_device()), placement, *plan_slots(config), *plan_memory(config)])
    for step in steps:
        print_rows(step, [PlanRow("state", _describe_state(run, step)), *_PLANS[step](config, run, folder, model)])
    print_rows("wall time", _plan_walltime(config, run, steps, rates_of))
    if policy:
        directory = policy.problem or str(policy.folder)
        print_rows("policy", [PlanRow("model", config.policy.model), PlanRow("directory", directory)])
    print_rows("rendered", [PlanRow("", str(file)) for file in sorted(folder.iterdir())])
    if policy and policy.problem:
        raise InputError(policy.problem)


def _plan_walltime(config: Config, run: RunDir, steps: tuple[str, ...], rates_of: Path | None) -> list[PlanRow]:
    """Return a row for each step, "unknown" without a measured rate, and for the whole method a forecast."""
    from medssr_dist.runtime.device import on_gpu

    rates = read_rates(rates_of or run.root)
    if rates is None and rates_of:
        raise InputError(f"--rates {rates_of}: no step of a run was measured there; give the directory of a run")
    examples = count_gold_examples(config) if "train" in steps else 0
    counts = DataCounts(examples, count_answers(config) if "evaluate" in steps else 0)
    names = [name for step in steps for name in (STAGES if step == "train" else (step,))]
    rows = describe_step_times(config, rates, counts, on_gpu(), names)
    if rates is None:
        how = "give --rates RUN_DIR, a run with rates; a short run on the same kind of machine is enough, e.g. with"
        return [PlanRow("rates", f"none known: this run has none yet; {how} synthesis.accepted=64"), *rows]
    return [*rows, *(describe_forecast(config, rates, counts, on_gpu()) if steps == STEPS else [])]


class _Policy(NamedTuple):
    """Directory of the policy (its configured name if there is none yet), and why the run would refuse it."""

    folder: Path
    problem: str | None


def _locate_policy(config: Config) -> _Policy:
    try:
        folder = find_policy_on_disk(config.policy)
        if folder is None:
            return _Policy(Path(config.policy.model), None)
        refuse_unfit_model(config, folder)
        return _Policy(folder, None)
    except InputError as error:
        return _Policy(Path(config.policy.model), str(error))


def _describe_state(run: RunDir, step: str) -> str:
    steps = run.read_manifest().steps
    states = []
    for name in STAGES if step == "train" else (step,):
        found = steps.get(name)
        state = "not begun" if not found else f"finished at {found.finished}" if found.finished else "begun"
        states.append(f"{name} {state}" if step == "train" else state)
    return ", ".join(states)


def _plan_synthesis(config: Config, run: RunDir, folder: Path, model: Path) -> list[PlanRow]:
    synthesis, random_seed = config.synthesis, config.runtime.random_seed
    seeds = read_all(synthesis.seeds, random_seed)
    refuse_evaluation_items(seeds, read_all(config.evaluation.benchmarks, random_seed))
    rare = _list_entities(config) if synthesis.alpha > 0 else []
    rendered = _render_prompts(config, seeds, rare, folder)
    count = rendered.with_entity
    share = f"{count:,} of the first {synthesis.accepted:,} ({count / synthesis.accepted:.3f})"
    return [
        PlanRow("questions", f"{_describe_demand(config, run)}, {synthesis.most_candidates:,} requests at most"),
        *[PlanRow("endpoint", f"{endpoint.base_url} ({endpoint.model})") for endpoint in synthesis.endpoints],
        *[PlanRow("judge", f"{each.base_url} ({each.model})") for each in synthesis.judge_endpoints],
        PlanRow("cost", _describe_cost(synthesis, rendered.mean_tokens)),
        PlanRow("rare", f"alpha {synthesis.alpha:g}: {share} requests get one of {len(rare):,} entities"),
        *describe_sources("seeds", synthesis.seeds, config),
        *_warn_of_few_seeds(len(seeds), expect_questions(config)),
        PlanRow("index", rendered.index_state),
    ]


def _warn_of_few_seeds(seeds: int, questions: int) -> list[PlanRow]:
    """Return a warning if each pair of seeds is used more than once, on average."""
    pairs = seeds * (seeds - 1) // 2
    if not pairs or questions <= pairs:
        return []
    used = f"each pair is used {questions / pairs:,.1f} times, each seed {2 * questions / seeds:,.0f} times"
    return [
        PlanRow("", f"warning: {seeds:,} seeds make {pairs:,} pairs for {questions:,} questions: {used}; add seeds")
    ]


def _describe_demand(config: Config, run: RunDir) -> str:
    """Describe how many questions are wanted, for `voting.kept` by the measured or assumed share of kept labels."""
    kept, synthesis = config.voting.kept, config.synthesis
    if not kept:
        return f"{synthesis.accepted:,} accepted wanted"
    rates = read_rates(run.root)
    if rates and rates.vote and rates.vote.kept_share:
        questions = expect_questions(config, rates.vote.kept_share)
        return f"about {questions:,} accepted for {kept:,} kept labels ({100 * rates.vote.kept_share:.0f}% kept so far)"
    share = f"{100 * kept / max(kept, synthesis.accepted):.0f}% kept, assumed from synthesis.accepted"
    return f"about {expect_questions(config):,} accepted for {kept:,} kept labels ({share})"


def _list_entities(config: Config) -> list[Entity]:
    """Return the entities of the run, without those that are known to have no passage."""
    from medssr_dist.knowledge.entities import draw_run_entities
    from medssr_dist.knowledge.retrieval import Retriever

    drawn = draw_run_entities(config).entities
    return Retriever(config.knowledge).keep_covered(drawn) if find_indexes(config.knowledge) else list(drawn)


def _describe_cost(synthesis: Synthesis, prompt_tokens: float) -> str:
    """Describe the most tokens of one request and of N requests, and the cost of N requests, as far as it is known."""
    count, most = synthesis.accepted, prompt_tokens + synthesis.max_tokens
    cost = describe_cost(synthesis, synthesis.models, count * prompt_tokens, count * synthesis.max_tokens)
    text = f"about {prompt_tokens:,.0f} prompt tokens and at most {synthesis.max_tokens:,} reply tokens per request: "
    text += f"{count * most:,.0f} tokens for {count:,} requests, cost {cost}"
    if judge := synthesis.judge:
        verdict = describe_cost(synthesis, synthesis.judge_models, 0, count * judge.max_tokens)
        text += (
            f"; and a verdict of at most {judge.max_tokens:,} tokens on each question that passes the checks, "
            f"cost {verdict} without its prompts"
        )
    return text


class _RenderedPrompts(NamedTuple):
    """Facts about the rendered prompts.

    Attributes:
        with_entity: number of the first N requests that get an entity.
        mean_tokens: mean length of the rendered prompts.
        index_state: state of the passage index, in words.
    """

    with_entity: int
    mean_tokens: float
    index_state: str


def _render_prompts(config: Config, seeds: list[Question], rare: list[Entity], folder: Path) -> _RenderedPrompts:
    """Write the first prompt with an entity and the first one without to `folder`/prompts.txt."""
    from medssr_dist.synthesis.client.budget import TokenCounter
    from medssr_dist.synthesis.request_plan import Draws, RequestPlan
    from medssr_dist.synthesis.synthesize import check_inputs

    check_inputs(config, seeds, rare)
    synthesis = config.synthesis
    draws = Draws(
        config.runtime.random_seed, synthesis.alpha, seeds, rare, synthesis.seed_pairs, synthesis.entity_choice
    )
    has_entity = [draws.draw(index).entity is not None for index in range(synthesis.accepted)]
    indexes = find_indexes(config.knowledge) if any(has_entity) else []
    read_passages = _read_found_passages(config.knowledge, rare) if indexes else _read_samples(config.knowledge)
    plan = RequestPlan(config, seeds, rare, read_passages, find_commit())
    shown = [has_entity.index(kind) for kind in (True, False) if kind in has_entity]
    prompts = {index: plan.build_request(index).messages for index in sorted(shown)}
    parts = [_render_messages(index, messages) for index, messages in prompts.items()]
    write_atomic(folder / "prompts.txt", "\n\n".join(parts) + "\n")
    count_tokens = TokenCounter()
    shares = {True: sum(has_entity) / len(has_entity), False: 1 - sum(has_entity) / len(has_entity)}
    tokens = sum(shares[has_entity[index]] * count_tokens(list(messages)) for index, messages in prompts.items())
    state = _describe_indexes(config.knowledge, indexes) if any(has_entity) else "not needed"
    return _RenderedPrompts(sum(has_entity), tokens, state)


def _render_messages(index: int, messages: list[dict[str, str]]) -> str:
    return "\n".join([f"===== request {index} =====", *(f"--- {m['role']} ---\n{m['content']}" for m in messages)])


def _read_found_passages(knowledge: Knowledge, rare: list[Entity]) -> Callable[[str], list[Passage]]:
    """Return a function from the name of an entity to its passages, which are retrieved if they are not recorded."""
    from medssr_dist.knowledge.retrieval import Retriever

    retriever, by_name = Retriever(knowledge), {entity.name: entity for entity in rare}

    def read(name: str) -> list[Passage]:
        retriever.prepare([by_name[name]])
        return retriever.retrieve(name)

    return read


def _read_samples(knowledge: Knowledge) -> Callable[[str], list[Passage]]:
    """Return a function that gives passages of usual length in place of those of an index that is not built yet.

    They are evenly spaced among the first passages of all corpora by length, so that the tokens of the prompt are
    estimated.
    """
    from medssr_dist.knowledge.corpus import sample_passages

    @cache
    def choose() -> list[Passage]:
        found = sorted(sample_passages(knowledge, _SAMPLED_PASSAGES), key=lambda passage: len(passage.text))
        places = ((2 * place + 1) * len(found) // (2 * knowledge.top_k) for place in range(knowledge.top_k))
        return [found[place] for place in places] if found else []

    def read(name: str) -> list[Passage]:
        return [replace(passage, title=f"(in place of a passage about {name}) {passage.title}") for passage in choose()]

    return read


def _describe_indexes(knowledge: Knowledge, folders: list[Path]) -> str:
    if folders:
        return f"{', '.join(map(str, folders))} (built)"
    state = "not built; the run builds it. The prompts here have other passages of these corpora, for their length"
    return f"{name_corpora(knowledge)} under {knowledge.encoder}: {state}"


def _plan_vote(config: Config, run: RunDir, folder: Path, model: Path) -> list[PlanRow]:
    voting = config.voting
    question = read_questions(config.synthesis.seeds[0], config.runtime.random_seed)[0]
    prompts = _find_prompts(config, model)
    text = prompts.render(question).text if prompts else config.policy.prompt.fill_in(question) + "\n"
    write_atomic(folder / "vote_prompt.txt", text)
    write_json(folder / "vllm_engine.json", _engine_options(config, model), checked=False)
    questions = expect_questions(config)
    return [
        PlanRow("votes", f"{questions:,} questions at most x {voting.samples} = {questions * voting.samples:,}"),
        *_describe_calibration(config),
        PlanRow("kept", f"{_describe_kept(voting)}"),
        *_describe_prompt(config, prompts, model),
    ]


def _describe_kept(voting: Voting) -> str:
    wanted = f"{voting.kept:,} " if voting.kept else ""
    least = "the calibrated threshold" if voting.calibrate else f"{voting.threshold:g}"
    rule = "" if voting.rule == MAJORITY else f", rule {voting.rule}"
    return f"{wanted}labels with confidence of {voting.confidence} votes >= {least}{rule}"


def _describe_calibration(config: Config) -> list[PlanRow]:
    """Describe the votes on the slice of `voting.calibrate`."""
    if config.voting.calibrate is None:
        return []
    questions, samples = len(read_calibration_questions(config)), config.voting.samples
    wanted = config.voting.calibrate
    text = f"{questions:,} questions x {samples} = {questions * samples:,} votes first, for a precision of "
    return [PlanRow("calibration", f"{text}{wanted.precision:g} with confidence {wanted.confidence:g}")]


def _find_prompts(config: Config, model: Path) -> PromptRenderer | None:
    """Return what makes the policy's prompts; None if its tokenizer is not on disk yet."""
    if not model.is_dir():
        return None
    from medssr_dist.runtime.models import load_tokenizer, make_prompt_renderer

    return make_prompt_renderer(load_tokenizer(model, config.policy), config.policy)


def _describe_prompt(config: Config, prompts: PromptRenderer | None, model: Path) -> list[PlanRow]:
    """Describe the prompt of vote, rollout and evaluation, and what does not fit together."""
    from medssr_dist.runtime.prompt_advice import list_prompt_advice

    rendered = "with the model's tokenizer" if prompts else "as plain text: no tokenizer on disk yet"
    advice = list_prompt_advice(config, prompts, model) if prompts else []
    warnings = [PlanRow("", f"warning: {each.detail}; {each.fix}") for each in advice]
    return [PlanRow("prompt", f"{config.policy.prompt.label}, rendered {rendered}"), *warnings]


def _engine_options(config: Config, model: Path) -> dict[str, dict[str, Any]]:
    """Return the options of vLLM for the engines of the vote and of the rollout."""
    from medssr_dist.inference.vllm_args import build_engine_kwargs, build_rollout_kwargs

    voting = config.voting
    kwargs = build_engine_kwargs(model, config.policy, config.runtime, voting.tensor_parallel_size)
    return {"voting": kwargs | {"max_num_seqs": voting.in_flight}, "rollout": build_rollout_kwargs(model, config)}


def _plan_training(config: Config, run: RunDir, folder: Path, model: Path) -> list[PlanRow]:
    from medssr_dist.training.backend.options import make_openrlhf_options
    from medssr_dist.training.trackers import check_trackers

    training = config.training
    check_trackers(training)
    starts = {"stage1": model, "stage2": run.stage("stage1").hf if training.stage1.enabled else model}
    examples = {"stage1": config.voting.kept or config.synthesis.accepted, "stage2": 0}
    source_rows = []
    if held_out := read_validation_questions(config):
        validation = training.validation
        text = f"{len(held_out):,} questions x {validation.generations} answers, every {validation.every} steps"
        source_rows = [PlanRow("validation", text)]
    if training.stage2.enabled:
        _refuse_bad_supervised(config)
        examples["stage2"] = count_gold_examples(config) + count_mixed_labels(config)
        source_rows += describe_sources("data", training.stage2.data, config)
    stage_rows = []
    for name in STAGES:
        stage = getattr(training, name)
        if not stage.enabled:
            stage_rows.append(PlanRow(name, "off"))
            continue
        stage_rows.append(PlanRow(name, _describe_stage(stage, examples[name], starts[name])))
        stage_rows.append(PlanRow("", describe_checkpoints(config, stage)))
        options = make_openrlhf_options(config, stage, run.stage(name).folder)
        write_json(
            folder / f"openrlhf_{name}.json", {key: _to_json(value) for key, value in options.items()}, checked=False
        )
    return stage_rows + source_rows


def _refuse_bad_supervised(config: Config) -> None:
    questions = read_all(config.training.stage2.data, config.runtime.random_seed)
    refuse_unlabelled(questions)
    refuse_evaluation_items(questions, read_all(config.evaluation.benchmarks, config.runtime.random_seed))


def _describe_stage(stage: Stage, examples: int, start: Path) -> str:
    steps = count_stage_steps(stage, examples)
    sequences = steps * stage.prompts_per_step * stage.samples_per_prompt
    limit = "" if stage.steps else " at most (one pass)"
    return f"{steps:,} GRPO steps, {sequences:,} sequences{limit}, on {examples:,} examples at most, from {start}"


def _to_json(value: object) -> object:
    """Return infinity as the text "inf", because JSON has no infinity. OpenRLHF uses it for "never" and "no limit"."""
    return str(value) if isinstance(value, float) and math.isinf(value) else value


def _plan_evaluation(config: Config, run: RunDir, folder: Path, model: Path) -> list[PlanRow]:
    evaluation = config.evaluation
    policies = list_policies(config)
    questions = count_benchmark_questions(evaluation, config.runtime.random_seed)
    return [
        PlanRow(
            "generations",
            f"{questions:,} questions x {evaluation.generations} x {len(policies)} policies ({', '.join(policies)}) = "
            f"{count_answers(config):,}, and a second pass for those without an answer",
        ),
        PlanRow("detectable", _describe_detectable(questions, evaluation.generations)),
        *describe_sources("benchmarks", evaluation.benchmarks, config, with_facts=True),
    ]


def _describe_detectable(questions: int, generations: int) -> str:
    """Describe the smallest difference of two policies that the evaluation is likely to find, and what it assumes."""
    if not questions:
        return "nothing: there is no question"
    assumed = Assumptions()
    points = 100 * detectable_difference(questions, generations, assumed)
    return (
        f"a true difference of {points:.1f} points between two policies is found in {POWER:.0%} of such evaluations "
        f"(paired, p <= 0.05), assuming accuracy {assumed.accuracy:g}, correlation {assumed.within:g} of a policy's "
        f"answers to one question and {assumed.between:g} of the two policies"
    )


_PLANS = {"synthesize": _plan_synthesis, "vote": _plan_vote, "train": _plan_training, "evaluate": _plan_evaluation}
