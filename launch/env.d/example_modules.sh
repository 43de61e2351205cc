# Worked example: modules and a virtual environment on a shared file system, InfiniBand, a proxy for synthesis.
# Set up once on the login node:
#     module load gcc/13.2.0 cuda/13.0 python/3.11
#     VENV=$WORK/medssr/venv launch/install.sh cuda
#     MEDSSR_CLUSTER=example_modules; source launch/env.d/$MEDSSR_CLUSTER.sh
#     $VENV/bin/medssr prefetch --config configs/qwen3_8b.yaml && $VENV/bin/medssr doctor --login --config configs/qwen3_8b.yaml
: "${WORK:=$HOME}" # the project's space on the parallel file system

if command -v module >/dev/null; then
    set +u # at many sites the module command reads unset variables
    module purge
    module load gcc/13.2.0 cuda/13.0 python/3.11
    set -u
fi
export VENV=${VENV:-$WORK/medssr/venv}

export MEDSSR_CACHE=$WORK/medssr/cache HF_HOME=$WORK/medssr/huggingface
export MEDSSR_SCRATCH=${SLURM_TMPDIR:-/tmp}

# IP over InfiniBand for Ray, gloo and NCCL's bootstrap; NCCL's data goes through the InfiniBand adapters.
export MEDSSR_IFNAME=ib0 NCCL_IB_HCA=mlx5

export https_proxy=http://proxy.example.org:3128 no_proxy=localhost,127.0.0.1,.example.org
