"""medssr bench voting: the engine pool beside vLLM itself."""
