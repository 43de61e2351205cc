#!/usr/bin/env bash
# Install medssr_dist into a virtual environment: launch/install.sh [cpu|cuda]
#
# Without an argument the machine decides: cuda where `nvidia-smi` finds a GPU, else cpu. The environment
# is .venv ($VENV to change it), made with python3 ($PYTHON to change it; 3.11 or 3.12). Running it again is
# quick: it installs only if the requirement files have changed.
#
# On a machine without GPU, pip's default index gives the CUDA build of torch, which works but is large;
# export PIP_EXTRA_INDEX_URL with PyTorch's CPU wheel index to get the small one.
set -euo pipefail
cd "$(dirname "$0")/.."

case "${1:-}" in
    -h | --help) sed -n '2,10s/^# \{0,1\}//p' "$0"; exit 0 ;;
    "") if nvidia-smi -L 2>/dev/null | grep -q GPU; then kind=cuda; else kind=cpu; fi ;;
    cpu | cuda) kind=$1 ;;
    *) echo "install.sh: unknown set '$1'; give cpu or cuda" >&2; exit 2 ;;
esac
venv=${VENV:-.venv}
python=${PYTHON:-python3}

version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])') ||
    { echo "install.sh: $python does not run; set PYTHON to a Python 3.11 or 3.12" >&2; exit 2; }
case "$version" in
    3.11 | 3.12) ;;
    *) echo "install.sh: $python is Python $version; set PYTHON to a Python 3.11 or 3.12" >&2; exit 2 ;;
esac

if [ "$kind" = cuda ]; then # say what does not fit before 11 GB are downloaded
    driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1 || true)
    if [ -n "$driver" ] && [ "${driver%%.*}" -lt 580 ]; then
        echo "install.sh: the GPU driver is $driver; torch for CUDA 13.0 needs 580 or newer" >&2
        exit 2
    fi
    command -v "${CC:-gcc}" >/dev/null || command -v clang >/dev/null ||
        echo "install.sh: no C compiler here; the nodes need one, and the headers of Python, for Triton" >&2
fi

stamp="$venv/.medssr-$kind-$(cat requirements/*.txt setup.py pyproject.toml "$0" | sha256sum | cut -c1-16)"
if [ -e "$stamp" ]; then
    echo "install.sh: $venv is up to date ($kind)"
    exit 0
fi

echo "install.sh: installing the $kind set into $venv"
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip=("$venv/bin/python" -m pip --disable-pip-version-check install --quiet)
if [ "$kind" = cpu ]; then
    pip+=(--no-compile) # most modules are never imported; the others are compiled below
    "${pip[@]}" torch==2.13.0
    "${pip[@]}" --no-deps -r requirements/cpu.txt
else
    "${pip[@]}" --no-deps --require-hashes -r requirements/cuda.txt
fi
"${pip[@]}" --no-deps -r requirements/embedded.txt
"${pip[@]}" --no-deps --no-build-isolation -e .
if [ "$kind" = cpu ]; then
    env -u PYTHONDONTWRITEBYTECODE MEDSSR_DEVICE=cpu VLLM_LOGGING_LEVEL=ERROR "$venv/bin/python" -m medssr_dist.runtime.import_all
fi
touch "$stamp"
echo "install.sh: done; $venv/bin/medssr --help"
