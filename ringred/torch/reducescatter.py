"""reducescatter for torch tensors: all ranks' tensors are combined, and each rank gets some rows of the result.

    sum      y on rank r = rows of r in x0 + x1 + ...            dx = (dy of rank 0; dy of rank 1; ...)
    average  y on rank r = rows of r in (x0 + x1 + ...) / n      dx = (dy of rank 0; dy of rank 1; ...) / n

That follows the rule in allreduce.py; Horovod's gradient is n times as large in both cases.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ringred import asynchronous
from ringred.handles import Handle
from ringred.ops import Op
from ringred.process_sets import ProcessSet, global_process_set
from ringred.submission import listed
from ringred.torch.allgather import grouped_allgather
from ringred.torch.allreduce import Tensors, first_of, gradient_name, wants_gradient
from ringred.torch.compression import Compression, checked_compression


def reducescatter(
    tensor: torch.Tensor,
    name: str | None = None,
    compression: Any = Compression.none,
    op: Op = Op.Average,
    process_set: ProcessSet = global_process_set,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
) -> torch.Tensor:
    """Return this rank's rows of the combination of all ranks' tensors, as a new tensor. Differentiable.

    With `rows` rows and n ranks, each rank gets rows // n, and the first rows % n ranks one more, in rank order.

    Args:
        tensor: at least 1-dim, of a dtype that allreduce takes; the same shape and dtype on all ranks.
        name: what ranks match the call by; None numbers calls.
        compression: `Compression.none`, `.fp16`, `.bf16`, or an own compressor; tensors are cast before they are sent.
        op: Average or Sum.
        process_set: the ranks that take part.
        prescale_factor: multiplies the tensors before they are combined.
        postscale_factor: multiplies the result.

    Raises:
        UsageError: also a ValueError; the tensor is 0-dim, or the arguments are none of these.
        MismatchError: ranks differ in dtype, shape, op or scale factors.
        PeerLostError, TimeoutError: a rank died, left or did not come.
    """
    return grouped_reducescatter([tensor], name, compression, op, process_set, prescale_factor, postscale_factor)[0]


def reducescatter_async(
    tensor: torch.Tensor,
    name: str | None = None,
    op: Op = Op.Average,
    process_set: ProcessSet = global_process_set,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
) -> Handle[torch.Tensor]:
    """Start a reducescatter and return its handle. Not differentiable. See reducescatter."""
    return first_of(grouped_reducescatter_async([tensor], name, op, process_set, prescale_factor, postscale_factor))


def grouped_reducescatter(
    tensors: Sequence[torch.Tensor],
    name: str | None = None,
    compression: Any = Compression.none,
    op: Op = Op.Average,
    process_set: ProcessSet = global_process_set,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
) -> Tensors:
    """Combine and scatter several tensors, which travel together. Dtypes may differ. See reducescatter."""
    checked_compression(compression)
    pairs = [compression.compress(tensor) for tensor in listed(tensors, "grouped_reducescatter")]
    compressed = [tensor for tensor, _ in pairs]
    arguments = (name, op, process_set, prescale_factor, postscale_factor)
    if wants_gradient(compressed):
        scattered = _Reducescatter.apply(arguments, *compressed)  # type: ignore[no-untyped-call]
    else:
        scattered = grouped_reducescatter_async(compressed, *arguments).wait()
    return [compression.decompress(rows, context) for rows, (_, context) in zip(scattered, pairs, strict=True)]


def grouped_reducescatter_async(
    tensors: Sequence[torch.Tensor],
    name: str | None = None,
    op: Op = Op.Average,
    process_set: ProcessSet = global_process_set,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
) -> Handle[Tensors]:
    """Start a grouped reducescatter and return its one handle. Not differentiable. See reducescatter."""
    return asynchronous.grouped_reducescatter_async(
        tensors,
        op,
        name=name,
        prescale_factor=prescale_factor,
        postscale_factor=postscale_factor,
        process_set=process_set,
    )


class _Reducescatter(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, arguments: tuple[str | None, Op, ProcessSet, float, float], *tensors: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        name, op, process_set, prescale_factor, postscale_factor = arguments
        scattered = grouped_reducescatter_async(tensors, *arguments).wait()  # which checks the arguments
        ctx.name, ctx.process_set = gradient_name(name), process_set
        ctx.factor = prescale_factor * postscale_factor / (process_set.size() if op == Op.Average else 1)
        ctx.differentiable = [tensor.is_floating_point() or tensor.is_complex() for tensor in tensors]
        return tuple(scattered)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        chosen = [gradient * ctx.factor for gradient, use in zip(gradients, ctx.differentiable, strict=True) if use]
        gathered = iter(grouped_allgather(chosen, ctx.name, ctx.process_set))
        return (None, *(next(gathered) if use else None for use in ctx.differentiable))
