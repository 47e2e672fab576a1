"""CuPy's arrays.

Invariant: pinned memory that a copy reads is kept until the copy has ended; CuPy's pool would give it away before.
"""

from __future__ import annotations

import ctypes
import threading
from collections import deque
from collections.abc import Sequence
from typing import Any

import cupy  # type: ignore[import-not-found,import-untyped,unused-ignore]
import cupyx  # type: ignore[import-not-found,import-untyped,unused-ignore]
import numpy as np
from numpy.typing import NDArray

from ringred.errors import UsageError


class CupyMark:
    """An event of CuPy's."""

    def __init__(self, device: Any) -> None:
        self._device = device
        with device:
            self._event = cupy.cuda.Event(disable_timing=True)
            self._event.record(cupy.cuda.get_current_stream())

    def passed(self) -> bool:
        """Ask the event."""
        return bool(self._event.done)

    def precede(self) -> None:
        """Let the current stream of the device wait for the event."""
        with self._device:
            cupy.cuda.get_current_stream().wait_event(self._event)


class CupyLibrary:
    """Arrays on any device."""

    def __init__(self) -> None:
        self._lent: deque[tuple[CupyMark, NDArray[Any]]] = deque()
        self._lock = threading.Lock()

    def contiguous(self, array: Any) -> Any:
        """The array, or a copy in C order."""
        with array.device:
            return cupy.ascontiguousarray(array).reshape(array.shape)  # which has a dimension where array has none

    def empty(self, shape: Sequence[int], like: Any) -> Any:
        """Memory of CuPy's pool."""
        with like.device:
            return cupy.empty(tuple(shape), like.dtype)

    def check_writable(self, array: Any) -> None:
        """It must be contiguous."""
        if not array.flags.c_contiguous:
            raise UsageError(
                "An array must be contiguous (C order) to be reduced where it lies: this cupy.ndarray of shape "
                f"{array.shape} is not. Call the form without underscore, or copy it (cupy.ascontiguousarray)."
            )

    def host_memory(self, like: Any) -> NDArray[Any]:
        """Memory of CuPy's pinned pool."""
        host: NDArray[Any] = cupyx.empty_pinned(like.shape, like.dtype)
        return host

    def copy_out(self, array: Any, host: NDArray[Any]) -> None:
        """On the current stream of the array's device."""
        if host.nbytes:
            with array.device:
                array.data.copy_to_host_async(_address(host), host.nbytes, cupy.cuda.get_current_stream())

    def copy_in(self, host: NDArray[Any], array: Any) -> None:
        """On the current stream of the array's device."""
        if not host.nbytes:
            return
        with array.device:
            place = array if host.dtype == array.dtype else cupy.empty(host.shape, host.dtype)
            place.data.copy_from_host_async(_address(host), host.nbytes, cupy.cuda.get_current_stream())
            if place is not array:
                array[...] = place.reshape(array.shape)
        with self._lock:
            while self._lent and self._lent[0][0].passed():
                self._lent.popleft()
            self._lent.append((self.mark(array), host))

    def fetch(self, host: Any, array: Any) -> None:
        """Through the driver's own staging, which has read the memory on return."""
        with array.device:
            array.set(np.frombuffer(host, np.uint8).view(array.dtype).reshape(array.shape))

    def narrowed(self, array: Any, dtype: str) -> Any | None:
        """Cast to float16; there is no bfloat16 here."""
        wide = array.dtype.kind == "f" and array.dtype.itemsize > 2
        with array.device:
            return array.astype(dtype) if wide and dtype == "float16" else None

    def mark(self, array: Any) -> CupyMark:
        """An event on the current stream."""
        return CupyMark(array.device)


def _address(host: NDArray[Any]) -> ctypes.c_void_p:
    return ctypes.c_void_p(host.ctypes.data)
