"""Committed benchmarks: ratios measured side by side in one run, written with what they ran on."""
