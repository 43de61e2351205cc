"""Read question data sets as `Question` records, and check which of them may be seeds, training data or benchmarks."""

from medssr_dist.readers.leakage import refuse_evaluation_items, refuse_unlabelled
from medssr_dist.readers.read import name_source, read_all, read_questions
from medssr_dist.readers.set_facts import DataSetFacts, count_facts

__all__ = [
    "DataSetFacts",
    "count_facts",
    "name_source",
    "read_all",
    "read_questions",
    "refuse_evaluation_items",
    "refuse_unlabelled",
]
