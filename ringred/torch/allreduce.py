"""allreduce for torch tensors, with Horovod's arguments: blocking, asynchronous, in place, grouped, and autograd.

Invariant: every form ends in `Reduction.submit` or `Reduction.submit_`, which know of no form.

Gradients follow one rule, here and in all of ringred.torch: what is differentiated is the sum over all ranks of their
losses. So the gradient of an input is the sum over ranks of what each loss says about it.

    sum      y = x0 + x1 + ...          dx = sum of all ranks' dy      allreduce(dy, Sum), same scale factors
    average  y = (x0 + x1 + ...) / n    dx = sum of all ranks' dy / n  allreduce(dy, Average), same scale factors

The blocking forms that return new tensors are differentiable, twice as well; those in place and the asynchronous ones
are not. Min, Max, Product and Adasum have no gradient: backward() raises.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ringred import asynchronous
from ringred.arguments import checked_op
from ringred.errors import UsageError
from ringred.handles import Handle
from ringred.ops import Op
from ringred.process_sets import ProcessSet, global_process_set
from ringred.submission import listed
from ringred.torch.compression import Compression, checked_compression, wire_of
from ringred.torch.places import in_place
from ringred.torch.sparse import sparse_allreduce_async

Tensors = list[torch.Tensor]


@dataclass(frozen=True)
class Reduction:
    """All that an allreduce is told, but its tensors."""

    op: Op
    name: str | None = None
    prescale_factor: float = 1.0
    postscale_factor: float = 1.0
    process_set: ProcessSet = global_process_set
    wire: str = ""

    def submit(self, tensors: Sequence[torch.Tensor]) -> Handle[Tensors]:
        """Start the reduction of `tensors` into new ones, all or nothing."""
        return asynchronous.grouped_allreduce_async(tensors, self.op, **self._options())

    def submit_(self, tensors: Sequence[torch.Tensor]) -> Handle[Tensors]:
        """Start the reduction of `tensors` in place, all or nothing. The result is a list of the same tensors."""
        return in_place(
            tensors, lambda targets: asynchronous.grouped_allreduce_async_(targets, self.op, **self._options())
        )

    def of_gradients(self) -> Reduction:
        """Return the reduction that the gradients go through."""
        if self.op not in (Op.Sum, Op.Average):
            raise UsageError(
                f"allreduce has a gradient with op Sum or Average: this one was {self.op.name}. Detach the tensor, or "
                "compute it from allgather(), which has one."
            )
        return replace(self, name=gradient_name(self.name))

    def _options(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "prescale_factor": self.prescale_factor,
            "postscale_factor": self.postscale_factor,
            "wire": self.wire or None,
            "process_set": self.process_set,
        }


def allreduce(
    tensor: torch.Tensor,
    average: bool | None = None,
    name: str | None = None,
    compression: Any = Compression.none,
    op: Op | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet = global_process_set,
) -> torch.Tensor:
    """Return the combination of all ranks' tensors, a new tensor with the same bits on all of them. Differentiable.

    Args:
        tensor: on the CPU or a GPU, of any shape, 0-dim too, contiguous or not: bool, any integer, float16, bfloat16,
            float32, float64, complex64 or complex128, with the same shape and dtype on all ranks. A sparse one is
            reduced as sparse_allreduce_async does it. Integer averages truncate toward zero.
        average: deprecated: True is op=Average, False is op=Sum.
        name: what ranks match the call by; None numbers calls, which ranks then make in the same order.
        compression: `Compression.none`, `.fp16`, `.bf16`, or an own compressor.
        op: Average (the default), Sum, Min, Max, Product or Adasum.
        prescale_factor: multiplies the tensors before they are combined.
        postscale_factor: multiplies the result.
        process_set: the ranks that take part.

    Raises:
        UsageError: also a ValueError; the arguments are none of these, op and average are both given, or a call of
            this name is in flight.
        MismatchError: ranks differ in dtype, shape, op or scale factors; raised on all, and the next call works.
        PeerLostError, TimeoutError: a rank died, left or did not come.
    """
    how = Reduction(choose_op(op, average), name, prescale_factor, postscale_factor, process_set)
    checked_compression(compression)
    if _is_sparse(tensor):
        return _start_sparse(tensor, how).wait()
    return _reduce([tensor], how, compression)[0]


def grouped_allreduce(
    tensors: Sequence[torch.Tensor],
    average: bool | None = None,
    name: str | None = None,
    compression: Any = Compression.none,
    op: Op | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet = global_process_set,
) -> Tensors:
    """Return the combinations of several tensors, which travel together. Dtypes may differ. See allreduce."""
    how = Reduction(choose_op(op, average), name, prescale_factor, postscale_factor, process_set)
    return _reduce(tensors, how, compression)


def allreduce_async(
    tensor: torch.Tensor,
    average: bool | None = None,
    name: str | None = None,
    op: Op | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet = global_process_set,
) -> Handle[torch.Tensor]:
    """Start an allreduce and return its handle; synchronize(handle) returns the new tensor. Not differentiable.

    The tensor must not change before. Ranks may submit differently named calls in any order. See allreduce.
    """
    how = Reduction(choose_op(op, average), name, prescale_factor, postscale_factor, process_set)
    if _is_sparse(tensor):
        return _start_sparse(tensor, how)
    return first_of(how.submit([tensor]))


def allreduce_async_(
    tensor: torch.Tensor,
    average: bool | None = None,
    name: str | None = None,
    op: Op | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet = global_process_set,
) -> Handle[torch.Tensor]:
    """Start an allreduce in place and return its handle; synchronize(handle) returns `tensor`. Not differentiable."""
    how = Reduction(choose_op(op, average), name, prescale_factor, postscale_factor, process_set)
    return first_of(how.submit_([tensor]))


def allreduce_(
    tensor: torch.Tensor,
    average: bool | None = None,
    name: str | None = None,
    op: Op | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet = global_process_set,
) -> torch.Tensor:
    """Combine all ranks' tensors in place and return `tensor`. Not differentiable. See allreduce."""
    return allreduce_async_(tensor, average, name, op, prescale_factor, postscale_factor, process_set).wait()


def grouped_allreduce_async(
    tensors: Sequence[torch.Tensor],
    average: bool | None = None,
    name: str | None = None,
    op: Op | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet = global_process_set,
) -> Handle[Tensors]:
    """Start a grouped allreduce and return its one handle. See grouped_allreduce, allreduce_async."""
    return Reduction(choose_op(op, average), name, prescale_factor, postscale_factor, process_set).submit(tensors)


def grouped_allreduce_async_(
    tensors: Sequence[torch.Tensor],
    average: bool | None = None,
    name: str | None = None,
    op: Op | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet = global_process_set,
) -> Handle[Tensors]:
    """Start a grouped allreduce in place and return its one handle. See grouped_allreduce, allreduce_async_."""
    return Reduction(choose_op(op, average), name, prescale_factor, postscale_factor, process_set).submit_(tensors)


def grouped_allreduce_(
    tensors: Sequence[torch.Tensor],
    average: bool | None = None,
    name: str | None = None,
    op: Op | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet = global_process_set,
) -> Tensors:
    """Combine several tensors in place and return them. Not differentiable. See grouped_allreduce."""
    return grouped_allreduce_async_(tensors, average, name, op, prescale_factor, postscale_factor, process_set).wait()


def choose_op(op: Op | None, average: bool | None) -> Op:
    """Return the op that is meant; Average if nothing is said.

    Raises:
        UsageError: both are given, or `average` is no boolean, or `op` is no op.
    """
    if op is not None and average is not None:
        raise UsageError("op replaces the deprecated argument average: give op only.")
    if average is not None and (isinstance(average, Op) or not isinstance(average, (bool, int))):
        raise UsageError(f"average is True or False: it is {average!r}. Give an op by its name: op=...")
    if op is None:
        return Op.Sum if average is not None and not average else Op.Average
    return checked_op(op, "allreduce")


def first_of(handle: Handle[Tensors]) -> Handle[torch.Tensor]:
    """Return a handle for the only tensor of a group."""
    return handle.then(lambda results: results[0])


def gradient_name(name: str | None) -> str | None:
    """Return the name of the call that carries the gradient of the call `name`."""
    return None if name is None else f"{name}.gradient"


def wants_gradient(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether autograd must see what happens to these tensors.

    Raises:
        UsageError: it is no list of tensors.
    """
    given = listed(tensors, "A grouped call")
    for tensor in given:
        if not isinstance(tensor, torch.Tensor):
            raise UsageError(
                f"ringred.torch works on torch tensors: this is a {type(tensor).__qualname__}. Use torch.as_tensor, or "
                "ringred, which takes other arrays."
            )
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given)


def _is_sparse(tensor: torch.Tensor) -> bool:
    return isinstance(tensor, torch.Tensor) and tensor.layout == torch.sparse_coo


def _start_sparse(tensor: torch.Tensor, how: Reduction) -> Handle[torch.Tensor]:
    if how.prescale_factor != 1.0 or how.postscale_factor != 1.0:
        raise UsageError("A sparse tensor is reduced without scale factors. Multiply the tensor or the result.")
    return sparse_allreduce_async(tensor, how.name, how.op, how.process_set)


def _reduce(tensors: Sequence[torch.Tensor], how: Reduction, compression: Any) -> Tensors:
    wire = wire_of(checked_compression(compression))
    if wire is not None and how.op != Op.Adasum:  # which travels as it is given
        return reduce_differentiably(tensors, replace(how, wire=wire))
    pairs = [compression.compress(tensor) for tensor in listed(tensors, "grouped_allreduce")]
    reduced = reduce_differentiably([compressed for compressed, _ in pairs], how)
    return [compression.decompress(tensor, context) for tensor, (_, context) in zip(reduced, pairs, strict=True)]


def reduce_differentiably(tensors: Sequence[torch.Tensor], how: Reduction) -> Tensors:
    """Return the combinations of `tensors`, as functions of them where one of them requires a gradient."""
    if not wants_gradient(tensors):
        return list(how.submit(tensors).wait())
    return list(_Allreduce.apply(how, *tensors))  # type: ignore[no-untyped-call]


class _Allreduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, how: Reduction, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.how = how
        ctx.differentiable = [tensor.is_floating_point() or tensor.is_complex() for tensor in tensors]
        return tuple(how.submit(tensors).wait())

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        chosen = [gradient for gradient, use in zip(gradients, ctx.differentiable, strict=True) if use]
        reduced = iter(reduce_differentiably(chosen, ctx.how.of_gradients()))
        return (None, *(next(reduced) if use else None for use in ctx.differentiable))
