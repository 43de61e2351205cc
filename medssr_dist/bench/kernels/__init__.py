"""`medssr bench kernels`: the kernels against the implementations that they replace."""
