"""One rank of a real DeepSpeed ZeRO-3 group that trains, and writes or resumes a checkpoint.

    python checkpoint_ranks.py JOB RANK WORLD PORT

Run as a process by test_rank_state.py. JOB is a torch file: model, folder (of a stage), batch, universal, steps, tag.
The rank resumes from the checkpoint in the folder, if there is one, and takes `steps` steps on the batch. If there is a
tag, it then writes a checkpoint and takes one more step. It writes JOB.RANK: {files, state, status of each step, whole
fp32 weights}.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["MEDSSR_DEVICE"] = "cpu"

import torch  # noqa: E402

torch.set_num_threads(1)

from zero_ranks import CONFIG, gather_values, make_micro_batch, take_share  # noqa: E402

from medssr_dist.config.load import load_config  # noqa: E402
from medssr_dist.run.paths import CheckpointPaths, StagePaths  # noqa: E402
from medssr_dist.training import ranks  # noqa: E402
from medssr_dist.training.backend.strategy import Strategy  # noqa: E402

SPEEDS = ("tokens_per_s_per_gpu", "mfu")  # these vary from run to run


def main() -> None:
    job_file, rank, world, port = Path(sys.argv[1]), *map(int, sys.argv[2:5])
    job = torch.load(job_file, weights_only=False)
    strategy = make_strategy(job, world)
    policy = ranks.PolicyRank(world, rank, "127.0.0.1", port)
    policy.init_model_from_pretrained(strategy, job["model"], 10)
    result = {"state": policy.get_checkpoint_states(), "status": [], "files": {}}
    result["status"] += [take_step(policy, job["batch"], rank, world) for _ in range(job["steps"])]
    if job["tag"]:
        result["bytes"] = policy.count_checkpoint_bytes()
        state = {"global_step": job["steps"], "left": torch.arange(3)}
        checkpoints = CheckpointPaths(StagePaths(Path(job["folder"])).checkpoints)
        result["files"] = policy.write_checkpoint(checkpoints.ranks, job["tag"], state)
        result["status"].append(take_step(policy, job["batch"], rank, world))
    torch.save(result | {"weights": gather_values(policy, "weight")}, f"{job_file}.{rank}")


def make_strategy(job: dict, world: int):
    config = load_config(
        CONFIG,
        [
            f"policy.model={job['model']}",
            f"training.ranks_per_node={world}",
            "training.stage1.prompts_per_step=1",
            f"training.stage1.samples_per_prompt={len(job['batch']['sequences'])}",
            "training.stage1.micro_batch_size=2",
            f"training.stage1.kl_coef={job['batch']['kl_coef']}",
            "training.share_prompts=false",
            "training.stage1.warmup_ratio=0.5",
            "training.deterministic=true",
        ],
    )
    strategy = Strategy(config, config.training.stage1, Path(job["folder"]), job["universal"], "test")
    strategy.args.vllm.sync_backend = "gloo"
    return strategy


def take_step(policy, batch: dict, rank: int, world: int) -> dict:
    own = take_share(batch, rank, world)
    rows = list(range(len(own.sequences)))
    policy.load_update([[make_micro_batch(own, rows[start : start + 2]) for start in rows[::2]]])
    status = policy.update()
    return {name: value for name, value in status.items() if name not in SPEEDS}


if __name__ == "__main__":
    main()
