"""medssr_dist: a distributed implementation of MedSSR (arXiv 2604.11547)."""

__version__ = "0.1.0"
