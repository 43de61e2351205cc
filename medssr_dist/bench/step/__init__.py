"""`medssr bench step`: the seconds of a training step by phase, predicted for any number of nodes, and compared."""
