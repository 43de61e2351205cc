"""Data sets -> records.Question, and the checks on what may be seeded from, trained on and scored."""

from medssr_dist.readers.leakage import human_labelled, refuse_evaluation_items
from medssr_dist.readers.read import read_all, read_questions, source_name

__all__ = ["human_labelled", "read_all", "read_questions", "refuse_evaluation_items", "source_name"]
