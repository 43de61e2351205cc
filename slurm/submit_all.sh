#!/usr/bin/env bash
# The method as a chain of four jobs; each starts when the one before has succeeded. Run it on the login node:
#     CONFIG=configs/qwen3_8b.yaml NODES=4 slurm/submit_all.sh voting.samples=32
# Options of sbatch: SBATCH_ALL for all jobs, SBATCH_SYNTHESIZE for step 1 (a CPU partition with internet), SBATCH_GPU for
# the others. FROM=vote (or train, evaluate) starts the chain there, e.g. after `medssr synthesize` on the login node.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${CONFIG:?name a config: CONFIG=configs/qwen3_8b.yaml slurm/submit_all.sh}"
read -ra all <<<"${SBATCH_ALL:-}"
read -ra cpu <<<"${SBATCH_SYNTHESIZE:-}"
read -ra gpu <<<"${SBATCH_GPU:-}"
case "${FROM:-synthesize}" in synthesize | vote | train | evaluate) ;; *)
    echo "submit_all.sh: FROM='$FROM' is not a step; give synthesize, vote, train or evaluate" >&2
    exit 2 ;;
esac

before="" begun=""
for step in synthesize vote train evaluate; do
    [ "$step" = "${FROM:-synthesize}" ] && begun=1
    [ -n "$begun" ] || continue
    options=("${all[@]}")
    if [ "$step" = synthesize ]; then options+=("${cpu[@]}"); else options+=("--nodes=${NODES:-1}" "${gpu[@]}"); fi
    [ -z "$before" ] || options+=("--dependency=afterok:$before" --kill-on-invalid-dep=yes)
    before=$(sbatch --parsable "${options[@]}" "slurm/$step.sh" "$@")
    before=${before%%;*}
    echo "$step: job $before"
done
