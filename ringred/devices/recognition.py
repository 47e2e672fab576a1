"""Whose an array is: nobody's, if the core can reach it, or a library's, if it lies on a GPU.

Invariant: no library is imported for an array in main memory. torch's tensors are torch's, CuPy's arrays CuPy's; those
of others (Numba, JAX) are seen through torch or CuPy, whichever is imported, without a copy.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from ringred.devices.library import DeviceLibrary, Mark
from ringred.errors import UsageError

DLPACK_GPUS = (2, 10, 13)
"""DLPack's numbers of devices: CUDA, ROCm, and memory that CUDA manages."""

TORCH_KINDS = ["cuda"]
"""torch's names of devices whose tensors are carried. Tests add one."""


class Native(NamedTuple):
    """An array on a GPU, as its library knows it."""

    library: DeviceLibrary
    array: Any
    follow: Callable[[Mark], object] | None = None
    """Lets the stream that the array's owner named wait for a mark. None: there is none but the library's."""


def native(array: Any) -> Native | None:
    """The array as one of a library that copies it; None where it lies in main memory, or is no array at all.

    Raises:
        UsageError: it lies on a device that is none of these, or no library is there that sees it.
    """
    if type(array) is np.ndarray:
        return None
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(array, torch.Tensor):
        return None if array.is_cpu else Native(_of_torch(array), array)
    if type(array).__module__.partition(".")[0] == "cupy":
        return Native(cupy_library(), array) if hasattr(array, "__cuda_array_interface__") else None
    if hasattr(array, "__cuda_array_interface__") or _dlpack_device(array) in DLPACK_GPUS:
        return _foreign(array)
    return None


def is_on_device(array: Any) -> bool:
    """Whether an array lies anywhere but in main memory; nearly free for numpy's and for tensors on the CPU."""
    if type(array) is np.ndarray:
        return False
    is_cpu = getattr(array, "is_cpu", None)
    if is_cpu is True or is_cpu is False:  # what only torch's tensors tell: half the time of asking for their class
        return not is_cpu
    return hasattr(array, "__cuda_array_interface__") or _dlpack_device(array) in DLPACK_GPUS


def check_device(device: Any, what: str) -> None:
    """Raise unless collectives take tensors on this device of torch's."""
    if device.type != "cpu" and device.type not in TORCH_KINDS:
        raise UsageError(
            f"An array must lie in main memory or on a GPU of CUDA or ROCm: {what} is on {device}. Copy it to the CPU "
            "first (tensor.cpu()), and the result back."
        )


@cache
def torch_library(kind: str) -> DeviceLibrary:
    """torch, for devices of one kind."""
    from ringred.devices.of_torch import TorchLibrary

    return TorchLibrary(kind)


@cache
def cupy_library() -> DeviceLibrary:
    """CuPy."""
    from ringred.devices.of_cupy import CupyLibrary

    return CupyLibrary()


def _of_torch(tensor: Any) -> DeviceLibrary:
    check_device(tensor.device, f"this {type(tensor).__module__}.{type(tensor).__qualname__}")
    return torch_library(tensor.device.type)


def _dlpack_device(array: Any) -> int:
    """DLPack's number of the array's kind of device; 0 where it does not tell."""
    tell = getattr(array, "__dlpack_device__", None)
    return 0 if tell is None or isinstance(array, (type, np.ndarray)) else int(tell()[0])


def _foreign(array: Any) -> Native:
    name = next((name for name in ("torch", "cupy") if name in sys.modules), None) or next(
        (name for name in ("torch", "cupy") if importlib.util.find_spec(name) is not None), None
    )
    if name is None:
        raise UsageError(
            "An array on a GPU is copied by torch or CuPy: this is a "
            f"{type(array).__module__}.{type(array).__qualname__}, and neither is installed. Install one of them, or "
            "copy the array to a numpy array first."
        )
    return _through_torch(array) if name == "torch" else _through_cupy(array)


def _through_torch(array: Any) -> Native:
    import torch
    from torch.utils import dlpack

    library = torch_library("cuda")
    if not hasattr(array, "__cuda_array_interface__"):
        return Native(library, dlpack.from_dlpack(array))  # which tells the owner torch's stream
    told = array.__cuda_array_interface__
    tensor = torch.as_tensor(array, device="cuda")
    if tensor.numel() and tensor.data_ptr() != told["data"][0]:
        raise UsageError(
            f"An array of another library must lie on torch's current device: this {type(array).__qualname__} does not "
            f"lie on {tensor.device}. Select its device with torch.cuda.set_device first."
        )
    stream = told.get("stream")
    if stream is None:
        return Native(library, tensor)
    of_owner = torch.cuda.default_stream() if stream == 1 else torch.cuda.ExternalStream(stream)  # type: ignore[no-untyped-call]
    torch.cuda.current_stream().wait_stream(of_owner)
    return Native(library, tensor, lambda mark: mark.precede_on(of_owner))  # type: ignore[attr-defined]


def _through_cupy(array: Any) -> Native:
    import cupy

    if hasattr(array, "__cuda_array_interface__"):
        return Native(cupy_library(), cupy.asarray(array))  # which waits for the owner's stream
    return Native(cupy_library(), cupy.from_dlpack(array))
