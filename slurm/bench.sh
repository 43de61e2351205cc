#!/usr/bin/env bash
# Voting throughput on 1, 2, 4, ... nodes: one job for each number of nodes. Each votes on the same questions in a new
# run directory. Run it on the login node, after `medssr synthesize` in the run directory QUESTIONS:
#     CONFIG=configs/qwen3_8b.yaml QUESTIONS=runs/qwen3_8b COUNTS="1 2 4" slurm/bench.sh
#     slurm/bench.sh table runs/bench      # after the jobs have ended
# Options of sbatch are in SBATCH_GPU, the folder is BENCH (default runs/bench). The same command resumes stopped jobs.
set -euo pipefail
cd "$(dirname "$0")/.."
bench=("${MEDSSR_PYTHON:-${VENV:-.venv}/bin/python}" -m medssr_dist.bench.nodes)
if [ "${1:-}" = table ]; then
    exec "${bench[@]}" table "$2"
fi
: "${CONFIG:?name a config: CONFIG=configs/qwen3_8b.yaml slurm/bench.sh}"
: "${QUESTIONS:?name the run directory whose questions are voted on}"
read -ra gpu <<<"${SBATCH_GPU:-}"
umask 077
for count in ${COUNTS:-1 2 4}; do
    run="${BENCH:-runs/bench}/nodes-$count"
    "${bench[@]}" begin "$QUESTIONS" "$run"
    job=$(RUN_DIR="$run" sbatch --parsable --nodes="$count" "${gpu[@]}" slurm/vote.sh "$@")
    echo "$count nodes: job ${job%%;*}"
done
