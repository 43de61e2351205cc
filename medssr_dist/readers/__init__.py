"""Read question data sets as `Question` records, and check which of them may be seeds, training data or benchmarks."""

from medssr_dist.readers.held_out import (
    CALIBRATION,
    read_calibration_questions,
    read_validation_questions,
    refuse_shared,
)
from medssr_dist.readers.leakage import refuse_evaluation_items, refuse_unlabelled
from medssr_dist.readers.read import name_source, read_all, read_questions
from medssr_dist.readers.set_facts import DataSetFacts, count_facts

__all__ = [
    "CALIBRATION",
    "DataSetFacts",
    "count_facts",
    "name_source",
    "read_all",
    "read_calibration_questions",
    "read_questions",
    "read_validation_questions",
    "refuse_evaluation_items",
    "refuse_shared",
    "refuse_unlabelled",
]
