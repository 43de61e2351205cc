"""The fixed, disjoint splits of the diseases: seeds, supervised data and evaluation.

The split is chosen by a hash of the disease's group (`knowledge/identity.py`). So all entries of one disease, in
Orphanet and OMIM, and its numbered types, are in the same split.
"""

from __future__ import annotations

from medssr_dist.data.records import hash_content
from medssr_dist.knowledge.hpo import Disease
from medssr_dist.knowledge.identity import find_group

# Upper bound of each split, in percent of the hash range.
_BOUNDS = (("hpo:seeds", 25), ("hpo:supervised", 70), ("hpo:evaluation", 100))
SPLITS = tuple(name for name, _ in _BOUNDS)
EVALUATION = SPLITS[-1]


def split_group(group: str) -> str:
    """Return the split of a group of entries: 'hpo:seeds', 'hpo:supervised' or 'hpo:evaluation'."""
    bucket = int(hash_content(group, 8), 16) % 100
    return next(name for name, bound in _BOUNDS if bucket < bound)


def assign_split(disease: Disease) -> str:
    """Return the split of a disease of HPO or Orphanet: 'hpo:seeds', 'hpo:supervised' or 'hpo:evaluation'."""
    return split_group(find_group(disease.id))


def is_evaluation(disease: Disease) -> bool:
    """Return whether `disease` is reserved for evaluation. Such a disease is never a synthesis entity."""
    return assign_split(disease) == EVALUATION
