"""Data sets -> records.Question, and the checks on what may be seeded from, trained on and scored."""

from medssr_dist.readers.leakage import refuse_evaluation_items, refuse_unlabelled
from medssr_dist.readers.read import name_source, read_all, read_questions

__all__ = ["refuse_unlabelled", "read_all", "read_questions", "refuse_evaluation_items", "name_source"]
