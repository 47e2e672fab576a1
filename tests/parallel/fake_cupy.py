"""A library like CuPy, as far as ringred uses it: numpy arrays behind CuPy's names, copied late, by a thread.

Fresh memory holds garbage, and what the stream has not done yet cannot be seen, as in fake_gpu.py.
"""

from __future__ import annotations

import ctypes
import queue
import random
import sys
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from types import ModuleType
from typing import Any

import numpy as np

GARBAGE = 0x7B
LONGEST_DELAY = 1e-3
PATIENCE_SECONDS = 30.0


class Stream:
    """As cupy.cuda.Stream."""

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._random = random.Random(7)
        threading.Thread(target=self._run, daemon=True).start()

    def enqueue(self, action: Callable[[], object]) -> None:
        self._work.put(action)

    def wait_event(self, event: Event) -> None:
        self.enqueue(lambda: event.reached.wait(PATIENCE_SECONDS))

    def synchronize(self) -> None:
        event = Event()
        event.record(self)
        assert event.reached.wait(PATIENCE_SECONDS)

    def _run(self) -> None:
        while True:
            action = self._work.get()
            time.sleep(self._random.uniform(0, LONGEST_DELAY))
            action()


_stream = Stream()


class Event:
    """As cupy.cuda.Event."""

    def __init__(self, **_: Any) -> None:
        self.reached = threading.Event()

    @property
    def done(self) -> bool:
        return self.reached.is_set()

    def record(self, stream: Stream) -> None:
        stream.enqueue(self.reached.set)


class Memory:
    """As cupy.cuda.MemoryPointer."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self._array = array

    def copy_to_host_async(self, host: ctypes.c_void_p, size: int, stream: Stream) -> None:
        stream.enqueue(lambda: ctypes.memmove(host, self._array.ctypes.data, size))

    def copy_from_host_async(self, host: ctypes.c_void_p, size: int, stream: Stream) -> None:
        stream.enqueue(lambda: ctypes.memmove(self._array.ctypes.data, host, size))


class ndarray:
    """As cupy.ndarray."""

    device: Any = nullcontext()

    def __init__(self, raw: np.ndarray[Any, Any]) -> None:
        self.raw = raw
        self.shape, self.dtype, self.flags = raw.shape, raw.dtype, raw.flags
        self.data = Memory(raw)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {"shape": self.shape, "typestr": self.dtype.str, "data": (self.raw.ctypes.data, False), "version": 3}

    def get(self) -> np.ndarray[Any, Any]:
        _stream.synchronize()
        return self.raw.copy()

    def set(self, values: np.ndarray[Any, Any]) -> None:
        _stream.synchronize()
        self.raw[...] = values

    def reshape(self, *shape: Any) -> ndarray:
        return ndarray(self.raw.reshape(*shape))

    def astype(self, dtype: Any) -> ndarray:
        _stream.synchronize()
        return ndarray(self.raw.astype(dtype))

    def __setitem__(self, key: Any, value: ndarray) -> None:
        _stream.enqueue(lambda: self.raw.__setitem__(key, value.raw))


ndarray.__module__ = "cupy"


def empty(shape: Any, dtype: Any) -> ndarray:
    return ndarray(empty_pinned(shape, dtype))


def empty_pinned(shape: Any, dtype: Any) -> np.ndarray[Any, Any]:
    raw = np.empty(shape, dtype)
    raw.reshape(-1).view(np.uint8)[...] = GARBAGE
    return raw


def asarray(values: Any) -> ndarray:
    """An array whose values come late."""
    raw = np.asarray(values)
    result = empty(raw.shape, raw.dtype)
    _stream.enqueue(lambda: result.raw.__setitem__(..., raw))
    return result


def ascontiguousarray(array: ndarray) -> ndarray:
    if array.raw.flags.c_contiguous:
        return array
    _stream.synchronize()
    return ndarray(np.ascontiguousarray(array.raw))


def install() -> ModuleType:
    """Put it in the place of CuPy, and return it."""
    cupy: Any = ModuleType("cupy")
    cupy.ndarray, cupy.empty, cupy.asarray, cupy.ascontiguousarray = ndarray, empty, asarray, ascontiguousarray
    cupy.cuda = ModuleType("cupy.cuda")
    cupy.cuda.Event, cupy.cuda.Stream, cupy.cuda.get_current_stream = Event, Stream, lambda: _stream
    cupyx: Any = ModuleType("cupyx")
    cupyx.empty_pinned = empty_pinned
    sys.modules["cupy"], sys.modules["cupyx"] = cupy, cupyx
    return cupy  # type: ignore[no-any-return]
