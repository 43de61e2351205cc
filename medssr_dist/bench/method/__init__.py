"""`medssr bench method`: the paper's table in miniature, with controls."""
