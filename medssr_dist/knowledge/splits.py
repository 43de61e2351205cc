"""The fixed, disjoint splits of the diseases: seeds, supervised data and evaluation.

The split is chosen by a hash of the disease's family. So the ORPHA and OMIM entries of one disease, and its numbered
types, are in the same split.
"""

from __future__ import annotations

from medssr_dist.data.records import hash_content
from medssr_dist.knowledge.hpo import Disease
from medssr_dist.knowledge.names import derive_family

# Upper bound of each split, in percent of the hash range.
_BOUNDS = (("hpo:seeds", 25), ("hpo:supervised", 70), ("hpo:evaluation", 100))
SPLITS = tuple(name for name, _ in _BOUNDS)


def assign_split(disease: Disease) -> str:
    """Return the split of `disease`: 'hpo:seeds', 'hpo:supervised' or 'hpo:evaluation'."""
    bucket = int(hash_content(derive_family(disease.name), 8), 16) % 100
    return next(name for name, bound in _BOUNDS if bucket < bound)


def is_evaluation(disease: Disease) -> bool:
    """Return whether `disease` is reserved for evaluation. Such a disease is never a synthesis entity."""
    return assign_split(disease) == "hpo:evaluation"
