"""Benchmark of what stage 1 draws: prompts ahead, votes as first rollouts, votes of the trained policy."""
