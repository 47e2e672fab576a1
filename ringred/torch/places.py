"""In-place operations on tensors of any strides.

Invariant: the engine only sees contiguous tensors that autograd does not watch; the caller gets back what it gave.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ringred.errors import UsageError
from ringred.handles import Handle
from ringred.submission import listed


def in_place(
    tensors: Sequence[torch.Tensor], begin: Callable[[list[torch.Tensor]], Handle[list[torch.Tensor]]]
) -> Handle[list[torch.Tensor]]:
    """Call `begin` with tensors that it may write; those that had to be copied are copied back after the end.

    Returns a handle whose result are the very objects in `tensors`.
    """
    given = listed(tensors, "A call in place")
    targets = [writable(tensor) for tensor in given]

    def finish(_: list[torch.Tensor]) -> list[torch.Tensor]:
        for tensor, target in zip(given, targets, strict=True):
            put_back(tensor, target)
        return given

    return begin(targets).then(finish)


def writable(tensor: torch.Tensor) -> torch.Tensor:
    """Return a contiguous tensor with the values of a dense one: one that shares its memory where that is possible.

    Raises:
        UsageError: the tensor is not dense.
    """
    if not isinstance(tensor, torch.Tensor):
        raise UsageError(f"ringred.torch works on torch tensors: this is a {type(tensor).__qualname__}.")
    if tensor.is_nested or tensor.layout != torch.strided:
        raise UsageError(f"A tensor must be dense: its layout is {tensor.layout}. Convert it with to_dense().")
    return tensor.detach().resolve_conj().resolve_neg().contiguous()


def put_back(tensor: torch.Tensor, target: torch.Tensor) -> None:
    """Give a tensor the values of what writable() returned for it, if that was a copy."""
    if tensor.data_ptr() != target.data_ptr():
        with torch.no_grad():
            tensor.copy_(target)
