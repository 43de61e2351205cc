# Worked example: an Apptainer image on a shared file system. Set up once, where a build is allowed:
#     mkdir -p $PROJECT/home && apptainer build $PROJECT/medssr.sif launch/containers/medssr.def
#     python3 -m venv $PROJECT/launcher && $PROJECT/launcher/bin/pip install --no-deps .
#     apptainer exec --bind $PROJECT $PROJECT/medssr.sif medssr prefetch --config configs/qwen3_8b.yaml
# With Pyxis and Enroot, use the same image as a squash file (enroot import), and instead of MEDSSR_PREFIX
#     MEDSSR_SRUN=(--container-image="$PROJECT/medssr.sqsh" --container-mounts="$PROJECT,$MEDSSR_HOME"
#                  --container-workdir="$MEDSSR_HOME" --no-container-mount-home)
: "${PROJECT:=/project/$USER}" "${MEDSSR_HOME:=$PWD}"

export MEDSSR_CACHE=$PROJECT/cache HF_HOME=$PROJECT/huggingface MEDSSR_SCRATCH=/tmp
# vLLM, Triton and FlashInfer keep what they compile on the local disk of each node; HOME is a folder of the project.
export XDG_CACHE_HOME=/tmp/medssr-$USER/cache TRITON_HOME=/tmp/medssr-$USER FLASHINFER_WORKSPACE_BASE=/tmp/medssr-$USER

# --nv: the host's GPU driver. --bind: paths outside the image that are needed inside. /dev/shm is the host's.
MEDSSR_PREFIX=(apptainer exec --nv --home "$PROJECT/home" --bind "$PROJECT,$MEDSSR_HOME,/tmp" --pwd "$MEDSSR_HOME"
    "$PROJECT/medssr.sif")
export MEDSSR_PYTHON=/opt/medssr/bin/python
# Python outside the image, where srun and scontrol are.
export MEDSSR_HOST_PYTHON=$PROJECT/launcher/bin/python

export MEDSSR_IFNAME=hsn0
