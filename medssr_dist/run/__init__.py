"""A run directory: its files, its manifest, and what runs in it."""
