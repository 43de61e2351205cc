"""medssr bench synthesis: the client beside what it replaces."""
