"""The timeline: all ranks of a job write what their engines did into one file, as a Chrome trace.

The file is a JSON array of trace events, one process per rank, times in microseconds of CLOCK_MONOTONIC, which the
ranks of a node share. It opens in ui.perfetto.dev.

Invariant: whenever nobody holds the file's lock, it is a complete JSON array. A rank appends in three steps:

    1. It takes the lock (flock), which it holds for one write.
    2. It writes ",\\n", its events and "\\n]" over the closing "\\n]", in one call.
    3. It lets the lock go.

Who begins the file: every writer holds a shared record lock (lockf) on the first byte as long as it writes. A rank that
could have it alone is the first one and empties what an earlier job has left; the others find the file in use and join.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from ringred.arguments import check_path
from ringred.errors import UsageError

FLUSH_SECONDS = 1.0
OPENING, CLOSING = b"[\n", b"\n]"


class Source(Protocol):
    """What is needed of an engine. timeline_drain() returns event objects, joined by ",\\n", and forgets them."""

    @property
    def rank(self) -> int: ...

    def timeline_start(self) -> None: ...

    def timeline_drain(self) -> str: ...

    def timeline_stop(self) -> None: ...


class SharedTrace:
    """The file, open for appending by this rank. OSError where the file system refuses."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            with self._locked():
                if self._is_alone():
                    os.ftruncate(self._descriptor, 0)
                    os.pwrite(self._descriptor, OPENING + CLOSING, 0)
                fcntl.lockf(self._descriptor, fcntl.LOCK_SH, 1)
        except BaseException:
            os.close(self._descriptor)
            raise

    def append(self, events: str) -> None:
        """Add events: objects in JSON, joined by commas. Nothing is added if there is no room for all."""
        if not events:
            return
        with self._locked():
            end = max(os.fstat(self._descriptor).st_size - len(CLOSING), 0)
            head = (OPENING if end == 0 else b"") if end <= len(OPENING) else b",\n"
            data = head + events.encode() + CLOSING
            written = os.pwrite(self._descriptor, data, end)
            if written != len(data):
                os.ftruncate(self._descriptor, end)
                os.pwrite(self._descriptor, CLOSING, end)
                raise OSError(f"the file system took {written} of {len(data)} bytes")

    def close(self) -> None:
        """Let the file go; the record lock goes with it."""
        os.close(self._descriptor)

    def _is_alone(self) -> bool:
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
        except (BlockingIOError, PermissionError):
            return False
        return True

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)


class Timeline:
    """One rank's recording: the engine fills a buffer, and a thread moves it to the file every second."""

    def __init__(self, engine: Source, path: Path) -> None:
        self._engine = engine
        self._file = SharedTrace(path)
        self._ended = threading.Event()
        self._recording = True
        self._thread = threading.Thread(target=self._flush_often, name="ringred-timeline", daemon=True)
        engine.timeline_start()
        self._thread.start()

    def stop(self) -> None:
        """End the recording; what has been recorded is in the file when this returns."""
        self._ended.set()
        self._thread.join()
        if self._recording:
            self._end_recording()
            self._flush()
        self._file.close()

    def abandon(self) -> None:
        """In a forked child: the recording and the lock are the parent's."""
        self._file.close()

    def _flush_often(self) -> None:
        while self._recording and not self._ended.wait(FLUSH_SECONDS):
            self._flush()

    def _end_recording(self) -> None:
        if self._recording:
            self._recording = False
            self._engine.timeline_stop()

    def _flush(self) -> None:
        try:
            self._file.append(self._engine.timeline_drain())
        except OSError as error:
            self._end_recording()
            text = f"rank {self._engine.rank} writes no more into the timeline {self._file.path}: {error}."
            print(f"ringred: {text}", file=sys.stderr, flush=True)


_lock = threading.Lock()
_running: Timeline | None = None


def start_timeline(path: str | os.PathLike[str], mark_cycles: bool = False) -> None:
    """Write what this rank's engine does into the file `path` from now on. Ranks that give the same path share it.

    Not collective, though usually called on all ranks. A file that no running job writes to is overwritten. Events go
    to the file every second, and at stop_timeline(), shutdown() and the end of the process.

    Args:
        path: the file, on a file system that all ranks of the node see.
        mark_cycles: there are no cycles; accepted because Horovod has it.

    Raises:
        UsageError: init() was not called, a timeline is being written already, this is no path, or the file cannot be
            written.
    """
    from ringred import world

    check_path(path, "start_timeline")
    begin(world.engine(), path)


def stop_timeline() -> None:
    """End what start_timeline() or RINGRED_TIMELINE began, on this rank; do nothing if there is none."""
    global _running
    with _lock:
        timeline, _running = _running, None
    if timeline is not None:
        timeline.stop()


def begin(engine: Source, path: str | os.PathLike[str]) -> None:
    """start_timeline() for an engine that init() is about to hand out."""
    global _running
    with _lock:
        if _running is not None:
            raise UsageError(
                "A rank writes one timeline at a time: this rank already does (RINGRED_TIMELINE or start_timeline). "
                "Call stop_timeline() first."
            )
        try:
            _running = Timeline(engine, Path(os.path.abspath(path)))
        except OSError as error:
            raise UsageError(
                f"A timeline needs a file that this rank may write and lock: {os.fspath(path)!r} is none "
                f"({error.strerror or error}). Give a path in a directory that exists, on a local file system."
            ) from error


def _abandon_in_child() -> None:
    global _running, _lock
    _lock = threading.Lock()  # another thread of the parent may have held it
    timeline, _running = _running, None
    if timeline is not None:
        timeline.abandon()


os.register_at_fork(after_in_child=_abandon_in_child)
