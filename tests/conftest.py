"""Fixtures for all tests: the tiny policy, its config, and the `medssr` command."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import settings
from places import REPO, SHARED_DATA
from tiny_policy import teach_answer_format, tiny_llama, tiny_tokenizer

from medssr_dist.runtime import device
from medssr_dist.runtime.logs import PACKAGE_LOGGER

settings.register_profile("untimed", deadline=None)  # a test may be slow on a busy machine
settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def undo_entry_point():
    """Undo what `medssr`'s entry point sets in its process: each test starts from Python's defaults."""
    yield
    os.environ.pop("PYTHONSAFEPATH", None)
    logger = logging.getLogger(PACKAGE_LOGGER)
    logger.handlers.clear()
    logger.setLevel(logging.NOTSET)
    logger.propagate = True


@pytest.fixture
def gpu(monkeypatch):
    """Let this process take itself for one of a machine with GPUs."""
    monkeypatch.setenv("MEDSSR_DEVICE", "cuda")
    device.on_gpu.cache_clear()
    yield
    monkeypatch.undo()
    device.on_gpu.cache_clear()


@pytest.fixture(scope="session")
def repo() -> Path:
    return REPO


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real public data in a folder next to the checkout; without it, the tests that need it are skipped."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"{SHARED_DATA} is absent; set MEDSSR_SHARED_DATA")
    return SHARED_DATA


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A Llama with two layers and a vocabulary of whole words, trained to answer with one letter at random."""
    folder = tmp_path_factory.mktemp("tiny_model")
    tokenizer = tiny_tokenizer()
    model = teach_answer_format(tiny_llama(len(tokenizer)).float(), tokenizer).bfloat16()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_config(tmp_path: Path, repo: Path, tiny_model: Path) -> Path:
    """The config of the demo with the tiny model and fewer questions, votes and steps."""
    training = {"prompts_per_step": 2, "samples_per_prompt": 4, "micro_batch_size": 4, "max_new_tokens": 1}
    tree = {
        "extends": str(repo / "configs" / "smollm2_cpu.yaml"),
        "policy": {"model": str(tiny_model), "dtype": "bfloat16", "max_model_len": 256},
        "knowledge": {"corpora": [{"name": "hpo", "limit": 40}], "entities": 10},
        "synthesis": {"accepted": 8},
        "voting": {"samples": 5, "threshold": 0.0, "max_tokens": 1},
        "training": {"stage1": training, "stage2": training},
        "evaluation": {"benchmarks": [{"path": "hpo:evaluation", "limit": 4}], "generations": 2, "max_tokens": 1},
    }
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def medssr():
    """Return a function that runs `medssr ARGUMENTS` in a process and returns the finished process."""

    def run(*arguments: object, check: bool = True, **options) -> subprocess.CompletedProcess:
        command = [sys.executable, "-P", "-m", "medssr_dist.cli", *map(str, arguments)]  # -P: as the script `medssr`
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1800, **options)
        assert not check or done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
        return done

    return run
