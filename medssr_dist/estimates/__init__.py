"""Estimates before and during a run: work, memory, rates, wall time."""
