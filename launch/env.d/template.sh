# The settings of a cluster. Copy this file to launch/env.d/<cluster>.sh, keep the lines that the cluster needs, submit with
#     MEDSSR_CLUSTER=<cluster> CONFIG=... sbatch slurm/medssr_ssl.sh
# The batch scripts source it first, in bash with `set -euo pipefail`, from the checkout. No line is required: a cluster
# where Python finds all libraries and the first network interface is the right one needs no such file.
# Put no key here: put it into a file of mode 0600 and name that file in the config, api_key: file:~/.medssr_api_key.

# --- software, one of: a virtual environment (default: .venv in the checkout), modules, a container
# module purge && module load gcc cuda/13.0
# export VENV=/shared/project/venv                  # created by `VENV=... launch/install.sh cuda`
# MEDSSR_PREFIX=(apptainer exec --nv image.sif)      # the prefix of each command on each node
# MEDSSR_SRUN=(--container-image=image.sqsh)         # further options of srun: Pyxis/Enroot
# export MEDSSR_PYTHON=/opt/venv/bin/python          # Python on the nodes, inside the container
# export MEDSSR_HOST_PYTHON=/usr/bin/python3         # Python of the launcher, outside the container; it needs only this package

# --- network: the interface through which the nodes reach each other (`ip -br addr` on a compute node lists them)
# export MEDSSR_IFNAME=ib0
# export NCCL_IB_HCA=mlx5

# --- files: shared by all nodes, or local to a node
# export MEDSSR_CACHE=/shared/project/cache         # indexes and converted models
# export HF_HOME=/shared/project/huggingface        # models given by their Hugging Face id
# export MEDSSR_SCRATCH=/local/$USER                # short path on a local disk; default /tmp

# --- internet, for synthesis: compute nodes usually have none, or a proxy
# export https_proxy=http://proxy.example:3128 no_proxy=localhost,127.0.0.1

# --- limits, seconds, for file systems that are slow when the libraries are read for the first time
# export MEDSSR_JOIN_S=600                          # until every node is connected to the launcher
# export MEDSSR_PREFLIGHT_S=900                     # until the preflight has ended
# export MEDSSR_RAY_S=600                           # until Ray runs on every node

# --- GPUs that Slurm does not manage (a cluster without GRES)
# export MEDSSR_GPUS=8                              # GPUs of each node
