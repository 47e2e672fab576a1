"""Torch tensors that live in the shared arena, where a collective needs no copy.

Invariant: a tensor from `empty` is one contiguous block of this rank's arena, and keeps that block alive.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence

import torch

import ringred as rr


def empty(*shape: int | Sequence[int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return a zeroed CPU tensor in this rank's part of the shared arena.

    Any torch dtype works, bfloat16 included: the arena gives bytes, and torch says what they mean. The call is local,
    not a collective.

    Args:
        *shape: lengths of the dimensions, none for a 0-dim tensor; `empty((2, 3))` means the same as `empty(2, 3)`.
        dtype: element type of the tensor.

    Raises:
        ringred.UsageError: ringred is not initialised, a length is negative or no int, or dtype is none of torch's.
        ringred.SystemError: the arena cannot grow; the text says what was needed, what there was and the remedy.
    """
    try:
        parts = [part if isinstance(part, Iterable) else [part] for part in shape]
        lengths = [operator.index(length) for part in parts for length in part]
    except TypeError:
        raise rr.UsageError(f"Lengths of dimensions must be ints: the shape is {shape!r}.") from None
    if not isinstance(dtype, torch.dtype):
        raise rr.UsageError(f"dtype must be a torch dtype, such as torch.float32: it is {dtype!r}.")
    if any(length < 0 for length in lengths):
        raise rr.UsageError(f"Lengths of dimensions are at least 0, got shape {tuple(lengths)}.")
    count = math.prod(lengths)
    element_bytes = torch.empty((), dtype=dtype, device="cpu").element_size()
    # At least one element: an empty numpy array has stride 0, of which torch takes no view with another dtype.
    block = torch.from_numpy(rr.empty(max(count, 1) * element_bytes, "uint8"))
    return block.view(dtype)[:count].view(lengths)
