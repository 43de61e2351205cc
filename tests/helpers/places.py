"""Folders of the checkout, for tests and the programs that they start."""

from __future__ import annotations

import os
from pathlib import Path

HELPERS = Path(__file__).parent
REPO = HELPERS.parents[1]
SHARED_DATA = Path(os.environ.get("MEDSSR_SHARED_DATA") or REPO.parent / "shared" / "data")
