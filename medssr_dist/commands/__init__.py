"""Commands around a run: dry run, doctor, status, prefetch, export."""
