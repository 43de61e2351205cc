"""The rollout of a GRPO step: prompts become groups of rewarded samples."""
