"""Blocks of details: they are read back, they keep to their budget, and they count what is left out."""

import base64
import json
import random
import zlib

import pytest

from medssr_dist import secret_registry
from medssr_dist.report.detail_store import DetailStore


def unpack(block):
    return json.loads(zlib.decompress(base64.b64decode(block.text)))


def test_rows_come_back_in_blocks():
    store = DetailStore(10_000)
    kind = store.add("rows", ([i, "é</script>"] for i in range(7)), of=7, per_block=3, share=10_000)
    assert (kind.rows, kind.blocks, [block.name for block in store.blocks]) == (7, 3, ["rows-0", "rows-1", "rows-2"])
    assert sum(map(unpack, store.blocks), []) == [[i, "é</script>"] for i in range(7)]
    assert "<" not in store.blocks[0].text


@pytest.mark.parametrize("share", [0, 500, 3000, 10**9])
def test_no_more_than_the_budget_is_used(share):
    rng, store = random.Random(1), DetailStore(6000)
    rows = [f"{rng.getrandbits(800):x}" for _ in range(100)]
    kind = store.add("rows", rows, of=100, per_block=4, share=share)
    used = sum(block.size for block in store.blocks)
    assert used <= min(share, 6000) and store.left == 6000 - used
    assert kind.of == 100 and kind.rows == 4 * kind.blocks and bool(kind.rows) == (share > 600)


def test_no_secret_gets_into_a_block(monkeypatch):
    monkeypatch.setattr(secret_registry, "_forms", ())
    secret_registry.register_secret("verysecretvalue")
    store = DetailStore(10_000)
    store.add("rows", [["the key is verysecretvalue"]], of=1, per_block=1, share=10_000)
    assert unpack(store.blocks[0]) == [["the key is ***"]]
