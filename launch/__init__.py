"""One Slurm job (or one machine): the launcher beside the batch script, a supervisor on each node, Ray under them.

`job.py` tells the story. It and what it imports need only Python's standard library, so that the launcher can
run outside the container that the nodes run in.
"""
