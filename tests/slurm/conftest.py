"""A real Slurm of two nodes, started once for the tests of a file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_cluster import SlurmCluster


@pytest.fixture(scope="module")
def cluster(repo, tmp_path_factory) -> Iterator[SlurmCluster]:
    kept = [repo, Path(sys.prefix), tmp_path_factory.getbasetemp()]
    with SlurmCluster(nodes=2, kept=kept) as cluster:
        yield cluster
