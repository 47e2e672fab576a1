"""Who failed first: an exception that nobody caught is recorded where the other ranks can read it.

    1. On the rank that fails, sys.excepthook records "kind: text" and the traceback in the rank's shared memory, then
       lets the previous hook print. The engines of the other ranks name it in the PeerLostError that they raise.
    2. On a rank that ends because of that PeerLostError, the hook prints the record as the last thing it says. Under
       ``ringred run`` it does not: the launcher shows the failed rank's own traceback after everything else.
    3. A fatal signal leaves no time for Python. faulthandler writes the stacks to stderr, where the launcher's wrapper
       keeps them, and the engines see the process end.

Invariant: the hook ends no process and raises nothing.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

from ringred.errors import PeerLostError

RECORD_BYTES = 8000
"""The longest record: the shared memory has 8 KiB for it, and a text in UTF-8 needs a zero behind it."""

Hook = Callable[[type[BaseException], BaseException, TracebackType | None], object]


class Recorder(Protocol):
    """What is needed of an engine."""

    @property
    def rank(self) -> int: ...

    def record_failure(self, text: str) -> None: ...

    def failures(self) -> list[tuple[int, str]]: ...


@dataclass
class _Watch:
    engine: Recorder
    process: int
    after: Callable[[], object]


_lock = threading.Lock()
_watch: _Watch | None = None
_previous: Hook | None = None


def watch(engine: Recorder, after: Callable[[], object] = lambda: None) -> None:
    """Record this rank's uncaught exception through `engine` from now on, and call `after` once it is recorded.

    Installs one hook for the life of the process, before whatever hook there is, and lets faulthandler write the stacks
    of a fatal signal to stderr unless it is in use already.
    """
    global _watch, _previous
    with _lock:
        _watch = _Watch(engine, os.getpid(), after)
        if _previous is None:
            _previous = sys.excepthook
            sys.excepthook = _on_uncaught
    if not faulthandler.is_enabled():
        with contextlib.suppress(OSError, ValueError):  # stderr is closed
            faulthandler.enable(file=2)


def unwatch() -> None:
    """Record no more: the world is gone."""
    global _watch
    with _lock:
        _watch = None


def is_consequence(error: BaseException | None) -> bool:
    """Whether an exception comes, by its causes, from the loss of another rank."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, PeerLostError):
            return True
        seen.add(id(error))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return False


def record_of(error: BaseException) -> str:
    """The exception in one line, then the traceback; the middle of a long one is left out."""
    summary = f"{type(error).__name__}: {_text_of(error)}".splitlines()[0]
    whole = summary + "\n" + "".join(traceback.format_exception(type(error), error, error.__traceback__))
    data = whole.encode(errors="replace")
    if len(data) <= RECORD_BYTES:
        return data.decode(errors="replace")
    half = RECORD_BYTES // 2 - 16
    return data[:half].decode(errors="ignore") + "\n  ...\n" + data[-half:].decode(errors="ignore")


def first_failure(engine: Recorder) -> str:
    """The first failure of another rank as an indented block with a heading; empty where there is none."""
    for rank, text in engine.failures():
        if rank == engine.rank:
            return ""
        summary, _, trace = text.partition("\n")
        # Indented: whoever looks for this rank's own traceback must not find that of another.
        indented = "".join(f"    {line}\n" for line in trace.splitlines())
        return f"ringred: rank {rank} failed first: {summary}\n{indented}"
    return ""


def _on_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    watched = _watch
    mine = watched is not None and watched.process == os.getpid()
    consequence = is_consequence(error)
    if watched is not None and mine and not consequence:
        _quietly(lambda: watched.engine.record_failure(record_of(error)))
    (_previous or sys.__excepthook__)(kind, error, trace)
    if watched is None or not mine:
        return
    _quietly(watched.after)
    if consequence and "RINGRED_RUN_DIR" not in os.environ:
        _quietly(lambda: print(first_failure(watched.engine), end="", file=sys.stderr, flush=True))


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return "(its text could not be made)"


def _quietly(action: Callable[[], object]) -> None:
    """A hook that raises would hide the exception that it is about."""
    with contextlib.suppress(Exception):
        action()
