# Sourced by every batch script here: finds the checkout, sources the site's settings, runs the launcher.
# From the environment: CONFIG, RUN_DIR (default runs/<name of the config>), MEDSSR_CLUSTER (a file of launch/env.d),
# MEDSSR_HOME (the checkout; default: where sbatch was called), VENV or MEDSSR_PYTHON.
set -euo pipefail
umask 077
export MEDSSR_HOME=${MEDSSR_HOME:-${SLURM_SUBMIT_DIR:-$PWD}}
cd "$MEDSSR_HOME"

MEDSSR_SRUN=() MEDSSR_PREFIX=()
if [ -n "${MEDSSR_CLUSTER:-}" ]; then
    # shellcheck source=/dev/null
    source "launch/env.d/$MEDSSR_CLUSTER.sh"
fi
MEDSSR_PYTHON=${MEDSSR_PYTHON:-$(realpath -s "${VENV:-.venv}")/bin/python}

# medssr_launch SCRIPT STEP key=value...: one attempt of STEP; this script's name is for the job to submit itself again.
medssr_launch() {
    local step=$2 code=0 launcher
    export MEDSSR_SCRIPT="$MEDSSR_HOME/slurm/$1"
    shift 2
    : "${CONFIG:?name a config: CONFIG=configs/qwen3_8b.yaml sbatch slurm/...}"
    local run_dir=${RUN_DIR:-runs/$(basename "$CONFIG" .yaml)}
    local command=("${MEDSSR_HOST_PYTHON:-$MEDSSR_PYTHON}" -m medssr_dist.launch --run-dir "$run_dir" --config "$CONFIG"
        --step "$step" --python "$MEDSSR_PYTHON" "--prefix=${MEDSSR_PREFIX[*]@Q}" "--srun=${MEDSSR_SRUN[*]@Q}")
    "${command[@]}" "$@" &
    launcher=$!
    trap 'kill -USR1 $launcher' USR1
    trap 'kill -TERM $launcher' TERM
    while kill -0 "$launcher" 2>/dev/null; do
        code=0
        wait "$launcher" || code=$?
    done
    if [ "$code" -gt 128 ]; then # nobody is left to say so: a `kill -9`, or memory
        "${command[@]}" --killed $((code - 128)) "$@" || code=$?
    fi
    exit "$code"
}
