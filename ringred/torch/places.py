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

    Autograd learns that they change: a backward() that needs their old values raises.

    Returns a handle whose result are the very objects in `tensors`.

    Raises:
        UsageError: they are no dense tensors, or have elements that share memory.
    """
    given = listed(tensors, "A call in place")
    check_places(given)
    targets = [writable(tensor) for tensor in given]

    def finish(_: list[torch.Tensor]) -> list[torch.Tensor]:
        for tensor, target in zip(given, targets, strict=True):
            put_back(tensor, target)
        return given

    handle = begin(targets)
    for tensor in given:
        if not tensor.is_inference():  # of which autograd keeps no version
            torch.autograd.graph.increment_version(tensor)
    return handle.then(finish)


def check_places(tensors: Sequence[torch.Tensor]) -> None:
    """Every element of a tensor that is written must have a place of its own.

    Raises:
        UsageError: one is expanded, so elements share memory.
    """
    for tensor in tensors:
        if isinstance(tensor, torch.Tensor) and not tensor.is_nested and tensor.layout == torch.strided:
            strides = tensor.stride()
            if 0 in strides and any(
                not stride and length > 1 for stride, length in zip(strides, tensor.shape, strict=True)
            ):
                raise UsageError(
                    "A tensor that is written in place needs a place for each element: this one is expanded, its "
                    f"shape is {tuple(tensor.shape)}, its strides are {strides}. Pass tensor.clone() or "
                    "tensor.contiguous()."
                )


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
