"""What watches over a world, from the end of init() to shutdown(): the record of a failure, flights, the timeline."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from ringred import failures, flight_recorder, timeline


class Engine(failures.Recorder, flight_recorder.Source, timeline.Source, Protocol):
    """What is needed of an engine."""


def begin(engine: Engine, settings: Mapping[str, str]) -> None:
    """Watch over this engine's world. Called once the world is there.

    Args:
        settings: this process's RINGRED_* variables and their twins: RINGRED_TIMELINE, RINGRED_FLIGHT_RECORDER.

    Raises:
        UsageError: the timeline's file cannot be written.
    """
    if settings.get("RINGRED_TIMELINE"):
        timeline.begin(engine, settings["RINGRED_TIMELINE"])
    directory = settings.get("RINGRED_FLIGHT_RECORDER", "")
    failures.watch(engine, lambda: _keep_flights(engine, directory))


def end() -> None:
    """Stop watching. Called while the engine still works: shutdown() and the end of the process call it first."""
    failures.unwatch()
    timeline.stop_timeline()


def _keep_flights(engine: Engine, directory: str) -> None:
    if directory:
        with contextlib.suppress(OSError):
            Path(directory).mkdir(parents=True, exist_ok=True)
            flight_recorder.write(engine, directory)
