"""Evaluation on the benchmarks: the protocol of the paper, scores and their report."""
