#!/usr/bin/env bash
#SBATCH --job-name=medssr-synthesize
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --no-kill
#SBATCH --open-mode=append
#SBATCH --output=medssr-synthesize-%j.out
# Step 1 only, on one CPU node in a partition with access to the API.
#     CONFIG=... sbatch --partition=cpu slurm/synthesize.sh
# Nodes, GPUs, CPUs, memory and time are options of sbatch; the same script runs on one node and on many.
source "${MEDSSR_HOME:-$SLURM_SUBMIT_DIR}/slurm/common.sh"
medssr_launch synthesize.sh synthesize "$@"
