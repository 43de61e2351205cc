# A cluster's settings: copy to launch/env.d/<cluster>.sh, keep the lines that it needs, submit with
#     MEDSSR_CLUSTER=<cluster> CONFIG=... sbatch slurm/medssr_ssl.sh
# The batch scripts source it in bash with `set -euo pipefail`, from the checkout, before all else. No line is required:
# a cluster where Python finds everything and the first network interface is the right one needs no file at all.
# Keep keys out of it: put one into a file of mode 0600 and name that in the config, api_key: file:~/.medssr_api_key.

# --- software, one of: a virtual environment (default: .venv in the checkout), modules, a container
# module purge && module load gcc cuda/13.0
# export VENV=/shared/project/venv                  # made by `VENV=... launch/install.sh cuda`
# MEDSSR_PREFIX=(apptainer exec --nv image.sif)      # put before each command on each node
# MEDSSR_SRUN=(--container-image=image.sqsh)         # further options of srun: Pyxis/Enroot
# export MEDSSR_PYTHON=/opt/venv/bin/python          # Python on the nodes, inside the container
# export MEDSSR_HOST_PYTHON=/usr/bin/python3         # Python of the launcher, outside it; it needs this package alone

# --- network: the interface by which the nodes reach each other (`ip -br addr` on a compute node shows them)
# export MEDSSR_IFNAME=ib0
# export NCCL_IB_HCA=mlx5

# --- files: what is shared by all nodes, and what is a node's own
# export MEDSSR_CACHE=/shared/project/cache         # indexes and converted models
# export HF_HOME=/shared/project/huggingface        # models by their Hugging Face id
# export MEDSSR_SCRATCH=/local/$USER                # short path on a local disk; default /tmp

# --- internet, where synthesis runs: compute nodes usually have none, or a proxy
# export https_proxy=http://proxy.example:3128 no_proxy=localhost,127.0.0.1
