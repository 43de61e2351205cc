"""The fingerprint of a model: every file that decides an answer counts, and large files are read once."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from medssr_dist.runtime import fingerprints
from medssr_dist.runtime.fingerprints import fingerprint_model, has_fingerprint


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("MEDSSR_CACHE", str(folder))
    return folder


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for name in (
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "merges.txt",
        "tokenizer.model",
        "modeling_own.py",
    ):
        (folder / name).write_text(name)
    (folder / "model.safetensors").write_bytes(bytes(5 * 2**20))
    (folder / "README.md").write_text("card")
    return folder


def test_every_file_that_decides_an_answer_counts(model):
    before = fingerprint_model(model)
    assert len(before) == 16 and before == fingerprint_model(model)
    for file in sorted(model.iterdir()):
        whole = file.read_bytes()
        file.write_bytes(whole[:-1] + b"\1")
        assert (fingerprint_model(model) != before) == (file.name != "README.md"), file.name
        file.write_bytes(whole)
    (model / "added_tokens.json").write_text("{}")
    assert fingerprint_model(model) != before


@pytest.mark.parametrize("place", [0, 1, 2**20 + 7, 3 * 2**20, 5 * 2**20 - 1])
def test_any_byte_of_the_weights_counts(model, place):
    before = fingerprint_model(model)
    with open(model / "model.safetensors", "r+b") as file:
        file.seek(place)
        file.write(b"\1")
    assert fingerprint_model(model) != before


def test_large_files_are_read_once(model, monkeypatch):
    before, real, read = fingerprint_model(model), hashlib.file_digest, []

    def record(handle, name):
        read.append(Path(handle.name).name)
        return real(handle, name)

    monkeypatch.setattr(hashlib, "file_digest", record)
    assert fingerprint_model(model) == before and "model.safetensors" not in read and "config.json" in read
    os.utime(model / "model.safetensors", ns=(1, 1))
    assert fingerprint_model(model) == before and "model.safetensors" in read


@pytest.mark.parametrize("content", ["", "[]", '{"/x": 5}', '{"/x": ["1"]}', "{oops"])
def test_a_damaged_cache_is_read_anew(model, cache, content):
    before = fingerprint_model(model)
    (cache / "hashes.json").write_text(content)
    assert fingerprint_model(model) == before


def test_a_file_of_the_hub_is_known_by_its_name(tmp_path, monkeypatch):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "c0ffee"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    (blobs / ("ab" * 32)).write_bytes(b"weights")
    (snapshot / "model.safetensors").symlink_to(blobs / ("ab" * 32))
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("the file is read"))
    assert len(fingerprint_model(snapshot)) == 16


def test_a_run_keeps_the_fingerprint_of_an_earlier_version(model):
    older = fingerprints._fingerprint_samples(model)
    assert fingerprint_model(model, {older, "x"}) == older != fingerprint_model(model)
    assert has_fingerprint(model, older) and has_fingerprint(model, fingerprint_model(model))
    (model / "model.safetensors").write_bytes(b"\1" * 5 * 2**20)
    assert not has_fingerprint(model, older)
    assert json.loads(json.dumps(fingerprint_model(model, {older}))) == fingerprint_model(model)
