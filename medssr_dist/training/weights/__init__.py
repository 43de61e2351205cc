"""The weights of a stage: checkpoints, weight sync to the rollout engines, LoRA adapters."""
