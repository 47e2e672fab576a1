"""The one Python thread that runs what waits for the end of an operation.

Invariant: what runs here belongs to operations of one engine; a world has one engine, so it has one such thread.

1. `when_done` notes the action under its operation, and asks the engine to tell.
2. The thread sleeps in the engine, without the GIL, until operations that were asked for are done.
3. It takes their actions, and runs them one after the other. One that raises is reported; the others still run.
4. When the engine ends, nothing more will be told: the thread runs the actions that are left, and ends.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterable

from ringred import _core

Action = Callable[[], object]

JOIN_SECONDS = 5.0  # for which the end of a world waits for an action that is still running


class CallbackThread:
    """The thread of one engine. It starts with the first action."""

    def __init__(self, engine: _core.Engine) -> None:
        self.engine = engine
        self._lock = threading.Lock()
        self._actions: dict[_core.Operation, list[Action]] = {}  # by operations that the engine will tell about
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="ringred callbacks", daemon=True)
        self._thread.start()

    def when_done(self, operation: _core.Operation, action: Action) -> None:
        with self._lock:
            if not self._ended:
                self._actions.setdefault(operation, []).append(action)  # 1
                self.engine.tell(operation)
                return
        run_action(action, operation.name)  # the world is gone: so is the thread, and the operation is done

    def is_current(self) -> bool:
        return threading.current_thread() is self._thread

    def join(self) -> None:
        if not self.is_current():
            self._thread.join(JOIN_SECONDS)

    def _run(self) -> None:
        while operations := self.engine.await_completed():  # 2
            self._complete(operations)
            del operations  # or the results of the last one would live as long as this thread sleeps
        with self._lock:
            self._ended = True
            left = list(self._actions)
        self._complete(left)  # 4

    def _complete(self, operations: Iterable[_core.Operation]) -> None:
        for operation in operations:  # 3
            with self._lock:
                actions = self._actions.pop(operation, [])
            for action in actions:
                run_action(action, operation.name)


_lock = threading.Lock()
_current: CallbackThread | None = None


def thread_of(engine: _core.Engine) -> CallbackThread:
    """The callback thread of this engine, which is started at the first call."""
    global _current
    with _lock:
        if _current is None or _current.engine is not engine:
            _current = CallbackThread(engine)
        return _current


def reset() -> None:
    """Wait for the thread of an engine that has left, so that the interpreter does not end under it."""
    global _current
    with _lock:
        ending, _current = _current, None
    if ending is not None:
        ending.join()


def run_action(action: Action, operation: str) -> None:
    """Run what waited for this operation; report what it raises, as nobody is there to catch it."""
    try:
        action()
    except BaseException:
        text = f"ringred: a callback of operation {operation!r} raised; the operation itself is done.\n"
        with contextlib.suppress(Exception):  # there may be no stderr any more
            print(text + traceback.format_exc(), end="", file=sys.stderr, flush=True)


def _forget_parents_thread() -> None:
    global _lock, _current
    _lock, _current = threading.Lock(), None


os.register_at_fork(after_in_child=_forget_parents_thread)
