"""Weights of a stage: sync to the engines, checkpoints, adapters."""
