"""What ringred needs of a library whose arrays lie on GPUs.

Invariant: nothing in this package speaks with a driver. The library of an array copies it, in the order of that
library's current stream of the calling thread: what was enqueued there before a copy out is in the copy, and what is
enqueued there after a copy in sees it. No device is ever synchronised as a whole; the host waits for marks.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from ringred import environment
from ringred.errors import TimeoutError

SPIN_SECONDS = 100e-6
"""For which the host asks without a pause: longer than a small copy takes (10 to 20 us)."""

SHORTEST_PAUSE, LONGEST_PAUSE = 20e-6, 1e-3
"""Between two questions after that, growing, so that it adds little to a long wait."""

GROWTH = 1.2
DEFAULT_TIMEOUT = "1800"


class Mark(Protocol):
    """A place in the order of a stream: everything that was enqueued before it."""

    def passed(self) -> bool:
        """Whether the device has done all that."""

    def precede(self) -> None:
        """Let what the calling thread enqueues from now on wait for it, on the device."""


class DeviceLibrary(Protocol):
    """A library of arrays on GPUs. Copies are started, and must not be relied on before a mark behind them."""

    def contiguous(self, array: Any) -> Any:
        """The values in a dense array in C order on the same device; a copy only where it must be one."""

    def empty(self, shape: Sequence[int], like: Any) -> Any:
        """A new array of this shape, with the dtype and device of another one."""

    def check_writable(self, array: Any) -> None:
        """Raise a usage error unless the array can be written where it lies: contiguous, and its own values."""

    def host_memory(self, like: Any) -> Any:
        """Pinned host memory of the shape and dtype of an array, as an array that the core takes."""

    def copy_out(self, array: Any, host: Any) -> None:
        """Start to copy a contiguous array to pinned memory."""

    def copy_in(self, host: Any, array: Any) -> None:
        """Start to copy pinned memory to an array. The memory may be dropped at once."""

    def fetch(self, host: Any, array: Any) -> None:
        """Copy any host memory, told as bytes, to an array; the memory may be written on return."""

    def narrowed(self, array: Any, dtype: str) -> Any | None:
        """An array of floats in a narrower type, rounded on the device; None where it is no wider already."""

    def mark(self, array: Any) -> Mark:
        """A mark on the current stream of the array's device."""


def wait_for(marks: Iterable[Mark], what: str) -> None:
    """Let the host wait, without the GIL for the most part, until the devices have passed all marks.

    Raises:
        TimeoutError: that took longer than RINGRED_TIMEOUT_SECONDS. `what` says what was waited for.
    """
    began = time.monotonic()
    pause = SHORTEST_PAUSE
    for mark in marks:
        while not mark.passed():
            waited = time.monotonic() - began
            if waited < SPIN_SECONDS:
                continue
            check_deadline(waited, what)
            time.sleep(pause)
            pause = min(pause * GROWTH, LONGEST_PAUSE)


def check_deadline(waited: float, what: str) -> None:
    """Raise if a wait of so many seconds is too long."""
    limit = float(environment.read().settings.get("RINGRED_TIMEOUT_SECONDS", DEFAULT_TIMEOUT))
    if 0 < limit < waited:
        raise TimeoutError(
            f"The device has not come to {what} within {limit:g} s (RINGRED_TIMEOUT_SECONDS): what was enqueued before "
            "has not ended. Look there: it may be a kernel that does not end, or one that waits for another process."
        )
