"""One rank of a real DeepSpeed ZeRO-3 group that takes GRPO steps; run as a process by training/test_kernels.py.

    python zero_ranks.py JOB RANK WORLD PORT

JOB is a torch file, name -> case with its batch; rank 0 writes JOB.out.WORLD: for each case a dict of log-probs, loss,
gradients and updated weights, all gathered. The ranks are the product's own classes (path "kernels"), OpenRLHF's
("stock"), or ours with OpenRLHF's loss ("stock loss"). The optimizer is SGD in place of DeepSpeed's Adam, which would
have to be compiled first.
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

# Path -> classes of the strategy, the policy's rank and the reference's.
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
CONFIG = REPO / "configs" / "demo_cpu.yaml"


def main() -> None:
    job_file, rank, world, port = Path(sys.argv[1]), *map(int, sys.argv[2:5])
    job = torch.load(job_file)
    results = {name: run(SimpleNamespace(**case), rank, world, port) for name, case in job.items()}
    if rank == 0:
        torch.save(results, f"{job_file}.out.{world}")


def run(case: SimpleNamespace, rank: int, world: int, port: int) -> dict:
    batch, stock = case.batch, case.path == "stock"
    _, policy_class, reference_class = CLASSES[case.path]
    strategy = make_strategy(case, len(batch["sequences"]), world)
    place = (world, rank, "127.0.0.1", port)
    tokens = [batch[name] for name in ("sequences", "action_mask", "attention_mask")]
    reference = reference_class(*place)
    reference.init_model_from_pretrained(strategy, case.model)
    policy = policy_class(*place)
    policy.init_model_from_pretrained(strategy, case.model, 10, *([None] if stock else []))
    seen = watch(strategy, policy, stock)
    result = {"reference_logp": reference.forward(*tokens), "logp": policy.forward(*tokens)}
    heads = [actor.model.get_output_embeddings() for actor in (reference.model, policy.actor)]
    result["released"] = [head.weight.numel() == 0 for head in heads]
    own = shard(batch, rank, world)
    if stock:
        policy.append(own)
        status = policy.fit(batch["kl_coef"])
    else:
        updates = case.updates.get(str(world)) or in_pairs(len(own.sequences))
        policy.load_update([[part(own, rows) for rows in micro_batches] for micro_batches in updates])
        status = policy.update()
    result |= seen() | {"status": status, "weights": whole(policy, "weight")}
    if case.lora_rank:
        policy.save_model()
        result["logp_after"] = policy.forward(*tokens)
    return result


def in_pairs(sequences: int) -> list[list[list[int]]]:
    """One optimizer step over micro-batches of two sequences, as OpenRLHF cuts them."""
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
    strategy = CLASSES[case.path][0](config, config.training.stage1, Path(case.model) / "stage")
    strategy.args.vllm.sync_backend = "gloo"
    train_config, eval_config = strategy.get_ds_train_config, strategy.get_ds_eval_config
    optimizer = {"type": "SGD", "params": {"lr": case.learning_rate}}
    strategy.get_ds_train_config = lambda **kwargs: release_all(train_config(**kwargs)) | {"optimizer": optimizer}
    strategy.get_ds_eval_config = lambda **kwargs: release_all(eval_config(**kwargs))
    return strategy


def release_all(ds_config: dict) -> dict:
    """ZeRO-3 keeps small weights whole by itself; a large model's head is none, so here none is."""
    ds_config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    return ds_config | {"zero_allow_untested_optimizer": True}


def shard(batch: dict, rank: int, world: int) -> Experience:
    count = len(batch["sequences"])
    rows = slice(rank * count // world, (rank + 1) * count // world)
    names = [name for name in STEP_FIELDS if batch.get(name) is not None]
    fields = {name: batch[name][rows].clone() for name in names}
    lengths = fields["action_mask"].sum(1).float()
    return Experience(**fields, response_length=lengths, info={"reward": torch.ones(len(lengths))})


def part(own: Experience, rows: list[int]) -> Experience:
    """These rows of the rank's, as ExperienceMaker gives them; without any, one none of whose tokens counts."""
    fields = {name: getattr(own, name) for name in STEP_FIELDS}
    chosen = {name: None if value is None else value[rows or [0]].clone() for name, value in fields.items()}
    if not rows:
        chosen["action_mask"] = torch.zeros_like(chosen["action_mask"])
    return Experience(**chosen)


def watch(strategy, policy, stock: bool):
    """Note the loss of every micro-batch, and the whole gradients before the optimizer's step."""
    backward, step, seen = strategy.backward, strategy.optimizer_step, {"loss": torch.zeros(())}

    def noting_loss(loss, *args, **kwargs):
        seen["loss"] += loss.detach() / (strategy.accumulated_gradient if stock else 1)
        return backward(loss, *args, **kwargs)

    def noting_gradients(*args, **kwargs):
        ends = policy.actor.model.is_gradient_accumulation_boundary() if stock else strategy.update_ends
        if ends:
            seen["gradients"] = whole(policy, "gradient")
            seen["steps"] = seen.get("steps", 0) + 1
        return step(*args, **kwargs)

    strategy.backward, strategy.optimizer_step = noting_loss, noting_gradients
    return lambda: seen | {"loss": strategy.all_reduce(seen["loss"])}


def whole(policy, what: str) -> dict[str, torch.Tensor]:
    """fp32 master weights or gradients of what is trained, by name, gathered from all ranks."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_grad

    get = {"weight": safe_get_full_fp32_param, "gradient": safe_get_full_grad}[what]
    weights = policy.actor.model.module.named_parameters()
    return {name: get(weight).clone() for name, weight in weights if weight.requires_grad}


if __name__ == "__main__":
    main()
