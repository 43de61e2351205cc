"""Import every module of the package, and name those that fail; the exit code is 1 if any does.

    python -m medssr_dist.runtime.import_all

Python compiles each module at its first import, so that a run after this starts sooner.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys

import medssr_dist

ENGINE = ("vllm.v1.engine.async_llm", "vllm.v1.engine.core")  # what an engine imports when it starts
SKIPPED = ("medssr_dist.mini_policy.__main__", "medssr_dist.launch.__main__")  # programs


def main() -> int:
    """Import all modules and say which failed. Returns 1 if any did."""
    names = [found.name for found in pkgutil.walk_packages(medssr_dist.__path__, "medssr_dist.")]
    names = [name for name in (*ENGINE, *names) if name not in SKIPPED]
    failed = {}
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {error}"
    lines = [*(f"{name}: {reason}" for name, reason in failed.items()), f"{len(names) - len(failed)} of {len(names)}"]
    sys.stdout.write("\n".join(lines) + " modules imported\n")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
