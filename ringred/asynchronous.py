"""The named collectives: every rank submits them in any order, from any thread; the engine agrees on one order.

Each `..._async` returns a handle at once; `synchronize(handle)` or `handle.wait()` returns the result. Until then the
arrays must not be written. The forms without `_async` submit and wait; those with an underscore at the end work in
place, on contiguous, writable arrays.

Common to all:
    name: what pairs the call with those of the other ranks. Without a name the calls of a process set are paired in
        the order in which each rank makes them. It is free again once the operation is done.
    process_set: the ranks that take part, all by default. Each of them must call, and nobody else can.

All raise:
    UsageError: at the call, which then has started nothing: init() was not called; an array, op or process set is not
        one that the function takes; this rank is not in the set; or an operation of this name is in flight.
    MismatchError: from wait(), on all ranks: they disagree in kind, dtype, shape, op, factors or root_rank. The next
        operation works.
    PeerLostError, TimeoutError: from wait(): a rank died, left or did not come.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import numpy as np

from ringred import _core
from ringred.adasum import adasum
from ringred.arguments import check_name, checked_factors, checked_op
from ringred.arrays import Array, contiguous, is_tensor, like, on_host
from ringred.devices import groups
from ringred.devices.crossing import CrossingHandle, crossing_of
from ringred.devices.recognition import is_on_device
from ringred.errors import UsageError
from ringred.handles import Handle
from ringred.ops import Op
from ringred.process_sets import ProcessSet, checked_set, global_process_set
from ringred.submission import adopted, listed, new_array, start, start_into, with_rows

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
Pick = Callable[[list[Any]], Any]
"""What a call returns of the list of results: the list, or for calls with one array the one result."""

WIRES = ("float16", "bfloat16")

_the_one: Pick = operator.itemgetter(0)


def allreduce_async(
    array: Array,
    op: Op = Op.Average,
    *,
    name: str | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    wire: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> Handle[Array]:
    """Combine all ranks' arrays; the result is a new array of the same kind, shape and dtype.

    Args:
        array: what rr.allreduce takes, strided or not.
        op: Sum, Average, Min, Max, Product, or Adasum (see ringred.adasum). Average divides by the size of the set.
        prescale_factor, postscale_factor: multiply every value before and after, in the same pass; integers are scaled
            in float64 and truncated.
        wire: "float16" or "bfloat16": floats travel in this type and are combined in float32. None: as they are.
    """
    sources = [contiguous(array)]
    factors = (prescale_factor, postscale_factor)
    return _allreduce(sources, _alike(sources), _the_one, op, name, factors, wire, process_set)


def allreduce_async_(
    array: Array,
    op: Op = Op.Average,
    *,
    name: str | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    wire: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> Handle[Array]:
    """Combine all ranks' arrays in place; the result is `array`. See allreduce_async."""
    arrays = [array]
    return _allreduce(arrays, arrays, _the_one, op, name, (prescale_factor, postscale_factor), wire, process_set)


def grouped_allreduce_async(
    arrays: Sequence[Array],
    op: Op = Op.Average,
    *,
    name: str | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    wire: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> Handle[list[Array]]:
    """allreduce_async for a list of arrays, of different dtypes if need be, as one operation: all or none of it."""
    sources = [contiguous(array) for array in listed(arrays, "grouped_allreduce")]
    factors = (prescale_factor, postscale_factor)
    return _allreduce(sources, _alike(sources), list, op, name, factors, wire, process_set)


def grouped_allreduce_async_(
    arrays: Sequence[Array],
    op: Op = Op.Average,
    *,
    name: str | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    wire: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> Handle[list[Array]]:
    """grouped_allreduce_async in place; the result is a list of the same arrays."""
    targets = listed(arrays, "grouped_allreduce_")
    factors = (prescale_factor, postscale_factor)
    return _allreduce(targets, targets, list, op, name, factors, wire, process_set)


def allgather_async(
    array: Array, *, name: str | None = None, process_set: ProcessSet = global_process_set
) -> Handle[Array]:
    """Concatenate all ranks' arrays along the first dimension, whose length may differ between ranks.

    Args:
        array: of shape (rows, *rest), where rest and dtype agree on all ranks. The result has shape
            (sum of rows, *rest).
    """
    return gathered_async([array], name=name, process_set=process_set).then(lambda pairs: pairs[0][0])


def grouped_allgather_async(
    arrays: Sequence[Array], *, name: str | None = None, process_set: ProcessSet = global_process_set
) -> Handle[list[Array]]:
    """allgather_async for a list of arrays, as one operation: all or none of it."""
    gathered = gathered_async(arrays, name=name, process_set=process_set)
    return gathered.then(lambda pairs: [array for array, _ in pairs])


def gathered_async(
    arrays: Sequence[Array],
    *,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
    op: Op = Op.Sum,
) -> Handle[list[tuple[Array, list[int]]]]:
    """grouped_allgather_async that tells for each array also how many rows came from each rank of the set.

    The op combines nothing: ranks compare it, for callers who combine what they gathered.
    """
    sources = [with_rows(array, "allgather") for array in listed(arrays, "grouped_allgather")]

    def finish(operation: _core.Operation) -> list[tuple[Array, list[int]]]:
        return [(adopted(one, like), one[1]) for one, like in zip(operation.results(), sources, strict=True)]

    return start(process_set, "allgather", name, sources, None, finish, op=op)


def broadcast_async(
    array: Array, root_rank: int = 0, *, name: str | None = None, process_set: ProcessSet = global_process_set
) -> Handle[Array]:
    """The root's array on every rank, as a new array. Shape and dtype must agree on all ranks.

    Args:
        array: of any shape and of any dtype of fixed size that the core knows; the root's is copied bit for bit.
        root_rank: the root's rank in the world, also where a process set is given.
    """
    root = _root(root_rank, process_set)
    source = contiguous(array)
    target = like(source)
    if process_set.rank() == root:
        target[...] = source
    return _broadcast([target], _the_one, root, name, process_set)


def broadcast_async_(
    array: Array, root_rank: int = 0, *, name: str | None = None, process_set: ProcessSet = global_process_set
) -> Handle[Array]:
    """Overwrite the array with the root's; the result is `array`. See broadcast_async."""
    return _broadcast([array], _the_one, _root(root_rank, process_set), name, process_set)


def grouped_broadcast_async_(
    arrays: Sequence[Array],
    root_rank: int = 0,
    *,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> Handle[list[Array]]:
    """broadcast_async_ for a list of arrays, as one operation: all or none of it."""
    targets = listed(arrays, "grouped_broadcast_")
    return _broadcast(targets, list, _root(root_rank, process_set), name, process_set)


def alltoall_async(
    array: Array,
    splits: Any = None,
    *,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> Handle[Any]:
    """Send rows of the array to each rank, and concatenate what comes from each, in the order of the set's ranks.

    Args:
        array: of shape (rows, *rest), where rest and dtype agree on all ranks.
        splits: how many rows go to each rank of the set, in order: a list, array or tensor of integers whose sum is
            `rows`. None: the same number to each.

    Returns:
        A handle. Its result is the array of shape (rows received, *rest); with splits a pair of it and the number of
        rows that came from each rank: one-dimensional, of the array's library (numpy's for CuPy's), and of the dtype
        and device of splits where they are of that library too, else int64 on the CPU.
    """
    source = with_rows(array, "alltoall")
    counts = _checked_splits(splits, source.shape[0], checked_set(process_set).size())

    def finish(operation: _core.Operation) -> Any:
        received = operation.results()[0]
        values = adopted(received, source)
        return values if splits is None else (values, _received_splits(received[1], splits, source))

    return start(process_set, "alltoall", name, [source], None, finish, splits=[counts])


def reducescatter_async(
    array: Array,
    op: Op = Op.Average,
    *,
    name: str | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet = global_process_set,
) -> Handle[Array]:
    """Combine all ranks' arrays and leave each rank its share of the rows, as a new array.

    Args:
        array: of shape (rows, *rest), the same on all ranks. Each of the n ranks gets rows // n of them, and the first
            rows % n ranks one more.
        op: Sum or Average.
        prescale_factor, postscale_factor: as for allreduce_async.
    """
    factors = (prescale_factor, postscale_factor)
    return _reducescatter([array], _the_one, op, name, factors, process_set)


def grouped_reducescatter_async(
    arrays: Sequence[Array],
    op: Op = Op.Average,
    *,
    name: str | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet = global_process_set,
) -> Handle[list[Array]]:
    """reducescatter_async for a list of arrays, as one operation: all or none of it."""
    factors = (prescale_factor, postscale_factor)
    return _reducescatter(listed(arrays, "grouped_reducescatter"), list, op, name, factors, process_set)


def barrier_async(*, name: str | None = None, process_set: ProcessSet = global_process_set) -> Handle[None]:
    """Done when all ranks of the set have called it. Other operations in flight are none of its concern."""
    return start(process_set, "barrier", name, [], None, lambda _: None)


def join(device: int = -1, allow: str = "allreduce", process_set: ProcessSet = global_process_set) -> int:
    """Say that this rank has run out of data, and wait until all ranks have said so.

    Until then it gives nothing to the allreduces of the others, which for sums is zero; averages still divide by the
    size of the whole set.

    Args:
        device: ignored, for Horovod's scripts.
        allow: what the others may do meanwhile: "allreduce" only, the rest raises on its callers; or "all", where this
            rank contributes nothing to the rest.

    Returns:
        The world rank that joined last.

    Raises:
        UsageError: an optimizer on these ranks reduces gradients where they lie on GPUs, which takes all ranks.
    """
    if allow not in ("allreduce", "all"):
        raise UsageError(f"allow must be 'allreduce' or 'all': it is {allow!r}.")
    if groups.in_use(process_set):
        raise UsageError(
            "A rank that has joined gives nothing to reductions on GPUs, for which the others would wait: an optimizer "
            f"of ranks {process_set.ranks} makes them. Set RINGRED_GPU=staged on all ranks to use join()."
        )
    finish = operator.attrgetter("last_joined")
    last: int = start(process_set, "join", "join", [], None, finish, allow=allow == "all").wait()
    return last


def _blocking(begin: Callable[Parameters, Handle[Result]]) -> Callable[Parameters, Result]:
    """The form that submits and waits."""

    def call(*arguments: Parameters.args, **options: Parameters.kwargs) -> Result:
        return begin(*arguments, **options).wait()

    name = begin.__name__.replace("_async", "")
    call.__name__ = call.__qualname__ = name
    call.__doc__ = f"{begin.__name__}, and wait for the result.\n\n{begin.__doc__}"
    call.__module__ = __name__
    call.__wrapped__ = begin  # type: ignore[attr-defined]  # where inspect finds the parameters
    return call


grouped_allreduce = _blocking(grouped_allreduce_async)
grouped_allreduce_ = _blocking(grouped_allreduce_async_)
allgather = _blocking(allgather_async)
grouped_allgather = _blocking(grouped_allgather_async)
alltoall = _blocking(alltoall_async)
reducescatter = _blocking(reducescatter_async)
grouped_reducescatter = _blocking(grouped_reducescatter_async)
barrier = _blocking(barrier_async)


def _alike(sources: list[Array]) -> list[Array]:
    return [like(source) for source in sources]


def _allreduce(
    sources: list[Array],
    targets: list[Array],
    pick: Pick,
    op: Op,
    name: str | None,
    factors: tuple[float, float],
    wire: str | None,
    process_set: ProcessSet,
) -> Handle[Any]:
    if wire is not None and wire not in WIRES:
        raise UsageError(f"wire must be one of {', '.join(WIRES)}, or None for no other type: it is {wire!r}.")
    op = checked_op(op, "allreduce")
    factors = checked_factors(factors)
    if op == Op.Adasum:
        if wire is not None:
            raise UsageError(f"Adasum sends values as they are: wire must be None, it is {wire!r}.")
        check_name(name)
        factor = factors[0] * factors[1]
        crossing = crossing_of(sources, targets)
        if crossing is None:
            return adasum(sources, targets, pick, name, factor, checked_set(process_set))
        assert crossing.outputs is not None
        handle = adasum(crossing.inputs, crossing.outputs, list, name, factor, checked_set(process_set))
        return CrossingHandle(handle, crossing, pick(targets))
    return start_into(process_set, "allreduce", name, sources, targets, pick(targets), op, factors, wire=wire or "")


def _broadcast(targets: list[Array], pick: Pick, root: int, name: str | None, process_set: ProcessSet) -> Handle[Any]:
    return start_into(process_set, "broadcast", name, targets, targets, pick(targets), root=root)


def _reducescatter(
    arrays: list[Array],
    pick: Pick,
    op: Op,
    name: str | None,
    factors: tuple[float, float],
    process_set: ProcessSet,
) -> Handle[Any]:
    op = checked_op(op, "reducescatter", (Op.Sum, Op.Average))
    factors = checked_factors(factors)
    sources = [with_rows(array, "reducescatter") for array in arrays]
    rank, size = checked_set(process_set).rank(), process_set.size()
    targets = [
        new_array((source.shape[0] // size + (rank < source.shape[0] % size), *source.shape[1:]), source)
        for source in sources
    ]
    return start_into(process_set, "reducescatter", name, sources, targets, pick(targets), op, factors)


def _root(root_rank: int, process_set: ProcessSet) -> int:
    """The root's rank within the set, of its rank in the world."""
    return checked_set(process_set).rank_of(root_rank, "root_rank")


def _checked_splits(splits: Any, rows: int, size: int) -> list[int]:
    if splits is None:
        if rows % size:
            raise UsageError(
                f"alltoall without splits sends the same number of rows to each of the {size} ranks: there are {rows} "
                "rows. Say with splits=[...] how many go to each."
            )
        return [rows // size] * size
    counts = np.asarray(on_host(splits) if is_on_device(splits) else splits)
    if counts.ndim != 1 or (counts.size and counts.dtype.kind not in "iu"):
        raise UsageError(
            f"splits must be one-dimensional and hold integers: its shape is {counts.shape}, its dtype {counts.dtype}."
        )
    numbers: list[int] = counts.tolist()
    if len(numbers) != size or min(numbers, default=0) < 0 or sum(numbers) != rows:
        raise UsageError(
            f"splits must hold a number of rows for each of the {size} ranks, none negative, and their sum must be the "
            f"{rows} rows of the array: it is {numbers}."
        )
    return numbers


def _received_splits(rows: list[int], splits: Any, source: Array) -> Array:
    if not is_tensor(source):
        return np.array(rows, splits.dtype if isinstance(splits, np.ndarray) else np.int64)
    import torch

    if is_tensor(splits):
        return torch.tensor(rows, dtype=splits.dtype, device=splits.device)
    return torch.tensor(rows, dtype=torch.int64, device="cpu")
