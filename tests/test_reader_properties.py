"""Every reader of files and replies, fed with damaged input: the same content, or one line that refuses it.

`make fuzz` does the same for minutes a reader; what one fails on is kept in fuzz_seeds.jsonl, and read here.
"""

from __future__ import annotations

import pytest
from damaged_files import DAMAGE, READERS, make_reader, read_seeds
from hypothesis import HealthCheck, given, settings

QUIET = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]


@pytest.mark.parametrize("name", READERS)
def test_damaged_input_is_read_or_refused(tmp_path, name):
    reader = make_reader(name, tmp_path)

    @given(DAMAGE)
    @settings(max_examples=40, deadline=None, suppress_health_check=QUIET)
    def run(damage):
        reader.check(damage)

    run()


@pytest.mark.parametrize("name", READERS)
def test_what_a_reader_once_failed_on_is_refused(tmp_path, name):
    reader = make_reader(name, tmp_path)
    for content in read_seeds(name):
        reader.try_read(content)
