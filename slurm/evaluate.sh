#!/usr/bin/env bash
#SBATCH --job-name=medssr-evaluate
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --no-kill
#SBATCH --open-mode=append
#SBATCH --output=medssr-evaluate-%j.out
# Step 4 only.
#     CONFIG=... sbatch --nodes=1 --gpus-per-node=8 slurm/evaluate.sh
# Nodes, GPUs, CPUs, memory and time are options of sbatch; the same script runs on one node and on many.
source "${MEDSSR_HOME:-$SLURM_SUBMIT_DIR}/slurm/common.sh"
export HF_HUB_OFFLINE=1 # `medssr prefetch` has downloaded everything
medssr_launch evaluate.sh evaluate "$@"
