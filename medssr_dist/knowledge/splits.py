"""Which diseases serve as seeds, as supervised data and as evaluation: disjoint, and stable for ever.

The split is by hash of the disease's family, so that ORPHA/OMIM entries of one disease, and the
numbered types of one disease, are on the same side.
"""

from __future__ import annotations

from medssr_dist.data.records import hash_content
from medssr_dist.knowledge.hpo import Disease
from medssr_dist.knowledge.names import derive_family

# Upper bounds in percent of the hash range.
_BOUNDS = (("hpo:seeds", 25), ("hpo:supervised", 70), ("hpo:evaluation", 100))
SPLITS = tuple(name for name, _ in _BOUNDS)


def assign_split(disease: Disease) -> str:
    """'hpo:seeds', 'hpo:supervised' or 'hpo:evaluation'."""
    bucket = int(hash_content(derive_family(disease.name), 8), 16) % 100
    return next(name for name, bound in _BOUNDS if bucket < bound)


def is_evaluation(disease: Disease) -> bool:
    """Whether questions about `disease` are held out for evaluation; it is never a synthesis entity then."""
    return assign_split(disease) == "hpo:evaluation"
