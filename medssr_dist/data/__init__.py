"""Records shared by several steps, JSONL files and atomic writes, answer extraction, cards, confidence intervals."""
