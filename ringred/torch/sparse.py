"""Sparse allreduce: the sum of sparse tensors, without making them dense.

Invariant: all ranks add the same rows in the same order, so they end with the same bits.

    1. Each rank coalesces its tensor: rows with equal indices are added before they travel.
    2. One grouped allgather carries indices, values, and the lengths of the indexed dimensions.
    3. Each rank compares the lengths, and coalesces what it got.
"""

from __future__ import annotations

import torch

from ringred import asynchronous
from ringred.arguments import checked_op
from ringred.errors import MismatchError, UsageError
from ringred.handles import Handle
from ringred.ops import Op
from ringred.process_sets import ProcessSet, global_process_set


def sparse_allreduce_async(
    tensor: torch.Tensor,
    name: str | None = None,
    op: Op = Op.Average,
    process_set: ProcessSet = global_process_set,
) -> Handle[torch.Tensor]:
    """Start the sum (or average) of sparse tensors and return its handle, which may be called to get the result.

    Args:
        tensor: in COO layout, coalesced or not; ranks may hold different numbers of elements, none too.
        name: what ranks match the call by; None numbers calls.
        op: Sum, or Average, which divides by the number of ranks in the set.
        process_set: the ranks that take part.

    The result is a new coalesced tensor of the same shape.

    Raises:
        UsageError: the tensor is not one of these, or op is another.
        MismatchError: ranks differ in shape, dtype or op; at the handle, on all ranks, and the next call works.
    """
    if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.sparse_coo:
        kind = f"of layout {tensor.layout}" if isinstance(tensor, torch.Tensor) else f"a {type(tensor).__qualname__}"
        raise UsageError(f"sparse_allreduce takes tensors in COO layout: this is {kind}.")
    op = checked_op(op, "sparse tensors (use to_dense() for others)", (Op.Sum, Op.Average))
    if op == Op.Average and tensor.dtype == torch.bool:
        raise UsageError("Booleans have no average: the sparse tensor is of torch.bool. Use op=Sum, which means any.")
    own = tensor.detach().coalesce()  # 1
    lengths = torch.tensor([own.shape[: own.sparse_dim()]], dtype=torch.int64, device="cpu")
    parts = [own.indices().t().contiguous(), own.values(), lengths]
    gathered = asynchronous.gathered_async(parts, name=name, process_set=process_set, op=op)  # 2
    divisor = process_set.size() if op == Op.Average else 1
    return gathered.then(lambda pairs: _add_up([part for part, _ in pairs], own.shape, divisor))


def _add_up(parts: list[torch.Tensor], shape: torch.Size, divisor: int) -> torch.Tensor:
    indices, values, lengths = parts
    if not bool((lengths == lengths[0]).all()):
        told = "; ".join(f"{tuple(row)} on rank {index} of the set" for index, row in enumerate(lengths.tolist()))
        raise MismatchError(f"Sparse tensors must have the same shape on all ranks: the indexed dimensions are {told}.")
    total = torch.sparse_coo_tensor(
        indices.t(), values, shape, device=values.device, check_invariants=False
    ).coalesce()  # 3
    if divisor != 1:
        _divide(total.values(), divisor)
    return total


def _divide(values: torch.Tensor, divisor: int) -> None:
    if values.is_floating_point() or values.is_complex():
        values.div_(divisor)
    else:
        values.div_(divisor, rounding_mode="trunc")
