"""Rare diseases, passages about them, and their retrieval (paper section 3.1)."""
