"""Rare diseases, passages about them, and retrieval of the passages (paper section 3.1)."""
