"""`medssr bench answers`: our reader of answers compared with two readers that people use, on labelled replies."""
