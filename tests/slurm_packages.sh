#!/usr/bin/env bash
# What the test cluster needs: installed where it is absent and may be, else named.
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin"
for program in slurmctld slurmd munged ip setpriv unshare nsenter; do
    command -v "$program" >/dev/null && continue
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge iproute2 util-linux
        exit
    fi
    echo "slurm_packages.sh: $program not found; install slurm-wlm, munge and iproute2, and run as root" >&2
    exit 2
done
