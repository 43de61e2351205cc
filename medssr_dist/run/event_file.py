"""A TensorBoard event file of scalars, written by the thread that calls: what fails is reported where it happened.

TensorBoard's own writer has a thread, which ends with a traceback on a full disk.
"""

from __future__ import annotations

import io
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path

from medssr_dist.data.jsonl import append_whole
from medssr_dist.data.private_files import open_private

_FORMAT = "brain.Event:2"  # the first event of a file names the format


class EventFile:
    """A new event file in `folder`, which is created.

    Args:
        purge_step: TensorBoard shows no event of earlier files in the folder from this step on; None: all.

    Raises:
        InputError: the disk is full; `add` raises it too.
    """

    def __init__(self, folder: Path, purge_step: int | None = None):
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(parents=True, exist_ok=True)
        now = time.time()
        self.path = folder / f"events.out.tfevents.{now:.6f}.{platform.node()}.{os.getpid()}"
        handle = open_private(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        self._file, self._size = open(handle, "wb", buffering=0), 0  # noqa: SIM115
        self._frame = RecordWriter
        self._write(Event(wall_time=now, file_version=_FORMAT).SerializeToString())
        if purge_step is not None:
            start = SessionLog(status=SessionLog.START)
            self._write(Event(wall_time=now, step=purge_step, session_log=start).SerializeToString())

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        """Add the values of a step, by name."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        self._write(Event(wall_time=time.time(), step=step, summary=Summary(value=values)).SerializeToString())

    def _write(self, event: bytes) -> None:
        record = io.BytesIO()
        self._frame(record).write(event)
        append_whole(self._file, self.path, self._size, record.getvalue())
        self._size += len(record.getvalue())

    def close(self) -> None:
        """Close the file."""
        self._file.close()
