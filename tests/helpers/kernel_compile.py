"""Compile the kernels for Ampere and Hopper, without a GPU or the interpreter.

Prints a line of JSON for each kernel, for test_input.py:

python kernel_compile.py
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from medssr_dist.kernels import triton_ops

POINTERS = {"target_ptr": "*i64", "flat_ptr": "*i1", "offsets_ptr": "*i64"}
NUMBERS = {"row_stride": "i32", "rows": "i32", "columns": "i32", "padded": "i32", "tokens": "i32"}
TOKENS = {"KL": 3, "UNBIASED": False, "KL_LIMIT": 10.0, "RATIO_LIMIT": 20.0, "BLOCK": triton_ops.TOKEN_BLOCK}
OPTIONAL = {"SEQUENCE": "log_ratio_ptr", "IMPORTANCE": "importance_ptr", "REFERENCE": "ref_ptr", "DUAL": None}


def list_kernels():
    """Yield (name, kernel, type of the logits, constants, warps) of each."""
    block = {"BLOCK": triton_ops.LARGEST_BLOCK}
    for logits in ("*bf16", "*fp32"):
        for entropy in (False, True):
            yield "row_stats", triton_ops._row_stats_kernel, logits, {**block, "ENTROPY": entropy}, 8
            absent = {} if entropy else {"grad_entropy_ptr": None}
            yield "row_gradient", triton_ops._row_gradient_kernel, logits, {**block, "ENTROPY": entropy, **absent}, 8
    for given in (False, True):
        absent = {} if given else {name: None for name in (*OPTIONAL.values(), "entropy_ptr") if name}
        constants = {**TOKENS, **dict.fromkeys(OPTIONAL, given), "ENTROPY": given, **absent}
        yield "grpo_tokens", triton_ops._grpo_tokens_kernel, "", constants, 4
    constants = {"MODE": 0, "BLOCK": triton_ops.GROUP_BLOCK}
    yield "group_advantage", triton_ops._group_advantage_kernel, "", constants, 1


def compile_kernel(kernel, logits: str, constants: dict, warps: int, capability: int) -> str:
    """Return PTX for the compute capability, 80 or 90.

    Pointers and rows are aligned as in the workspace, `columns` is not.
    """
    names = kernel.arg_names
    kinds = {
        name: POINTERS.get(name, "*fp32") if name.endswith("_ptr") else NUMBERS.get(name, "fp32") for name in names
    }
    kinds |= {"logits_ptr": logits} if "logits_ptr" in names else {}
    signature = {name: "constexpr" if name in constants else kinds[name] for name in names}
    aligned = [name for name in names if name.endswith("_ptr") or name in ("row_stride", "padded")]
    source = ASTSource(
        kernel,
        signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned if name not in constants},
    )
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps}).asm["ptx"]


def report_kernels(capability: int, architecture: str) -> None:
    """Compile each kernel to machine code, and print what ptxas says of it."""
    try:
        ptxas = get_ptxas(capability).path  # the one that Triton itself takes
    except RuntimeError:
        sys.exit("no ptxas")
    with tempfile.TemporaryDirectory() as folder:
        for name, kernel, logits, constants, warps in list_kernels():
            ptx = compile_kernel(kernel, logits, constants, warps, capability)
            file = Path(folder) / "kernel.ptx"
            file.write_text(ptx)
            command = [ptxas, f"-arch={architecture}", "-v", file, "-o", file.with_suffix(".cubin")]
            report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
            found = {
                "kernel": name,
                "architecture": architecture,
                "registers": int(report.split("Used ")[1].split()[0]),
                "spills": "0 bytes spill stores, 0 bytes spill loads" not in report,
                "wide": "ld.global.v4" in ptx,
                "warps": warps,
            }
            print(json.dumps(found))


def main() -> None:
    report_kernels(80, "sm_80")
    report_kernels(90, "sm_90a")


if __name__ == "__main__":
    main()
