"""The GRPO update alone, on one device: tokens/s, MFU and peak memory, with and without each part.

    medssr bench update --json FILE [--quick]

One ZeRO-3 rank takes steps on random samples (`SCALES` states their lengths) with random weights in the shapes of
`SHAPES`. Shapes that do not fit into memory are listed with the reason. No engine is needed, so one GPU suffices. Each
variant runs in a separate process; `VARIANTS` states the differences, and `--quick` measures `QUICK_VARIANTS`. The
results are medians over the steps after the first. Weights are bfloat16 on a GPU and float32 on CPU. Attention is
torch's own: `varlen` over packed rows, else sdpa. MFU counts the operations of the model (`training/update/flops.py`),
which are the same for all variants. Peak memory is torch's on GPU, and that of the process on CPU.
"""

from __future__ import annotations

import itertools
import multiprocessing
import random
import resource
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from tqdm import tqdm

from medssr_dist.bench.result_file import write_result
from medssr_dist.bench.training.stock_stage import DEMO
from medssr_dist.config.load import load_config
from medssr_dist.config.schema import Config
from medssr_dist.config.training import Stage
from medssr_dist.estimates.model_shape import SHAPES
from medssr_dist.runtime.models import resolve_model

if TYPE_CHECKING:
    from medssr_dist.training.backend.openrlhf import Experience

Result = TypeVar("Result")


@dataclass(frozen=True)
class UpdateVariant:
    """How a variant differs from ours.

    keys: keys of `training` with their values. path: "ours", "stock" (OpenRLHF's rank) or "stock loss" (its loss in our
    update). old_logprobs: compute the log-probs before the update.

    Example: UpdateVariant({"batching": "fixed"})
    """

    keys: dict[str, str] = field(default_factory=dict)
    path: str = "ours"
    old_logprobs: bool = False


VARIANTS = {
    "ours": UpdateVariant(),
    "stock": UpdateVariant(path="stock", old_logprobs=True),
    "stock loss": UpdateVariant(path="stock loss"),
    "micro-batches as they come": UpdateVariant({"batching": "fixed"}),
    "log-probs before the update": UpdateVariant(old_logprobs=True),
    "shared prompts": UpdateVariant({"share_prompts": "true"}),
    "packed": UpdateVariant({"packing": "true", "attention": "varlen"}),
    "no gradient checkpointing": UpdateVariant({"gradient_checkpointing": "false"}),
}
QUICK_VARIANTS = ("ours", "stock", "packed")
_OFFLOADED = {"Qwen3-8B": {"offload_optimizer": "true"}}  # otherwise 16 bytes per weight on the GPU


@dataclass(frozen=True)
class UpdateScale:
    """The size of a step.

    shapes: names in SHAPES. prompts: number of prompts. samples: answers per prompt. prompt: tokens of a prompt.
    answers: bounds of the random length of an answer, tokens.
    """

    shapes: tuple[str, ...]
    prompts: int
    samples: int
    prompt: int
    answers: tuple[int, int]
    micro_batch_size: int
    steps: int = 4


SCALES = {
    "cuda": UpdateScale(("Qwen3-0.6B", "Qwen3-1.7B", "Qwen3-8B"), 16, 8, 512, (64, 1024), 8),
    "cuda quick": UpdateScale(("Qwen3-0.6B",), 8, 8, 512, (64, 1024), 8, steps=2),
    "cpu": UpdateScale(("SmolLM2-135M",), 4, 4, 192, (8, 32), 8),
    "cpu quick": UpdateScale(("SmolLM2-135M",), 2, 2, 64, (2, 8), 2, steps=2),
}


@dataclass(frozen=True)
class UpdateSpeed:
    """Speed of a step: seconds, prompt and answer tokens per second, and MFU where the peak of the device is known.

    peak_gb: peak memory, 10^9 bytes; None for a single step.

    Example: UpdateSpeed(seconds=2.0, tokens_per_s=1000.0, mfu=0.41, peak_gb=70.5)
    """

    seconds: float
    tokens_per_s: float
    mfu: float | None = None
    peak_gb: float | None = None


@dataclass(frozen=True)
class UpdateRow:
    """The result of one shape and variant: its speed, or why it failed.

    Example: UpdateRow("Qwen3-8B", "stock", failed="OutOfMemoryError: CUDA out of memory")
    """

    shape: str
    variant: str
    speed: UpdateSpeed | None = None
    failed: str = ""

    def as_row(self) -> dict[str, str | float]:
        """Return the row of the result file: numbers that are unknown are left out."""
        names: dict[str, str | float] = {"shape": self.shape, "variant": self.variant}
        if self.speed is None:
            return names | {"failed": self.failed}
        return names | {name: value for name, value in asdict(self.speed).items() if value is not None}


def bench_update(json_path: Path, quick: bool = False) -> None:
    """Measure, and print a table; `json_path` is written after each variant, so an interrupted run keeps its rows."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    scale, rows = SCALES[device + " quick" * quick], []
    tokenizer = resolve_model(load_config(DEMO).policy)
    for shape in scale.shapes:
        with tempfile.TemporaryDirectory() as folder:
            run_in_process(make_model, SHAPES[shape], tokenizer, folder)
            for name in tqdm(QUICK_VARIANTS if quick else VARIANTS, desc=f"{shape} on {device}", unit="variant"):
                variant = replace(VARIANTS[name], keys=_OFFLOADED.get(shape, {}) | VARIANTS[name].keys)
                rows.append(_measure_row(shape, name, folder, variant, scale))
                result = {"device": device, "quick": quick, "scale": asdict(scale)}
                write_result(json_path, result | {"rows": [row.as_row() for row in rows]})
    print(render_table(rows))


def run_in_process(function: Callable[..., Result], *args: object) -> Result:
    """Run `function` in a separate process, which frees its memory at its end."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *args).result()


def _measure_row(shape: str, name: str, folder: str, variant: UpdateVariant, scale: UpdateScale) -> UpdateRow:
    try:
        return UpdateRow(shape, name, run_in_process(measure, folder, variant, scale))
    except Exception as error:  # a variant that does not fit into memory is a result; the others continue
        lines = str(error).strip().splitlines() or [""]
        return UpdateRow(shape, name, failed=f"{type(error).__name__}: {lines[0]}"[:200])


def make_model(shape: dict[str, Any], tokenizer: Path, folder: str) -> None:
    """Write a model of this shape with random weights into `folder`, with the demo's tokenizer, whose ids it has."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    config = AutoConfig.for_model(**shape, max_position_embeddings=8192)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)


def measure(folder: str, variant: UpdateVariant, scale: UpdateScale) -> UpdateSpeed:
    """Return the medians over the steps of a variant after the first; call it in a separate process."""
    config = make_config(folder, variant.keys, scale)
    policy = load_rank(config, folder, scale.steps, variant.path)
    samples = make_samples(scale, policy.actor.model.module.config.vocab_size)
    steps = [take_step(policy, config, samples, number, variant) for number in range(scale.steps)][1:]
    return UpdateSpeed(
        seconds=_find_median([step.seconds for step in steps]),
        tokens_per_s=_find_median([step.tokens_per_s for step in steps]),
        mfu=None if steps[0].mfu is None else _find_median([step.mfu for step in steps]),
        peak_gb=round(_measure_peak_bytes() / 1e9, 2),
    )


def _find_median(values: list[float]) -> float:
    return float(f"{statistics.median(values):.4g}")


def make_config(folder: str, keys: dict[str, str], scale: UpdateScale) -> Config:
    """Return the demo's config with one rank, the model in `folder`, and `keys` of `training`."""
    longest = max(64, scale.prompt + scale.answers[1])  # tokens; a config needs at least 64
    stage = {
        "steps": scale.steps,
        "prompts_per_step": scale.prompts,
        "samples_per_prompt": scale.samples,
        "kl_coef": 0.0,
        "micro_batch_size": scale.micro_batch_size,
        "max_new_tokens": scale.answers[1],
        "drop_zero_variance": "false",
    }
    training = {
        "ranks_per_node": 1,
        "share_prompts": "false",
        "gradient_checkpointing": "true",
        "stage1.enabled": "false",
    }
    training |= {f"stage2.{name}": value for name, value in stage.items()}
    training |= keys
    if keys.get("packing"):
        training["stage2.micro_batch_tokens"] = scale.micro_batch_size * longest
    overrides = [f"training.{name}={value}" for name, value in training.items()]
    overrides += [f"policy.model={folder}", f"policy.max_model_len={longest}"]
    overrides += ["policy.dtype=bfloat16"] * torch.cuda.is_available()
    return load_config(DEMO, overrides)


def load_rank(config: Config, folder: str, steps: int, path: str) -> Any:
    """Load the only rank of a ZeRO-3 group, with its model and optimizer."""
    from medssr_dist.bench.training.stock_loss import StockLossRank
    from medssr_dist.bench.training.stock_trainer import StockPolicyRank, StockStrategy
    from medssr_dist.training.backend.strategy import Strategy
    from medssr_dist.training.ranks import PolicyRank

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    rank_class = {"ours": PolicyRank, "stock": StockPolicyRank, "stock loss": StockLossRank}[path]
    strategy_class, engines = (StockStrategy, [None]) if path == "stock" else (Strategy, [])
    policy = rank_class(1, 0, "127.0.0.1", port)
    strategy = strategy_class(config, config.training.stage2, Path(folder) / "stage")
    policy.init_model_from_pretrained(strategy, folder, steps, *engines)
    return policy


def make_samples(scale: UpdateScale, vocabulary: int) -> list[Experience]:
    """Make the samples of one step: random tokens, lengths and rewards, the same for every variant."""
    from medssr_dist.training.backend.openrlhf import Experience

    draw, tokens, samples = random.Random(0), torch.Generator().manual_seed(0), []
    for _ in range(scale.prompts):
        prompt = torch.randint(10, vocabulary, (1, scale.prompt), generator=tokens)
        for _ in range(scale.samples):
            answer = torch.randint(10, vocabulary, (1, draw.randint(*scale.answers)), generator=tokens)
            sequence, reward = torch.cat([prompt, answer], 1), torch.tensor([float(draw.random() < 0.5)])
            actions = torch.zeros_like(sequence)[:, 1:]
            actions[:, scale.prompt - 1 :] = 1
            info = {"reward": reward, "response_length": torch.tensor([float(answer.shape[1])])}
            samples.append(
                Experience(
                    sequences=sequence,
                    attention_mask=torch.ones_like(sequence),
                    action_mask=actions,
                    rewards=reward,
                    labels=["{}"],
                    info=info,
                )
            )
    return samples


def take_step(
    policy: Any, config: Config, samples: list[Experience], number: int, variant: UpdateVariant
) -> UpdateSpeed:
    """Train on the samples as step `number`; return its speed."""
    started = time.perf_counter()
    stage = config.training.stage2
    advantage_N = _compute_advantages(stage, samples)
    updates = [_make_stock_batches(stage, samples, advantage_N)] if variant.path == "stock" else None
    updates = updates or _plan_updates(config, samples, advantage_N, number)
    if variant.old_logprobs:
        for batch in itertools.chain.from_iterable(updates):
            batch.action_log_probs = policy.forward(batch.sequences, batch.action_mask, batch.attention_mask)
    if variant.path == "stock":
        for batch in updates[0]:
            policy.append(batch)
        policy.fit(0.0)
    else:
        policy.load_update(updates)
        policy.update()
    return compute_speed(policy, config, samples, time.perf_counter() - started)


def _compute_advantages(stage: Stage, samples: list[Experience]) -> torch.Tensor:
    from medssr_dist.training.update.grpo_terms import compute_advantages

    reward_BG = torch.cat([sample.rewards for sample in samples]).view(-1, stage.samples_per_prompt)
    return compute_advantages(reward_BG, stage).advantage


def _plan_updates(
    config: Config, samples: list[Experience], advantage_N: torch.Tensor, number: int
) -> list[list[Experience]]:
    from medssr_dist.training.update.experience import ExperienceMaker

    maker = ExperienceMaker(config, config.training.stage2, None, None, pad_token=0)
    return maker.plan(samples, advantage_N, number).shares[0]


def _make_stock_batches(stage: Stage, samples: list[Experience], advantage_N: torch.Tensor) -> list[Experience]:
    """Make micro-batches in the order of the samples, with the fields that OpenRLHF's replay buffer reads."""
    from medssr_dist.training.update.experience import make_micro_batch

    batches, size = [], stage.micro_batch_size
    for start in range(0, len(samples), size):
        part = range(start, min(start + size, len(samples)))
        batches.append(make_micro_batch(samples, advantage_N, list(part), pad_token=0))
        batches[-1].response_length = batches[-1].action_mask.sum(1).float()
        batches[-1].info = {"reward": torch.cat([samples[index].rewards for index in part])}
    return batches


def compute_speed(policy: Any, config: Config, samples: list[Experience], seconds: float) -> UpdateSpeed:
    """Return the speed of a step that took `seconds`; tokens are those of prompts and answers."""
    from medssr_dist.training.update.flops import compute_mfu, count_model_work, find_peak_flops

    length_N = torch.tensor([sample.sequences.shape[1] for sample in samples])
    actions = int(sum(sample.action_mask.sum() for sample in samples))
    peak = find_peak_flops(config.training.peak_tflops, config.policy.dtype)
    flops = count_model_work(policy.actor.model.module).count_update_flops(length_N, actions)
    mfu = compute_mfu(flops, seconds, 1, peak) if peak else None
    return UpdateSpeed(seconds, length_N.sum().item() / seconds, mfu)


def _measure_peak_bytes() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def render_table(rows: list[UpdateRow]) -> str:
    """Return a table with a line for each shape and variant."""
    lines = [f"{'shape':<14}{'variant':<30}{'s a step':>10}{'tokens/s':>10}{'MFU':>7}{'peak GB':>9}"]
    for row in rows:
        start, speed = f"{row.shape:<14}{row.variant:<30}", row.speed
        if speed is None:
            lines.append(start + row.failed)
            continue
        share = "-" if speed.mfu is None else f"{speed.mfu:.3f}"
        lines.append(f"{start}{speed.seconds:>10.3f}{speed.tokens_per_s:>10.0f}{share:>7}{speed.peak_gb:>9.2f}")
    return "\n".join(lines)
