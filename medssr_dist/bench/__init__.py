"""Benchmarks: each compares this package with alternatives in one run, and writes the figures and the environment."""
