"""Adasum: gradients that point in one direction are averaged, gradients at right angles to each other are added.

The rule for two vectors is of Maleki et al., "Scaling Distributed Training with Adaptive Summation" (2020,
arXiv:2006.02924):

    adasum(a, b) = (1 - a.b / 2|a|^2) a + (1 - a.b / 2|b|^2) b

More vectors meet in a tree whose shape depends on their number only; the odd one out goes up as it is:

    0   1   2   3   4
    |___|   |___|   |        level 0
      |_______|     |        level 1
          |_________|        level 2

1. Each rank gets its slice of every rank's vector, and what every rank called (one alltoall). If ranks called with
   different shapes or factors, all of them raise here.
2. At each level it takes the dot products of its slices, and all ranks add theirs up (one small allreduce for all
   pairs and all arrays). Then everybody knows the factors, and combines its slices.
3. All ranks get all slices (one allgather).

Every value is computed by one rank from dot products that all ranks have bit for bit, so all get the same bits. Dot
products are summed in float64; half types are combined in float32 and rounded once.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ringred import _core
from ringred.arrays import Array, as_numpy, contiguous, is_tensor
from ringred.errors import MismatchError, UsageError
from ringred.handles import ChainedHandle, Handle, Steps
from ringred.messages import Received, by_rank, divided
from ringred.ops import Op
from ringred.process_sets import ProcessSet
from ringred.submission import adopted, start

DTYPES = ("float16", "bfloat16", "float32", "float64")

_lock = threading.Lock()
_in_flight: set[tuple[int, str]] = set()
"""Process set and name of each one in flight: its operations have names derived from it, which must stay free."""


def adasum(
    sources: list[Array],
    targets: list[Array],
    pick: Callable[[list[Array]], Any],
    name: str | None,
    factor: float,
    process_set: ProcessSet,
) -> Handle[Any]:
    """Combine each of the arrays with those of the other ranks, times `factor`, into targets of the same shape.

    Each array is a vector of its own. The result of the handle is `pick(targets)`.

    Raises:
        UsageError: an array is not of a floating-point type, a target cannot be written, or the name is in flight.
    """
    for source in sources:
        if _dtype_name(source) not in DTYPES:
            raise UsageError(f"Adasum combines arrays of {', '.join(DTYPES)}: this one is of {_dtype_name(source)}.")
    views = [_writable(target) for target in targets]
    return ChainedHandle(_steps([contiguous(source) for source in sources], views, name, factor, process_set)).then(
        lambda _: pick(targets)
    )


def _steps(
    sources: list[Array], targets: list[Array], name: str | None, factor: float, process_set: ProcessSet
) -> Steps[None]:
    with _reserved(process_set.group(), name):
        size = process_set.size()
        flat = [source.reshape(-1) for source in sources]
        splits = [_shares(vector.shape[0], size) for vector in flat]
        call = f"shapes {[tuple(source.shape) for source in sources]} and factor {factor}".encode()
        calls = np.frombuffer(call * size, np.uint8)
        outgoing, splits = [calls, *flat], [[len(call)] * size, *splits]
        first = start(process_set, "alltoall", name, outgoing, None, _received, splits=splits)
        received = yield first  # 1
        _check_agreement(first.name, received[0], process_set.ranks)
        slices = [_rows(one, vector) for one, vector in zip(received[1:], flat, strict=True)]
        level = 0
        while len(slices[0]) > 1:  # 2
            dots = np.array([_dots(rows) for rows in slices])
            yield _sum(dots, f"{first.name}.adasum {level}", process_set)
            slices = [_combined(rows, factors) for rows, factors in zip(slices, _factors(dots), strict=True)]
            level += 1
        mine = [_narrowed(rows[0], factor, vector) for rows, vector in zip(slices, flat, strict=True)]
        gathered = yield start(process_set, "allgather", f"{first.name}.adasum", mine, None, _received)  # 3
        for target, one, vector in zip(targets, gathered, flat, strict=True):
            target[...] = adopted(one, vector).reshape(target.shape)


@contextlib.contextmanager
def _reserved(group: int, name: str | None) -> Iterator[None]:
    """Keep the name for as long as this lasts; without a name the engine finds one that nobody else has."""
    if name is None:
        yield
        return
    with _lock:
        if (group, name) in _in_flight:
            raise UsageError(f"A name belongs to one operation at a time: an Adasum named {name!r} is in flight.")
        _in_flight.add((group, name))
    try:
        yield
    finally:
        with _lock:
            _in_flight.remove((group, name))


def _check_agreement(name: str, calls: Received, ranks: list[int]) -> None:
    texts = [str(call, "utf-8") for call in divided(calls)]
    if len(set(texts)) > 1:
        said = by_rank(texts, ranks)
        raise MismatchError(f"All ranks must give the Adasum {name!r} the same shapes and factors: it is {said}.")


def _received(operation: _core.Operation) -> list[Received]:
    return operation.results()


def _rows(received: Received, like: Array) -> NDArray[Any]:
    """This rank's slice of every rank's vector, in the type in which they are combined: shape (ranks, elements)."""
    _, counts = received
    return _widened(adopted(received, like)).reshape(len(counts), counts[0])


def _sum(values: NDArray[Any], name: str, process_set: ProcessSet) -> Handle[None]:
    return start(process_set, "allreduce", name, [values], [values], lambda _: None, op=Op.Sum)


def _shares(count: int, size: int) -> list[int]:
    """How many of `count` elements each of `size` ranks gets."""
    return [count // size + (rank < count % size) for rank in range(size)]


def _dots(rows: NDArray[Any]) -> NDArray[Any]:
    """a.b, a.a and b.b of each pair of rows, in float64: shape (pairs, 3)."""
    left, right = (half.astype(np.float64) for half in _pairs(rows))
    with np.errstate(all="ignore"):
        products = [np.einsum("ij,ij->i", one, other) for one, other in ((left, right), (left, left), (right, right))]
    return np.stack(products, axis=1)


def _pairs(rows: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    paired = len(rows) // 2 * 2
    return rows[0:paired:2], rows[1:paired:2]


def _factors(dots: NDArray[Any]) -> NDArray[Any]:
    """The factors of both vectors of each pair: shape (arrays, pairs, 2). A vector of zeros has the factor 1."""
    product, squares = dots[..., :1], dots[..., 1:]
    with np.errstate(all="ignore"):
        factors: NDArray[Any] = np.where(squares == 0, 1.0, 1.0 - product / (2.0 * squares))
    return factors


def _combined(rows: NDArray[Any], factors: NDArray[Any]) -> NDArray[Any]:
    """One row for each pair, and the odd one."""
    left, right = _pairs(rows)
    of_left, of_right = factors.astype(rows.dtype).T
    with np.errstate(all="ignore"):
        sums = of_left[:, None] * left + of_right[:, None] * right
    return np.concatenate([sums, rows[2 * len(sums) :]])


def _widened(values: Array) -> NDArray[Any]:
    """The values as numpy's in the type in which they are combined."""
    wide = "float64" if _dtype_name(values) == "float64" else "float32"
    if not is_tensor(values):
        return np.asarray(values, wide)
    import torch

    return np.asarray(values.to(getattr(torch, wide)))


def _narrowed(values: NDArray[Any], factor: float, like: Array) -> Array:
    """The values times the factor, in the type and library that was given."""
    with np.errstate(all="ignore"):
        scaled = np.ascontiguousarray(values if factor == 1.0 else values * values.dtype.type(factor))
        if not is_tensor(like):
            return scaled.astype(like.dtype)
    import torch

    return torch.from_numpy(scaled).to(like.dtype)


def _dtype_name(array: Array) -> str:
    return str(array.dtype if is_tensor(array) else as_numpy(array).dtype).removeprefix("torch.")


def _writable(target: Array) -> Array:
    if is_tensor(target):
        return target.detach()
    view = as_numpy(target)
    if not view.flags.writeable:
        raise UsageError("An array that is reduced in place must be writable: this one is not. Pass a copy.")
    return view
