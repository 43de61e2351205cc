"""`medssr bench training`: a GRPO step of ours compared with stock OpenRLHF, and the effect of each part.

Each variant trains stage 2 with the demo's policy on human-annotated questions, in a separate process, with the same
model, prompts, seeds and number of samples; `VARIANTS` states the differences. "stock" is OpenRLHF's own PPO trainer
with its generator, experience maker, update, loss and weight sync (`stock_trainer.py`), with our CPU patches. Times are
medians over the steps after the first, from `metrics.jsonl`, without start-up and without waiting for examples. The
share of a part is the time of a step with the part replaced by OpenRLHF's, divided by the time with ours.

Loss: with one rank in fp32 and seeded requests, OpenRLHF's loss is compared with ours in each step until the samples of
the two runs differ: Adam makes steps of full size from rounding differences of small gradients, so sooner or later
another token is sampled.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tqdm import tqdm

from medssr_dist.bench.result_file import write_result
from medssr_dist.run.paths import RunPaths
from medssr_dist.training.step_metrics import StepMetrics, read_metrics

_KL = 0.05  # weight of the KL in these runs: high, so that it shows in the loss
_FP32 = "policy.dtype=float32"
PHASES = ("seconds_generate", "seconds_experience", "seconds_update", "seconds_sync")


@dataclass(frozen=True)
class Variant:
    """How a variant differs from the demo.

    keys: keys of `training` with their values. pieces: parts replaced by OpenRLHF's (see stock_stage.PIECES).

    Example: Variant({"batching": "fixed"}, ("loss",))
    """

    keys: dict[str, str] = field(default_factory=dict)
    pieces: tuple[str, ...] = ()


_NOT_SHARED = {"share_prompts": "false"}
_STOCK_LOSS = Variant(_NOT_SHARED | {"old_logprobs": "always"}, ("loss",))
VARIANTS = {
    "ours": Variant(),
    "stock": Variant(_NOT_SHARED | {"old_logprobs": "always"}, ("trainer",)),
    "stock weight sync": Variant({}, ("weight_sync",)),
    "stock rollout": Variant({}, ("rollout",)),
    "log-probs before the update": Variant({"old_logprobs": "always"}),
    "prompts not shared": Variant(_NOT_SHARED),
    "stock loss": Variant(_NOT_SHARED, ("loss",)),
    "micro-batches as they come": Variant(_NOT_SHARED | {"batching": "fixed"}),
    "next rollout during training": Variant({"max_policy_lag": "1", "stage2.importance": "token"}),
    "zero-variance groups dropped": Variant({"stage2.drop_zero_variance": "true"}),
}
# Stock vLLM waits for its workers in a busy loop; with our plugin it sleeps, so "stock" runs without that plugin.
ENVIRONMENTS = {"stock": {"VLLM_PLUGINS": "medssr_stacks,medssr_shared_memory"}}
# The variant to compare with, if it is not "ours": the one that differs only in that part.
BASELINES = {"stock loss": "prompts not shared", "micro-batches as they come": "prompts not shared"}
_COMPARED = tuple(dict.fromkeys(("ours", "stock", *BASELINES.values())))


@dataclass(frozen=True)
class TrainingScale:
    """How much is measured.

    runs: names of variants, in the order in which they run. Those that others are compared with run first and again
    last, so that a machine that becomes slower or faster meanwhile is seen, and matters less. steps: of each run.
    loss_steps: of the comparison of losses. max_new_tokens: of each sample.
    """

    runs: tuple[str, ...] = (*_COMPARED, *(name for name in VARIANTS if name not in _COMPARED), *_COMPARED)
    steps: int = 4
    prompts_per_step: int = 4
    samples_per_prompt: int = 4
    micro_batch_size: int = 4  # with 8 in float32, stock does not fit into 24 GB
    max_new_tokens: int = 32
    loss_steps: int = 3


FULL = TrainingScale()
QUICK = TrainingScale(runs=("ours", "stock"), steps=2, loss_steps=2)


@dataclass(frozen=True)
class VariantTimes:
    """Times of a variant, in seconds, and what its steps processed.

    step: median time of a step, without waiting for examples. fastest, slowest: of its steps. seconds_*: medians of its
    phases. zero_variance: mean share of groups whose rewards are all equal. tokens: mean number of generated tokens in
    a step.

    Example: VariantTimes(14.15, 13.9, 15.0, 6.2, 2.1, 5.3, 0.59, zero_variance=0.42, tokens=412.0)
    """

    step: float
    fastest: float
    slowest: float
    seconds_generate: float
    seconds_experience: float
    seconds_update: float
    seconds_sync: float
    zero_variance: float
    tokens: float


@dataclass(frozen=True)
class TimeRatios:
    """How the times of variants compare.

    step_time_ratio, weight_sync_ratio: ours / stock. shares: variant -> time of its step / time of the step that it is
    compared with. variants: variant -> its times.
    """

    step_time_ratio: float
    weight_sync_ratio: float
    shares: dict[str, float]
    variants: dict[str, VariantTimes]


@dataclass(frozen=True)
class LossComparison:
    """Loss of our update and of OpenRLHF's, in fp32 on one rank.

    loss_max_abs_diff: largest absolute difference in the steps with the same samples. loss_steps: their number.
    losses_fp32: "ours" or "stock" -> loss of each step.
    """

    loss_max_abs_diff: float
    loss_steps: int
    losses_fp32: dict[str, list[float]]


def bench_training(json_path: Path, quick: bool = False) -> None:
    """Measure, write `json_path` and a plot next to it, print a table."""
    json_path, scale = Path(json_path), QUICK if quick else FULL
    json_path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=json_path.parent, prefix=".bench") as scratch:
        steps: dict[str, list[StepMetrics]] = {}
        for index, name in enumerate(tqdm(scale.runs, desc="variants", unit="run")):
            found = _run(Path(scratch) / str(index), name, VARIANTS[name], scale)
            steps.setdefault(name, []).extend(found[1:])  # the first step of a run warms up
        losses = compare_losses(Path(scratch), scale)
    ratios = compute_ratios(steps)
    write_result(json_path, asdict(ratios) | asdict(losses) | {"quick": quick, "scale": asdict(scale)})
    draw(ratios.variants, json_path)
    print(render_table(ratios, losses))


def compute_ratios(steps: dict[str, list[StepMetrics]]) -> TimeRatios:
    """Compare the variants by the metrics of their steps."""
    variants = {name: _measure(metrics) for name, metrics in steps.items()}
    ours, stock = variants["ours"], variants["stock"]
    return TimeRatios(
        step_time_ratio=round(ours.step / stock.step, 3),
        weight_sync_ratio=round(ours.seconds_sync / stock.seconds_sync, 3),
        shares={
            name: round(times.step / variants[BASELINES.get(name, "ours")].step, 3)
            for name, times in variants.items()
            if name not in ("ours", "stock")
        },
        variants=variants,
    )


def _measure(steps: list[StepMetrics]) -> VariantTimes:
    seconds = [step.seconds - step.seconds_wait for step in steps]
    values = {"step": statistics.median(seconds), "fastest": min(seconds), "slowest": max(seconds)}
    values |= {name: statistics.median(getattr(step, name) for step in steps) for name in PHASES}
    shares = [step.zero_variance for step in steps]  # NaN in stock steps, which do not measure it
    values["zero_variance"] = statistics.mean(0.0 if math.isnan(share) else share for share in shares)
    values["tokens"] = statistics.mean(step.tokens for step in steps)
    return VariantTimes(**{name: round(value, 3) for name, value in values.items()})


def compare_losses(folder: Path, scale: TrainingScale) -> LossComparison:
    """Train a few steps in fp32 on one rank with our loss and with OpenRLHF's."""
    shared = {"ranks_per_node": "1", "stage2.steps": scale.loss_steps, "stage2.micro_batch_size": _sequences(scale)}
    variants = {"ours": Variant(shared), "stock": Variant(shared | _STOCK_LOSS.keys, _STOCK_LOSS.pieces)}
    return compare_loss_steps(
        {name: _run(folder, f"{name} fp32", variant, scale, _FP32) for name, variant in variants.items()}
    )


def compare_loss_steps(steps: dict[str, list[StepMetrics]]) -> LossComparison:
    """Compare the losses of "ours" and "stock" in the first steps, those with the same samples."""
    losses = {name: [step.policy_loss + _KL * step.kl for step in found] for name, found in steps.items()}
    samples = zip(*([_describe_samples(step) for step in found] for found in steps.values()), strict=True)
    same = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], samples)))
    differences = [abs(one - other) for one, other in zip(*losses.values(), strict=True)]
    return LossComparison(max(differences[:same], default=math.nan), same, losses)


def _describe_samples(step: StepMetrics) -> tuple[float | None, ...]:
    return step.tokens, step.reward, step.reward_std, step.invalid_answer, step.truncated


def _sequences(scale: TrainingScale) -> int:
    return scale.prompts_per_step * scale.samples_per_prompt


def _run(folder: Path, name: str, variant: Variant, scale: TrainingScale, *others: str) -> list[StepMetrics]:
    """Run a variant; return the metrics of its steps. Raises RuntimeError, with the end of its log, if it fails."""
    run = folder / name.replace(" ", "_")
    stage = {
        "steps": scale.steps,
        "prompts_per_step": scale.prompts_per_step,
        "micro_batch_size": scale.micro_batch_size,
        "samples_per_prompt": scale.samples_per_prompt,
        "max_new_tokens": scale.max_new_tokens,
        "save_steps": 10_000,
        "learning_rate": "2e-5",
        "warmup_ratio": 0.0,
        "kl_coef": _KL,
        "drop_zero_variance": "false",
        "data": "[{path: hpo:supervised, limit: 64}]",
    }
    keys = {"stage1.enabled": "false"} | {f"stage2.{key}": value for key, value in stage.items()} | variant.keys
    overrides = [f"training.{key}={value}" for key, value in keys.items()]
    command = [sys.executable, "-m", "medssr_dist.bench.training.stock_stage", "--run-dir", str(run)]
    command += ["--pieces", *variant.pieces, "--set", "runtime.mode=sequential", *overrides, *others]
    env = os.environ | ENVIRONMENTS.get(name, {})
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the run {name!r} of {json.dumps(keys)} failed:\n{done.stderr[-3000:]}")
    return read_metrics(RunPaths(run).stage("stage2").metrics)


_AIMS = (
    ("step, time to stock's", "step_time_ratio", 0.5),
    ("weight sync, time to stock's", "weight_sync_ratio", 0.3),
    ("loss in fp32, largest difference", "loss_max_abs_diff", 1e-5),
)
_COLUMNS = ("step", "fastest", "slowest", *PHASES)


def render_table(ratios: TimeRatios, losses: LossComparison) -> str:
    """Return the aims with the measured values, then seconds by variant and phase, each variant with its share."""
    lines = [f"{'':<34}{'seen':>12}{'aim':>10}"]
    measured = vars(ratios) | vars(losses)
    for title, name, aim in _AIMS:
        value = measured[name]
        lines.append(f"{title:<34}{value:>12.3g}{aim:>10g}  {'met' if value <= aim else 'NOT MET'}")
    lines.append(f"the losses were compared in {losses.loss_steps} steps, those with the same samples")
    heads = "".join(f"{name.removeprefix('seconds_'):>12}" for name in _COLUMNS)
    lines += ["", f"{'seconds a step':<34}{heads}{'share':>8}"]
    for name, times in ratios.variants.items():
        share = ratios.shares.get(name)
        values = "".join(f"{getattr(times, column):>12.2f}" for column in _COLUMNS)
        lines.append(f"{name:<34}{values}{'' if share is None else f'{share:.2f}':>8}")
    return "\n".join(lines)


def draw(variants: dict[str, VariantTimes], json_path: Path) -> None:
    """Draw the phases of a step, one bar for each variant, as a PNG next to `json_path`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(variants)[::-1]
    figure, axes = pyplot.subplots(figsize=(8, 0.5 * len(names) + 1.5), layout="constrained")
    left = [0.0] * len(names)
    for phase in PHASES:
        widths = [getattr(variants[name], phase) for name in names]
        axes.barh(names, widths, left=left, label=phase.removeprefix("seconds_"))
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set_xlabel("seconds a step")
    axes.legend()
    figure.savefig(json_path.with_suffix(".png"), dpi=120)
    pyplot.close(figure)
