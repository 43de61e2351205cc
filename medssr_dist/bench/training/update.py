"""The GRPO update alone, on one device: tokens/s, MFU and peak memory, with and without each piece.

    medssr bench update --json FILE [--quick]

One ZeRO-3 rank takes steps on made-up samples (`SCALES`: lengths drawn once) with a model of random weights in the
shapes of `SHAPES`; shapes that do not fit are listed with the reason. It needs no engine, so one GPU is enough. Every
variant runs in a separate process and differs only in what `VARIANTS` states; figures are medians over the steps after
the first. Attention is torch's own (sdpa) in all of them. MFU counts the model's own arithmetic
(`training/update/flops.py`), the same for all variants; peak memory is torch's on a GPU, the process's on a CPU.
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
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from tqdm import tqdm

from medssr_dist.bench.result_file import write_result
from medssr_dist.bench.training.stock_stage import DEMO
from medssr_dist.config.load import load_config
from medssr_dist.config.schema import Config
from medssr_dist.config.training import Stage
from medssr_dist.runtime.models import resolve_model

_QWEN3 = {"model_type": "qwen3", "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936}
# Hugging Face config of each shape, as its maker published it.
SHAPES = {
    "SmolLM2-135M": {
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    },
    "Qwen3-0.6B": _QWEN3
    | {
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "tie_word_embeddings": True,
    },
    "Qwen3-1.7B": _QWEN3
    | {
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "tie_word_embeddings": True,
    },
    "Qwen3-8B": _QWEN3
    | {
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "tie_word_embeddings": False,
    },
}


@dataclass(frozen=True)
class UpdateVariant:
    """How a variant differs.

    keys: of the config's `training`. path: "ours", "stock" (OpenRLHF's rank) or "stock loss" (its loss in our update).
    old_logprobs: compute the log-probs before the update.
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
    "packed": UpdateVariant({"packing": "true"}),
    "no gradient checkpointing": UpdateVariant({"gradient_checkpointing": "false"}),
}
_OFFLOADED = {"Qwen3-8B": {"offload_optimizer": "true"}}  # else 16 bytes a weight on the GPU


@dataclass(frozen=True)
class UpdateScale:
    """What a step is made of; lengths in tokens, those of answers drawn between the two."""

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


def bench_update(json_path: Path, quick: bool = False) -> None:
    """Measure, and print a table; each variant rewrites `json_path`, so an interrupted run keeps its rows."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    scale, rows = SCALES[device + " quick" * quick], []
    tokenizer = resolve_model(load_config(DEMO).policy)
    for shape in scale.shapes:
        with tempfile.TemporaryDirectory() as folder:
            alone(make_model, SHAPES[shape], tokenizer, folder)
            for name in tqdm(VARIANTS, desc=f"{shape} on {device}", unit="variant"):
                variant = replace(VARIANTS[name], keys=_OFFLOADED.get(shape, {}) | VARIANTS[name].keys)
                rows.append({"shape": shape, "variant": name} | _measured(folder, variant, scale))
                write_result(json_path, {"device": device, "quick": quick, "scale": asdict(scale), "rows": rows})
    print(table(rows))


def alone(function, *args):
    """Run `function` in a separate process, whose memory ends with it."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *args).result()


def _measured(folder: str, variant: UpdateVariant, scale: UpdateScale) -> dict:
    try:
        return alone(measure, folder, variant, scale)
    except Exception as error:  # one that does not fit is a result; the others go on
        words = str(error).strip().splitlines() or [""]
        return {"failed": f"{type(error).__name__}: {words[0]}"[:200]}


def make_model(shape: dict, tokenizer: Path, folder: str) -> None:
    """A model directory of this shape with random weights; the tokenizer is the demo's, whose ids it knows."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    config = AutoConfig.for_model(**shape, max_position_embeddings=8192)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)


def measure(folder: str, variant: UpdateVariant, scale: UpdateScale) -> dict[str, float]:
    """Return medians over the steps of one variant; called in a separate process."""
    config = config_of(folder, variant.keys, scale)
    policy = load_rank(config, folder, scale.steps, variant.path)
    samples = make_samples(scale, policy.actor.model.module.config.vocab_size)
    steps = [take_step(policy, config, samples, number, variant) for number in range(scale.steps)][1:]
    found = {name: statistics.median(each[name] for each in steps) for name in steps[0]}
    return {name: float(f"{value:.4g}") for name, value in found.items()} | {"peak_gb": round(_peak_bytes() / 1e9, 2)}


def config_of(folder: str, keys: dict[str, str], scale: UpdateScale) -> Config:
    """The demo's config with one rank, on the model in `folder`, with `keys`."""
    longest = max(64, scale.prompt + scale.answers[1])  # tokens; the least that a config takes
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
    return load_config(DEMO, overrides)


def load_rank(config: Config, folder: str, steps: int, path: str):
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


def make_samples(scale: UpdateScale, vocabulary: int) -> list:
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


def take_step(policy, config: Config, samples: list, number: int, variant: UpdateVariant) -> dict[str, float]:
    """Take one update; return its seconds, tokens/s and, where the peak of the device is known, MFU."""
    started = time.perf_counter()
    stage = config.training.stage2
    advantage_N = _compute_advantages(stage, samples)
    updates = [_as_stock_takes(stage, samples, advantage_N)] if variant.path == "stock" else None
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
    seconds = time.perf_counter() - started
    return measure_speed(policy, config, samples, seconds) | {"seconds": seconds}


def _compute_advantages(stage: Stage, samples: list) -> torch.Tensor:
    from medssr_dist.training.update.grpo_terms import compute_advantages

    reward_BG = torch.cat([sample.rewards for sample in samples]).view(-1, stage.samples_per_prompt)
    return compute_advantages(reward_BG, stage).advantage


def _plan_updates(config: Config, samples: list, advantage_N: torch.Tensor, number: int) -> list[list]:
    from medssr_dist.training.update.experience import ExperienceMaker

    maker = ExperienceMaker(config, config.training.stage2, None, None, pad_token=0)
    return maker.plan(samples, advantage_N, number).shares[0]


def _as_stock_takes(stage: Stage, samples: list, advantage_N: torch.Tensor) -> list:
    """Make micro-batches of samples as they come, with what OpenRLHF's replay buffer reads of them."""
    from medssr_dist.training.update.experience import make_micro_batch

    batches, size = [], stage.micro_batch_size
    for start in range(0, len(samples), size):
        part = range(start, min(start + size, len(samples)))
        batches.append(make_micro_batch(samples, advantage_N, list(part), pad_token=0))
        batches[-1].response_length = batches[-1].action_mask.sum(1).float()
        batches[-1].info = {"reward": torch.cat([samples[index].rewards for index in part])}
    return batches


def measure_speed(policy, config: Config, samples: list, seconds: float) -> dict[str, float]:
    """Prompt and answer tokens a second over the whole step, and the share of the device's peak."""
    from medssr_dist.training.update.flops import compute_mfu, count_model_work, find_peak_flops

    lengths = torch.tensor([sample.sequences.shape[1] for sample in samples])
    actions = int(sum(sample.action_mask.sum() for sample in samples))
    peak = find_peak_flops(config.training.peak_tflops, config.policy.dtype)
    flops = count_model_work(policy.actor.model.module).count_update_flops(lengths, actions)
    return {"tokens_per_s": lengths.sum().item() / seconds} | (
        {"mfu": compute_mfu(flops, seconds, 1, peak)} if peak else {}
    )


def _peak_bytes() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def table(rows: list[dict]) -> str:
    """A line a shape and variant."""
    lines = [f"{'shape':<14}{'variant':<30}{'s a step':>10}{'tokens/s':>10}{'MFU':>7}{'peak GB':>9}"]
    for row in rows:
        start = f"{row['shape']:<14}{row['variant']:<30}"
        if "failed" in row:
            lines.append(start + row["failed"])
            continue
        share = f"{row['mfu']:.3f}" if "mfu" in row else "-"
        lines.append(f"{start}{row['seconds']:>10.3f}{row['tokens_per_s']:>10.0f}{share:>7}{row['peak_gb']:>9.2f}")
    return "\n".join(lines)
