"""Records that cross steps, JSONL and atomic files, the reader of answers, cards and intervals."""
