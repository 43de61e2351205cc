"""`medssr bench voting`: engine pool, adaptive voting, coordinator, simulated clusters and streaming, each measured."""
