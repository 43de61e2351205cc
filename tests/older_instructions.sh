#!/usr/bin/env bash
# The bf16 tests of the kernels and of a training step, once for each older instruction set that oneDNN is held to: its
# code for AVX2, for AVX-512 and for AMX differs. `make test` runs them with all that this CPU has. Triton's interpreter
# has the same GEMMs, and only takes longer.
set -euo pipefail
cd "$(dirname "$0")/.."

limits=(AVX2)
if grep -qwE 'amx_bf16|avx512_fp16' /proc/cpuinfo; then # it has more than AVX512_CORE_BF16
    limits+=(AVX512_CORE_BF16)
fi
for limit in "${limits[@]}"; do
    echo "ONEDNN_MAX_CPU_ISA=$limit"
    ONEDNN_MAX_CPU_ISA=$limit "${VENV:-.venv}/bin/python" -m pytest -q -k "bfloat16 and not triton or bf16 or idle" \
        tests/kernels tests/training/test_kernels.py
done
