#!/usr/bin/env bash
# The method as four jobs in a chain, each waiting for the one before to succeed; run on the login node:
#     CONFIG=configs/qwen3_8b.yaml NODES=4 slurm/submit_all.sh voting.samples=32
# Options of sbatch: for all jobs in SBATCH_ALL, for step 1 (a CPU partition with internet) in SBATCH_SYNTHESIZE, for
# the others in SBATCH_GPU. FROM=vote (train, evaluate) begins the chain later, e.g. after `medssr synthesize` here.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${CONFIG:?name a config: CONFIG=configs/qwen3_8b.yaml slurm/submit_all.sh}"
read -ra all <<<"${SBATCH_ALL:-}"
read -ra cpu <<<"${SBATCH_SYNTHESIZE:-}"
read -ra gpu <<<"${SBATCH_GPU:-}"
case "${FROM:-synthesize}" in synthesize | vote | train | evaluate) ;; *)
    echo "submit_all.sh: FROM='$FROM' is no step; give synthesize, vote, train or evaluate" >&2
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
