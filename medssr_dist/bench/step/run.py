"""`medssr bench step --json F`: where the seconds of a training step go, predicted by simulation for N nodes.

    medssr bench step --json step.json                                   # Qwen3-8B on 1 and 4 nodes with 8 H100 each
    medssr bench step --json step.json --config llama31_8b --gpu A100 --nodes 1,2,8
    medssr bench step --json step.json --rates runs/demo                 # fitted to a run, and compared with it

Without `--rates` the rates are those of `estimates/gpu_rates.py`: data sheets and assumed efficiencies, so the figures
compare forms and numbers of nodes, and are no measurement. With `--rates` the rates are fitted to the first stage of a
run that has been measured, lengths are those of its votes, and its second stage is predicted and compared.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import ValidationError

from medssr_dist.bench.result_file import write_result
from medssr_dist.bench.step.forms import AHEAD, FORMS, GROWN, assume_lengths, count_model_flops, load_form
from medssr_dist.bench.step.whole_run import DOLLARS_PER_GPU_HOUR, WholeRun, predict_run
from medssr_dist.config.removed_keys import drop_removed_keys
from medssr_dist.config.schema import Config
from medssr_dist.config.shipped import find_config_file
from medssr_dist.config.training import Stage
from medssr_dist.data.jsonl import read_jsonl
from medssr_dist.errors import InputError
from medssr_dist.estimates.gpu_rates import GPU_KINDS, predict_step_rates
from medssr_dist.estimates.model_shape import ModelShape, find_shape
from medssr_dist.estimates.step_model import StepForecast, StepRates, fit_step_rates, forecast_step, scale_lengths
from medssr_dist.run.directory import RunDir
from medssr_dist.run.recorded_config import read_recorded_config
from medssr_dist.runtime.cluster import count_slots
from medssr_dist.training.step_metrics import StepMetrics, read_metrics

_FLAT_SHARE = 0.42  # of the groups, as measured with SmolLM2-135M (docs/training.md); of an 8B model unknown
_PROMPT_TOKENS = 300.0
_GPUS_PER_NODE = 8
_RUN_SIZES = (43_000, 1_000_000, 10_000_000)  # questions: the paper's, and those of docs/scale.md


@dataclass(frozen=True)
class StepRow:
    """The forecast of one form on so many nodes.

    Attributes:
        form: its name. nodes, gpus: of the job. mfu: of the whole job. idle: share of all its GPU seconds.
        batch: sequences of a step.
    """

    form: str
    nodes: int
    gpus: int
    batch: int
    mfu: float
    idle: float
    step: StepForecast


@dataclass(frozen=True)
class ComparedFigure:
    """A figure of the mean step, predicted and measured. Example: ComparedFigure("rollout, s", 4.8, 5.2)"""

    figure: str
    predicted: float
    measured: float


def bench_step(
    path: Path,
    quick: bool = False,
    config: Path = Path("qwen3_8b"),
    nodes: str = "1,4",
    gpu: str = "H100",
    rates: Path | None = None,
) -> None:
    """Predict, print a table, and write it to `path`.

    Args:
        quick: one simulated rollout for each row instead of five.
        nodes: numbers of nodes, separated by commas. gpu: kind of the GPUs.
        rates: a run with measured steps; then its steps are predicted instead.

    Raises:
        InputError: a number of nodes does not fit the config, the model or the kind of GPU is unknown, or the run has
            too few measured steps.
    """
    if rates is not None:
        compared = compare_with_run(rates)
        _print_compared(compared)
        write_result(path, {"run": str(rates), "compared": [asdict(each) for each in compared]})
        return
    counts, rounds = _read_nodes(nodes), 1 if quick else 5
    rows = predict_forms(find_config_file(config), counts, gpu, rounds)
    runs = predict_runs(find_config_file(config), min(counts), gpu)
    _print_rows(rows, gpu)
    _print_runs(runs)
    assumed = {"gpu": gpu, "flat_share": _FLAT_SHARE, "prompt_tokens": _PROMPT_TOKENS, "lengths": "lognormal, mean 600"}
    write_result(
        path,
        {"predicted, not measured": assumed, "rows": [asdict(row) for row in rows]}
        | {"runs": [asdict(run) for run in runs]},
    )


def _read_nodes(text: str) -> list[int]:
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise InputError(f"--nodes {text!r}: give numbers of nodes, for example 1,4")
    return found


def predict_forms(config_file: Path, nodes: Sequence[int], gpu: str, rounds: int) -> list[StepRow]:
    """Return a row for each form on each number of nodes, and AHEAD with a batch grown with the nodes."""
    rows = [
        _predict(load_form(config_file, settings, count), form, gpu, rounds)
        for count in nodes
        for form, settings in FORMS.items()
    ]
    grown = [count for count in nodes if count > min(nodes)]
    return rows + [
        _predict(load_form(config_file, FORMS[AHEAD], count, count / min(nodes)), GROWN, gpu, rounds) for count in grown
    ]


def _predict(config: Config, form: str, gpu: str, rounds: int) -> StepRow:
    stage, training = config.training.stage1, config.training
    shape = _require_shape(config)
    gpus = training.nodes * _GPUS_PER_NODE
    lengths = assume_lengths(stage)
    rates = predict_step_rates(config, stage, shape, gpu)
    step = forecast_step(config, stage, rates, lengths, _FLAT_SHARE, _PROMPT_TOKENS, gpus, rounds)
    flops = count_model_flops(shape, lengths, _PROMPT_TOKENS, stage.sequences)
    own_ranks = 0 if training.placement == "colocated" else training.ranks
    return StepRow(
        form,
        training.nodes,
        gpus,
        stage.sequences,
        mfu=flops / (step.seconds * gpus * GPU_KINDS[gpu].flops),
        idle=step.mean_idle(own_ranks, training.tensor_parallel_size, gpus),
        step=step,
    )


def predict_runs(config_file: Path, nodes: int, gpu: str) -> list[WholeRun]:
    """Return the figures of runs of several sizes in the form AHEAD, on so many nodes."""
    config = load_form(config_file, FORMS[AHEAD], nodes)
    shape, stage, gpus = _require_shape(config), config.training.stage1, nodes * _GPUS_PER_NODE
    lengths = assume_lengths(stage)
    rates = predict_step_rates(config, stage, shape, gpu)
    step = forecast_step(config, stage, rates, lengths, _FLAT_SHARE, _PROMPT_TOKENS, gpus, 1)
    return [
        predict_run(questions, config, shape, rates, step, lengths, _PROMPT_TOKENS, gpus) for questions in _RUN_SIZES
    ]


def _require_shape(config: Config) -> ModelShape:
    shape = find_shape(config.policy)
    if shape is None:
        raise InputError(f"policy.model = {config.policy.model!r}: its shape is not known; give a directory with it")
    return shape


def compare_with_run(run_dir: Path) -> list[ComparedFigure]:
    """Fit the rates to stage 1 of a run, and predict the mean step of its stage 2; their first steps do not count.

    Raises:
        InputError: the run has no stage with three measured steps and more.
    """
    run = RunDir(run_dir)
    try:
        config = Config.model_validate(drop_removed_keys(read_recorded_config(run.root).model_dump()))
    except ValidationError:
        raise InputError(f"--rates {run_dir}: its config was written by another version of medssr") from None
    files = sorted(run.voting.votes.glob("*.jsonl"))
    lengths = [int(row["tokens"]) for file in files for row in read_jsonl(file)]
    first, second = (read_metrics(run.stage(name).metrics) for name in ("stage1", "stage2"))
    if not lengths or len(second) < 2:
        raise InputError(f"--rates {run_dir}: the run needs votes and two measured stages")
    rates = fit_step_rates(first, config, config.training.stage1, lengths, 0.0)
    return compare_steps(rates, second[1:], config, config.training.stage2, lengths)


def compare_steps(
    rates: StepRates, measured: Sequence[StepMetrics], config: Config, stage: Stage, lengths: Sequence[int]
) -> list[ComparedFigure]:
    """Predict the mean of measured steps from their share of flat groups and their mean length.

    Tokens are those of answers. MFU is that of the whole job, where the run has measured the update's. A measured
    engine counts as busy in the whole rollout, a predicted one while it has samples: the measured share is a lower
    bound.
    """
    flat = statistics.mean(step.zero_variance_drawn or 0.0 for step in measured)
    length = statistics.mean(step.response_length for step in measured)
    slots = count_slots(config)
    ranks, gpus = slots["training ranks"], sum(slots.values()) - slots["voting engines"]
    found = forecast_step(config, stage, rates, scale_lengths(lengths, length), flat, 0.0, gpus)
    rollout = statistics.mean(step.seconds_rollout or 0.0 for step in measured)
    experience, update, sync = (
        statistics.mean(getattr(step, f"seconds_{phase}") for step in measured)
        for phase in ("experience", "update", "sync")
    )
    seconds = statistics.mean(step.seconds - (step.seconds_validate or 0.0) for step in measured)
    compared = [
        ComparedFigure("rollout, s", found.rollout, rollout),
        ComparedFigure("experience, s", found.experience, experience),
        ComparedFigure("update, s", found.update, update),
        ComparedFigure("sync, s", found.sync, sync),
        ComparedFigure("step, s", found.seconds, seconds),
        ComparedFigure("tokens/s/GPU", found.tokens_per_s_per_gpu, stage.sequences * length / seconds / gpus),
        ComparedFigure("ranks idle", found.ranks_idle, 1 - (experience + update + sync) / seconds),
        ComparedFigure("engines idle", statistics.mean(found.engines_idle), max(0.0, 1 - (rollout + sync) / seconds)),
    ]
    if all(step.mfu is not None for step in measured):
        done = statistics.mean((step.mfu or 0.0) * step.seconds_update for step in measured) * ranks / gpus
        compared.append(ComparedFigure("MFU", done / found.seconds, done / seconds))
    return compared


def _print_compared(compared: Sequence[ComparedFigure]) -> None:
    print(f"{'mean step':<16}{'predicted':>11}{'measured':>11}")
    for each in compared:
        shown = ".1%" if each.figure in ("ranks idle", "engines idle", "MFU") else ".2f"
        print(f"{each.figure:<16}{each.predicted:>11{shown}}{each.measured:>11{shown}}")


def _print_rows(rows: Sequence[StepRow], gpu: str) -> None:
    print(f"predicted for {gpu} from data sheets and assumed efficiencies; nothing here is measured")
    print(f"{'nodes':>5} {'form':<38}{'step s':>8}{'rollout':>9}{'learn':>7}{'tok/s/GPU':>11}{'MFU':>7}{'idle':>7}")
    for row in rows:
        step = row.step
        print(
            f"{row.nodes:>5} {row.form:<38}{step.seconds:>8.1f}{step.rollout:>9.1f}"
            f"{step.experience + step.update:>7.1f}{step.tokens_per_s_per_gpu:>11.0f}{row.mfu:>7.1%}{row.idle:>7.0%}"
        )


def _print_runs(runs: Sequence[WholeRun]) -> None:
    print(f"runs on the first number of nodes, at {DOLLARS_PER_GPU_HOUR:g} USD for a GPU-hour:")
    print(f"{'questions':>12}{'votes':>14}{'steps':>9}{'vote h':>10}{'stage 1 h':>11}{'USD':>12}{'ledger GB':>11}")
    for run in runs:
        print(
            f"{run.questions:>12,}{run.votes:>14,}{run.steps:>9,}{run.vote_gpu_hours:>10,.0f}"
            f"{run.train_gpu_hours:>11,.0f}{run.dollars:>12,.0f}{run.vote_gigabytes:>11,.1f}"
        )
