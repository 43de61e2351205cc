"""One Slurm job: the launcher in the batch script, a supervisor on each node, and Ray started by the supervisors.

`launcher.py` is the place to start reading. The launcher and the supervisors need only Python's standard library, so
the launcher can run outside the container that the nodes use. (`fit_config.py` alone needs the package's dependencies.)
"""
