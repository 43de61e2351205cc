"""Import every module of the package, and name those that fail; the exit code is 1 if any does: python import_all.py"""

from __future__ import annotations

import importlib
import pkgutil
import sys

import medssr_dist

SKIPPED = ("medssr_dist.mini_policy.__main__", "medssr_dist.launch.__main__")  # programs


def main() -> int:
    names = [found.name for found in pkgutil.walk_packages(medssr_dist.__path__, "medssr_dist.")]
    failed = {}
    for name in names:
        if name in SKIPPED:
            continue
        try:
            importlib.import_module(name)
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {error}"
    for name, reason in failed.items():
        print(f"{name}: {reason}")
    print(f"{len(names) - len(failed)} of {len(names)} modules imported")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
