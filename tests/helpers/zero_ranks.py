"""One rank of a real DeepSpeed ZeRO-3 group that takes GRPO steps; run as a process by run_ranks of zero_cases.py.

    python zero_ranks.py JOB RANK WORLD PORT

JOB is a torch file: name -> case with its batch. Rank 0 writes JOB.out.WORLD: for each case a dict of log-probs, loss,
gradients and updated weights, all gathered. The ranks are the product's own classes (path "kernels"), OpenRLHF's
("stock"), or ours with OpenRLHF's loss ("stock loss"). The optimizer is SGD instead of Adam, whose first step hides the
size of a gradient.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace

from places import REPO  # noqa: E402

os.environ["MEDSSR_DEVICE"] = "cpu"

import torch  # noqa: E402

torch.set_num_threads(1)

from medssr_dist.bench.training.stock_loss import StockLossRank  # noqa: E402
from medssr_dist.bench.training.stock_trainer import (  # noqa: E402
    StockPolicyRank,
    StockReferenceRank,
    StockStrategy,
)
from medssr_dist.config.load import load_config  # noqa: E402
from medssr_dist.training.backend.openrlhf import Experience  # noqa: E402
from medssr_dist.training.backend.strategy import Strategy  # noqa: E402
from medssr_dist.training.ranks import PolicyRank, ReferenceRank  # noqa: E402

# Path -> classes of the strategy, of the policy's rank and of the reference's rank.
CLASSES = {
    "kernels": (Strategy, PolicyRank, ReferenceRank),
    "stock": (StockStrategy, StockPolicyRank, StockReferenceRank),
    "stock loss": (Strategy, StockLossRank, StockReferenceRank),
}
STEP_FIELDS = (
    "sequences",
    "attention_mask",
    "action_mask",
    "action_log_probs",
    "base_action_log_probs",
    "rollout_log_probs",
    "advantages",
)
CONFIG = REPO / "configs" / "smollm2_cpu.yaml"


def main() -> None:
    job_file, rank, world, port = Path(sys.argv[1]), *map(int, sys.argv[2:5])
    job = torch.load(job_file)
    results = {name: run(SimpleNamespace(**case), rank, world, port) for name, case in job.items()}
    if rank == 0:
        torch.save(results, f"{job_file}.out.{world}")


def run(case: SimpleNamespace, rank: int, world: int, port: int) -> dict:
    """Take the step of a case; return its results."""
    batch, stock = case.batch, case.path == "stock"
    _, policy_class, reference_class = CLASSES[case.path]
    strategy = make_strategy(case, len(batch["sequences"]), world)
    place = (world, rank, "127.0.0.1", port)
    tokens = [batch[name] for name in ("sequences", "action_mask", "attention_mask")]
    reference = reference_class(*place)
    reference.init_model_from_pretrained(strategy, case.model)
    policy = policy_class(*place)
    policy.init_model_from_pretrained(strategy, case.model, 10, *([None] if stock else []))
    get_seen = observe(strategy, policy, stock)
    result = {"reference_logp": reference.forward(*tokens), "logp": policy.forward(*tokens)}
    heads = [actor.model.get_output_embeddings() for actor in (reference.model, policy.actor)]
    result["released"] = [head.weight.numel() == 0 for head in heads]
    own = take_share(batch, rank, world)
    if stock:
        policy.append(own)
        status = policy.fit(batch["kl_coef"])
    else:
        updates = case.updates.get(str(world)) or split_in_pairs(len(own.sequences))
        policy.load_update([[make_micro_batch(own, rows) for rows in micro_batches] for micro_batches in updates])
        status = policy.update()
    result |= get_seen() | {"status": status, "weights": gather_values(policy, "weight")}
    if case.lora_rank:
        policy.save_model()
        result["logp_after"] = policy.forward(*tokens)
    return result


def split_in_pairs(sequences: int) -> list[list[list[int]]]:
    """Return one optimizer step with micro-batches of two sequences, as OpenRLHF splits them."""
    return [[[start, start + 1] for start in range(0, sequences, 2)]]


def make_strategy(case: SimpleNamespace, sequences: int, world: int):
    stage = {
        "prompts_per_step": 1,
        "samples_per_prompt": sequences,
        "micro_batch_size": 2,
        "max_new_tokens": 15,
        "temperature": case.temperature,
        "max_grad_norm": 0,
        "kl_coef": case.batch["kl_coef"],
    } | case.stage
    training = {
        "ranks_per_node": world,
        "packing": case.packing,
        "gradient_checkpointing": case.checkpointing,
        "lora_rank": case.lora_rank,
        "share_prompts": False,
    }
    overrides = [f"training.{name}={value}" for name, value in training.items()]
    overrides += [f"training.stage1.{name}={value}" for name, value in stage.items()]
    overrides += [f"policy.model={case.model}", f"policy.dtype={case.dtype}"]
    config = load_config(CONFIG, overrides)
    strategy = CLASSES[case.path][0](config, config.training.stage1, Path(case.model) / "stage", group_secret="test")
    strategy.args.vllm.sync_backend = "gloo"
    train_config, eval_config = strategy.get_ds_train_config, strategy.get_ds_eval_config
    optimizer = {"type": "SGD", "params": {"lr": case.learning_rate}}
    strategy.get_ds_train_config = lambda **kwargs: shard_all(train_config(**kwargs)) | {"optimizer": optimizer}
    strategy.get_ds_eval_config = lambda **kwargs: shard_all(eval_config(**kwargs))
    return strategy


def shard_all(ds_config: dict) -> dict:
    """Change the config so that ZeRO-3 shards also small weights, because the head of a large model is sharded."""
    ds_config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    return ds_config | {"zero_allow_untested_optimizer": True}


def take_share(batch: dict, rank: int, world: int) -> Experience:
    """Return the rank's sequences of the batch."""
    count = len(batch["sequences"])
    rows = slice(rank * count // world, (rank + 1) * count // world)
    names = [name for name in STEP_FIELDS if batch.get(name) is not None]
    fields = {name: batch[name][rows].clone() for name in names}
    lengths = fields["action_mask"].sum(1).float()
    return Experience(**fields, response_length=lengths, info={"reward": torch.ones(len(lengths))})


def make_micro_batch(own: Experience, rows: list[int]) -> Experience:
    """Return these rows as ExperienceMaker does; without any row, one sequence whose tokens are all masked."""
    fields = {name: getattr(own, name) for name in STEP_FIELDS}
    chosen = {name: None if value is None else value[rows or [0]].clone() for name, value in fields.items()}
    if not rows:
        chosen["action_mask"] = torch.zeros_like(chosen["action_mask"])
    return Experience(**chosen)


def observe(strategy, policy, stock: bool):
    """Record the loss of every micro-batch, and the whole gradients before the optimizer step; return a reader."""
    backward, step, seen = strategy.backward, strategy.optimizer_step, {"loss": torch.zeros(())}

    def record_loss(loss, *args, **kwargs):
        seen["loss"] += loss.detach() / (strategy.accumulated_gradient if stock else 1)
        return backward(loss, *args, **kwargs)

    def record_gradients(*args, **kwargs):
        ends = policy.actor.model.is_gradient_accumulation_boundary() if stock else strategy.update_ends
        if ends:
            seen["gradients"] = gather_values(policy, "gradient")
            seen["steps"] = seen.get("steps", 0) + 1
        return step(*args, **kwargs)

    strategy.backward, strategy.optimizer_step = record_loss, record_gradients
    return lambda: seen | {"loss": strategy.all_reduce(seen["loss"])}


def gather_values(policy, what: str) -> dict[str, torch.Tensor]:
    """Return fp32 master weights or gradients of all trained weights, by name, gathered from all ranks."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_grad

    get = {"weight": safe_get_full_fp32_param, "gradient": safe_get_full_grad}[what]
    weights = policy.actor.model.module.named_parameters()
    return {name: get(weight).clone() for name, weight in weights if weight.requires_grad}


if __name__ == "__main__":
    main()
