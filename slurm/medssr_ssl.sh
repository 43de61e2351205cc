#!/usr/bin/env bash
#SBATCH --job-name=medssr
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --no-kill
#SBATCH --open-mode=append
#SBATCH --output=medssr-%j.out
# The whole method in one job, on any number of nodes. The same command resumes it.
#     CONFIG=configs/qwen3_8b.yaml sbatch --nodes=4 --gpus-per-node=8 slurm/medssr_ssl.sh voting.samples=32
# Nodes, GPUs, CPUs, memory and time are options of sbatch; the same script runs on one node and on many.
source "${MEDSSR_HOME:-$SLURM_SUBMIT_DIR}/slurm/common.sh"
export HF_HUB_OFFLINE=1 # `medssr prefetch` has downloaded everything
medssr_launch medssr_ssl.sh run "$@"
