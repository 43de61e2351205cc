"""A run: its directory, its manifest, its clock, its signals, and the steps that run concurrently."""
