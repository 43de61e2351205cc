"""`--dry-run`: print what each step would do, and write the prompts and options it would get to `<run_dir>/dry_run/`.

The dry run reads and checks the data files as the real run does. It also makes the same random draws, so its prompts
are the prompts that the run would send. It starts nothing: no Ray, no vLLM, no request, no index, no conversion.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from medssr_dist.commands.plan_rows import PlanRow, describe_forecast, describe_sources, describe_step_times, print_rows
from medssr_dist.commands.plan_slots import describe_checkpoints, plan_memory, plan_slots
from medssr_dist.commands.plan_synthesis import plan_synthesis
from medssr_dist.config.label_settings import MAJORITY
from medssr_dist.config.load import dump_config
from medssr_dist.config.schema import Config
from medssr_dist.config.stage_checks import Guard
from medssr_dist.config.training import Stage
from medssr_dist.config.voting import Voting
from medssr_dist.data.jsonl import write_atomic, write_json
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
    name_source,
    read_all,
    read_calibration_questions,
    read_questions,
    read_validation_questions,
    refuse_evaluation_items,
    refuse_unlabelled,
)
from medssr_dist.run.demand import refuse_unvoted_demand
from medssr_dist.run.directory import RunDir
from medssr_dist.run.paths import STAGES, STEPS, resolved_config
from medssr_dist.runtime.cluster import refuse_unfit_rollout
from medssr_dist.runtime.device import describe_device
from medssr_dist.runtime.model_faults import refuse_unfit_model
from medssr_dist.runtime.models import find_policy_on_disk

if TYPE_CHECKING:
    from medssr_dist.data.prompt_renderer import PromptRenderer


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
    source_rows = _describe_checks(config)
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


def _describe_checks(config: Config) -> list[PlanRow]:
    """Describe held-out validation and collapse guard."""
    training, rows = config.training, []
    if validation := training.validation:
        questions, names = len(read_validation_questions(config)), ", ".join(map(name_source, validation.data))
        text = f"{questions:,} questions x {validation.generations} answers, every {validation.every} steps: {names}"
        used = training.stage1.enabled or training.stage2.enabled
        rows.append(PlanRow("validation", text if used else f"{text}; not used, both stages are off"))
    if guard := training.guard:
        text = _describe_guard(guard, validation is not None)
        rows.append(PlanRow("guard", text if training.stage1.enabled else "not used, it watches stage 1, which is off"))
    return rows


def _describe_guard(guard: Guard, validated: bool) -> str:
    does = "ends stage 1" if guard.action == "stop" else "warns, but does not end stage 1,"
    signals = [name for name in guard.signals if name != "validation_fall" or validated]
    first = f"from step {2 * guard.window} on" + (", validation_fall from the third validation on" if validated else "")
    return f"{does} when a signal passes its limit: {', '.join(signals)}; {first}"


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


_PLANS = {"synthesize": plan_synthesis, "vote": _plan_vote, "train": _plan_training, "evaluate": _plan_evaluation}
