"""Event files of TensorBoard: what is written can be read, and a full disk is an error of the caller."""

from __future__ import annotations

import errno
import os

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from medssr_dist.errors import InputError
from medssr_dist.run.event_file import EventFile


def read_scalars(folder) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder)).Reload()
    return [(event.step, round(event.value, 3)) for event in events.Scalars("a")]


def test_scalars_of_several_files_are_read_in_order(tmp_path):
    first = EventFile(tmp_path)
    for step in (1, 2, 3):
        first.add(step, {"a": step / 2})
    second = EventFile(tmp_path, purge_step=3)  # of a run that goes on from step 2
    second.add(3, {"a": 9.0})
    assert read_scalars(tmp_path) == [(1, 0.5), (2, 1.0), (3, 9.0)]
    assert first.path.stat().st_mode & 0o777 == 0o600


def test_a_full_disk_is_told_and_leaves_whole_records(tmp_path, monkeypatch):
    events = EventFile(tmp_path)
    events.add(1, {"a": 1.0})
    whole = events.path.read_bytes()

    class FullDisk:
        """A file that takes three more bytes."""

        def write(self, content):
            if len(events.path.read_bytes()) > len(whole):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            with open(events.path, "ab") as file:
                return file.write(content[:3])

    monkeypatch.setattr(events, "_file", FullDisk())
    with pytest.raises(InputError, match="no space left while writing .*tfevents"):
        events.add(2, {"a": 2.0})
    assert events.path.read_bytes() == whole
