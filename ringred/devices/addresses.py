"""Arrays on GPUs as addresses, for kernels that work where they lie: torch tensors, CuPy arrays, and whatever has
__cuda_array_interface__.

Invariant: no library is imported that the array's owner has not imported.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

from ringred.arguments import shown
from ringred.arrays import Array, is_tensor
from ringred.errors import UsageError

LEGACY_STREAM = 1
"""The legacy default stream, as __cuda_array_interface__ numbers streams: 0 would be ambiguous there."""


@dataclass(frozen=True)
class View:
    """Where a contiguous array lies: address, elements, name of the dtype; and the stream that orders its use."""

    address: int
    count: int
    dtype: str
    stream: int


def view(array: Array) -> View:
    """What an array is.

    Raises:
        UsageError: it is not on a GPU, not contiguous, or of no dtype that numpy or torch name.
    """
    if is_tensor(array):
        return _view_of_tensor(array)
    try:
        interface = array.__cuda_array_interface__
    except AttributeError:
        raise UsageError(
            f"A communicator of devices takes arrays on a GPU (torch, CuPy, or with __cuda_array_interface__): this is "
            f"{shown(array)}. Use ringred.allreduce for arrays in main memory."
        ) from None
    shape = tuple(interface["shape"])
    dtype = np.dtype(interface["typestr"])
    strides = interface.get("strides")
    if strides is not None and tuple(strides) != _dense(shape, dtype.itemsize) and 0 not in shape:
        raise UsageError(f"An array must be contiguous (C order): shape {shape} has strides {tuple(strides)}. Copy it.")
    count = int(np.prod(shape, dtype=np.int64))
    stream = interface.get("stream") or _current_stream(array)
    return View(interface["data"][0], count, dtype.name, stream)


def check_result(read: View, written: View) -> None:
    """Raise unless a result of `read` fits `written`."""
    if (read.dtype, read.count) != (written.dtype, written.count):
        raise UsageError(
            f"out must have the dtype and the number of elements of the array: {written.dtype} and {written.count} "
            f"instead of {read.dtype} and {read.count}."
        )


def _view_of_tensor(tensor: Any) -> View:
    if tensor.device.type != "cuda":
        raise UsageError(
            f"A communicator of devices takes tensors on a GPU: this one is on {tensor.device}. Use "
            "ringred.allreduce or ringred.torch.allreduce for others."
        )
    if tensor.is_sparse or tensor.is_nested or not tensor.is_contiguous():
        raise UsageError(
            f"A tensor must be dense and contiguous: layout {tensor.layout}, shape {tuple(tensor.shape)}. Pass "
            "tensor.contiguous()."
        )
    torch = sys.modules["torch"]
    stream = torch.cuda.current_stream(tensor.device).cuda_stream
    return View(tensor.data_ptr(), tensor.numel(), str(tensor.dtype).removeprefix("torch."), stream or LEGACY_STREAM)


def _current_stream(array: Array) -> int:
    """Of CuPy its current stream; others that name none are complete for the default stream."""
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(array, cupy.ndarray):
        return int(cupy.cuda.get_current_stream().ptr) or LEGACY_STREAM
    return LEGACY_STREAM


def _dense(shape: tuple[int, ...], size: int) -> tuple[int, ...]:
    strides = []
    for extent in reversed(shape):
        strides.append(size)
        size *= extent
    return tuple(reversed(strides))
