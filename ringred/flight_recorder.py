"""The flight recorder from inside: the last 4096 operations of this rank's engine, as JSON. `ringred flight` reads it
from outside."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from ringred.arguments import check_path
from ringred.errors import UsageError


class Source(Protocol):
    """What is needed of an engine."""

    @property
    def rank(self) -> int: ...

    def flight_recorder_json(self) -> str: ...


def dump_flight_recorder(path: str | os.PathLike[str] | None = None) -> str:
    """Return the last 4096 operations of this rank as JSON, oldest first. Not collective; also during a stall.

    Each has its name, kind, bytes and times in nanoseconds of CLOCK_MONOTONIC: submitted, agreed, started, ended.

    Args:
        path: where to write the text as well; in a directory that exists, to a file for each rank.

    Raises:
        UsageError: init() was not called, this is no path, or the file cannot be written.
    """
    from ringred import world

    if path is not None:
        check_path(path, "dump_flight_recorder")
    try:
        return write(world.engine(), path)
    except OSError as error:
        raise UsageError(
            f"dump_flight_recorder needs a file that this rank may write: {path!r} is none "
            f"({error.strerror or error}). Give a path in a directory that exists, or leave it out."
        ) from error


def write(engine: Source, path: str | os.PathLike[str] | None) -> str:
    """dump_flight_recorder() for an engine."""
    text = engine.flight_recorder_json()
    if path is not None:
        target = Path(path)
        if target.is_dir():
            target /= f"ringred-flight-{engine.rank}.json"
        target.write_text(text + "\n", encoding="utf-8")
    return text
