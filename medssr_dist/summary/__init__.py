"""The end of a run: closing table, picture, and the story of one question."""
