"""The paper's benchmarks, evaluation protocol, scores and report."""
