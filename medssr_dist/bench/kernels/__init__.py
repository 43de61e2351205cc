"""medssr bench kernels: the kernels beside what they replace."""
