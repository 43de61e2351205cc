#!/usr/bin/env bash
# Install the CUDA set into an environment of its own ($CUDA_VENV, default .venv-cuda; deleted first) and import every
# module of the package as on a GPU. Needs 11 GB of disk and no GPU: what a driver must provide is not loaded.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${CUDA_VENV:-.venv-cuda}
rm -rf "$venv"
VENV=$venv launch/install.sh cuda
"$venv/bin/python" -m pip list --format=freeze | wc -l
MEDSSR_DEVICE=cuda "$venv/bin/python" -m medssr_dist.runtime.import_all
