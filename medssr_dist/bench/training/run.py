"""`medssr bench training`: a GRPO step of ours against stock OpenRLHF, and the share of each piece.

Every variant is stage 2 on the demo's policy and human-annotated questions, in a separate process, with the same model,
prompts, seeds and number of samples; it differs only in what `VARIANTS` states. "stock" is OpenRLHF's own PPO trainer
with its generator, experience maker, update, loss and weight sync (`stock_trainer.py`), with our CPU patches. Times are
medians over the steps after the first, from `metrics.jsonl`, without start-up and waiting for examples. A piece's share
is the time of a step with the piece in stock form, divided by the time with ours.

Loss: one rank in fp32, on the same samples (seeded requests), stock loss against ours, step by step.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tqdm import tqdm

from medssr_dist.bench.result_file import write_result
from medssr_dist.data.jsonl import read_jsonl
from medssr_dist.run.paths import RunPaths

_KL = 0.05  # weight of the KL in these runs: high, so that it shows in the loss
PHASES = ("seconds_generate", "seconds_experience", "seconds_update", "seconds_sync")


@dataclass(frozen=True)
class Variant:
    """How a variant differs from the demo: keys of `training`, and pieces in stock form (see stock_stage.PIECES)."""

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
    "next rollout during training": Variant({"async_rollout": "true", "stage2.importance": "token"}),
    "zero-variance groups dropped": Variant({"stage2.drop_zero_variance": "true"}),
}
# Stock vLLM spins while it waits for its workers; the plugin that lets it sleep is ours.
ENVIRONMENTS = {"stock": {"VLLM_PLUGINS": "medssr_stacks"}}
# What a variant is compared with, if not with "ours": the one that differs in that piece alone.
BASELINES = {"stock loss": "prompts not shared", "micro-batches as they come": "prompts not shared"}


@dataclass(frozen=True)
class TrainingScale:
    """How much is measured."""

    variants: tuple[str, ...] = tuple(VARIANTS)
    steps: int = 4
    prompts_per_step: int = 4
    samples_per_prompt: int = 4
    micro_batch_size: int = 8
    max_new_tokens: int = 32
    loss_steps: int = 3


FULL = TrainingScale()
QUICK = TrainingScale(variants=("ours", "stock"), steps=2, loss_steps=2)


def bench_training(json_path: Path, quick: bool = False) -> None:
    """Measure, write `json_path` and a plot beside it, print a table."""

    json_path, scale = Path(json_path), QUICK if quick else FULL
    json_path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=json_path.parent, prefix=".bench") as scratch:
        found = {
            name: _run(Path(scratch), name, VARIANTS[name], scale)
            for name in tqdm(scale.variants, desc="variants", unit="run")
        }
        loss = loss_difference(Path(scratch), scale)
    figures = ratios(found) | loss | {"quick": quick, "scale": asdict(scale)}
    write_result(json_path, figures)
    draw(figures, json_path)
    print(table(figures))


def ratios(found: dict[str, list[dict]]) -> dict:
    """Figures from the variants' metrics, name -> rows of its steps; the first step of each is left out."""
    variants = {name: _medians(rows[1:]) for name, rows in found.items()}
    ours, stock = variants["ours"], variants["stock"]
    shares = {
        name: round(variants[name]["step"] / variants[BASELINES.get(name, "ours")]["step"], 3)
        for name in variants
        if name not in ("ours", "stock")
    }
    return {
        "step_time_ratio": round(ours["step"] / stock["step"], 3),
        "weight_sync_ratio": round(ours["seconds_sync"] / stock["seconds_sync"], 3),
        "shares": shares,
        "variants": variants,
    }


def _medians(rows: list[dict]) -> dict[str, float]:
    """Median seconds of a step, waiting left out, and of its phases; tokens/s and groups that taught something."""
    steps = [row["seconds"] - row["seconds_wait"] for row in rows]
    found = {"step": statistics.median(steps)}
    found |= {name: statistics.median(row[name] for row in rows) for name in PHASES}
    found["zero_variance"] = statistics.mean(row.get("zero_variance", 0.0) for row in rows)
    found["tokens"] = statistics.mean(row["tokens"] for row in rows)
    return {name: round(value, 3) for name, value in found.items()}


def loss_difference(folder: Path, scale: TrainingScale) -> dict:
    """Loss by step of our update and of the stock one, in fp32 on one rank, and the largest difference."""
    alike = {"ranks_per_node": "1", "stage2.steps": scale.loss_steps, "stage2.micro_batch_size": _sequences(scale)}
    variants = {"ours": Variant(alike), "stock": Variant(alike | _STOCK_LOSS.keys, _STOCK_LOSS.pieces)}
    losses = {
        name: [_loss(row) for row in _run(folder, f"{name} fp32", variant, scale, "policy.dtype=float32")]
        for name, variant in variants.items()
    }
    difference = max(abs(one - other) for one, other in zip(losses["ours"], losses["stock"], strict=True))
    return {"loss_max_abs_diff": difference, "losses_fp32": losses}


def _sequences(scale: TrainingScale) -> int:
    return scale.prompts_per_step * scale.samples_per_prompt


def _loss(row: dict) -> float:
    return row["policy_loss"] + _KL * row["kl"]


def _run(folder: Path, name: str, variant: Variant, scale: TrainingScale, *others: str) -> list[dict]:
    """Run a variant; return the lines of its metrics.jsonl. Raises RuntimeError with its log when it fails."""
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
    return list(read_jsonl(RunPaths(run).stage("stage2").metrics))


_AIMS = (
    ("step, time to stock's", "step_time_ratio", 0.6),
    ("weight sync, time to stock's", "weight_sync_ratio", 0.3),
    ("loss in fp32, largest difference", "loss_max_abs_diff", 1e-5),
)
_COLUMNS = ("step", *PHASES)


def table(figures: dict) -> str:
    """Aims with what was seen, then seconds by variant and phase, each with its share."""
    lines = [f"{'':<34}{'seen':>12}{'aim':>10}"]
    for title, key, aim in _AIMS:
        lines.append(f"{title:<34}{figures[key]:>12.3g}{aim:>10g}  {'met' if figures[key] <= aim else 'NOT MET'}")
    heads = "".join(f"{name.removeprefix('seconds_'):>12}" for name in _COLUMNS)
    lines += ["", f"{'seconds a step':<34}{heads}{'share':>8}"]
    for name, found in figures["variants"].items():
        share = figures["shares"].get(name)
        values = "".join(f"{found[column]:>12.2f}" for column in _COLUMNS)
        lines.append(f"{name:<34}{values}{'' if share is None else f'{share:.2f}':>8}")
    return "\n".join(lines)


def draw(figures: dict, json_path: Path) -> None:
    """Phases of a step, a bar a variant, as PNG beside `json_path`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(figures["variants"])[::-1]
    figure, axes = pyplot.subplots(figsize=(8, 0.5 * len(names) + 1.5), layout="constrained")
    left = [0.0] * len(names)
    for phase in PHASES:
        widths = [figures["variants"][name][phase] for name in names]
        axes.barh(names, widths, left=left, label=phase.removeprefix("seconds_"))
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set_xlabel("seconds a step")
    axes.legend()
    figure.savefig(json_path.with_suffix(".png"), dpi=120)
    pyplot.close(figure)
