"""Rollout of a GRPO step: prompts to groups of rewarded samples."""
