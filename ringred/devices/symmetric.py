"""Memory of a communicator of devices as an array of torch or CuPy.

Invariant: an array keeps the communicator's object alive, but not its memory: that goes with end().
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ringred.arguments import shown
from ringred.errors import UsageError

BYTES_OF_NOTHING = 16
"""What an array without elements takes: an address has to be there."""


class Block:
    """Bytes on a device, for whoever understands __cuda_array_interface__."""

    def __init__(self, owner: object, address: int, nbytes: int) -> None:
        self._owner = owner
        data = {"shape": (nbytes,), "typestr": "|u1", "data": (address, False), "version": 3, "strides": None}
        self.__cuda_array_interface__ = data


class Form:
    """What is to be made of bytes: a tensor where the dtype is torch's, else a CuPy array.

    Raises:
        UsageError: the dtype is none that torch or numpy know, or the shape is no shape.
    """

    def __init__(self, shape: Sequence[int] | int, dtype: Any) -> None:
        self.shape = (shape,) if isinstance(shape, int) else tuple(shape)
        if not all(isinstance(extent, int) and extent >= 0 for extent in self.shape):
            raise UsageError(f"shape must be of whole numbers, 0 or more: it is {shown(shape)}.")
        self._is_tensor = type(dtype).__module__ == "torch"
        self._dtype: Any = dtype if self._is_tensor else _numpy_dtype(dtype)
        self.count = math.prod(self.shape)
        self.nbytes = max(self.count * int(self._dtype.itemsize), BYTES_OF_NOTHING)

    def made_of(self, block: Block, ordinal: int) -> Any:
        """The array; it shares memory with the block."""
        size = self.count * int(self._dtype.itemsize)
        if self._is_tensor:
            import torch

            return torch.as_tensor(block, device=f"cuda:{ordinal}")[:size].view(self._dtype).view(self.shape)
        import cupy

        with cupy.cuda.Device(ordinal):
            return cupy.asarray(block)[:size].view(self._dtype).reshape(self.shape)


def _numpy_dtype(dtype: Any) -> np.dtype[Any]:
    try:
        found: np.dtype[Any] = np.dtype(dtype)
        return found
    except TypeError as error:
        raise UsageError(
            f"dtype must be torch's, for a tensor, or one that numpy knows, for a CuPy array: it is {shown(dtype)}."
        ) from error
