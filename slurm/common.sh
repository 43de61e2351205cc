# Every batch script sources this file: it finds the checkout, sources the site's settings and runs the launcher.
# Environment variables: CONFIG, RUN_DIR (default runs/<name of the config>), MEDSSR_CLUSTER (a file of launch/env.d),
# MEDSSR_HOME (the checkout; default: where sbatch was called), VENV, or MEDSSR_PYTHON (Python on the nodes, inside the
# container where there is one) and MEDSSR_HOST_PYTHON (the launcher's, outside; default the same).
set -euo pipefail
umask 077
[ ! -f /proc/self/fd/1 ] || chmod go= /proc/self/fd/1 # the output file, which sbatch created with its caller's umask
medssr_signal="" # a signal that comes before the launcher runs; it is sent to the launcher at its start
trap 'medssr_signal=USR1' USR1
trap 'medssr_signal=TERM' TERM
export MEDSSR_HOME=${MEDSSR_HOME:-${SLURM_SUBMIT_DIR:-$PWD}}
cd "$MEDSSR_HOME"

MEDSSR_SRUN=() MEDSSR_PREFIX=()
if [ -n "${MEDSSR_CLUSTER:-}" ]; then
    # shellcheck source=/dev/null
    source "launch/env.d/$MEDSSR_CLUSTER.sh"
fi
MEDSSR_PYTHON=${MEDSSR_PYTHON:-$(realpath -s "${VENV:-.venv}")/bin/python}

# medssr_launch SCRIPT STEP key=value...: run one attempt of STEP. SCRIPT is submitted again if requeue is off.
medssr_launch() {
    export MEDSSR_SCRIPT="$MEDSSR_HOME/slurm/$1"
    local step=$2
    shift 2
    : "${CONFIG:?name a config: CONFIG=configs/qwen3_8b.yaml sbatch slurm/...}"
    medssr_supervise --run-dir "${RUN_DIR:-runs/$(basename "$CONFIG" .yaml)}" --config "$CONFIG" --step "$step" -- "$@"
}

# medssr_supervise ARGUMENTS: run the launcher in the background, so that signals to this script reach it at once.
medssr_supervise() {
    local code=0 launcher
    local command=("${MEDSSR_HOST_PYTHON:-$MEDSSR_PYTHON}" -m medssr_dist.launch --python "$MEDSSR_PYTHON"
        "--prefix=${MEDSSR_PREFIX[*]@Q}" "--srun=${MEDSSR_SRUN[*]@Q}")
    "${command[@]}" "$@" &
    launcher=$!
    trap 'kill -USR1 $launcher' USR1
    trap 'kill -TERM $launcher' TERM
    [ -z "$medssr_signal" ] || kill "-$medssr_signal" "$launcher"
    while kill -0 "$launcher" 2>/dev/null; do
        wait "$launcher" || true # a signal ends `wait` too
    done
    wait "$launcher" || code=$?
    if [ "$code" -gt 128 ]; then # it was killed, perhaps for lack of memory, and could not record its end
        "${command[@]}" --killed $((code - 128)) "$@" || code=$?
    fi
    exit "$code"
}
