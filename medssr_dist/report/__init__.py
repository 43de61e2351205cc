"""The report of a run: one HTML file that works offline, with figures, tables, and the questions down to raw votes."""
