"""A thread that asks communicators of devices for errors now and then.

While a device waits for a rank that has died, this rank's host may wait for the device, in torch, where nobody looks
at other ranks. A look of this thread finds that out and breaks the communicator off, so that the device, and then the
host, go on; the next call of the communicator tells why.

Invariant: nothing is asked while somebody else uses it: a communicator is used by one thread at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Protocol

from ringred.errors import RingredError

SECONDS = 1.0
"""Between two looks: a lost peer is noticed that late, and a look takes microseconds."""


class Watched(Protocol):
    """What is asked."""

    lock: threading.Lock
    failed: bool

    def check(self) -> None:
        """Raise what is known already; called with the lock."""


class Watch:
    """The thread, until end().

    Args:
        watched: what is asked from now on; may change.
    """

    def __init__(self, watched: Iterable[Watched]) -> None:
        self._watched = watched
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ringred-devices", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Return when nothing is asked any more."""
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(SECONDS):
            for one in list(self._watched):
                _look(one)


def _look(one: Watched) -> None:
    if one.failed or not one.lock.acquire(blocking=False):
        return
    try:
        one.check()
    except RingredError:
        one.failed = True
    finally:
        one.lock.release()
