"""Estimates before and during a run: workload, memory and disk, measured rates, progress, wall time."""
