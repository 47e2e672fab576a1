"""From arrays to an operation of the engine, and from what the engine received back to arrays.

Invariant: results are of the library, dtype and device of what was given: torch in, torch out, CuPy in, CuPy out;
all else becomes numpy. The engine sees arrays in main memory only; those on GPUs cross (devices/crossing.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from ringred import _core, world
from ringred.arguments import check_name
from ringred.arrays import Array, contiguous, is_tensor
from ringred.devices.crossing import CrossingHandle, crossing_of
from ringred.devices.recognition import native
from ringred.errors import UsageError
from ringred.handles import Handle, OperationHandle
from ringred.messages import Received
from ringred.ops import Op
from ringred.process_sets import ProcessSet, checked_set

Result = TypeVar("Result")


def start(
    process_set: ProcessSet,
    kind: str,
    name: str | None,
    inputs: Sequence[Array],
    outputs: Sequence[Array] | None,
    finish: Callable[[_core.Operation], Result],
    **options: Any,
) -> OperationHandle[Result]:
    """Submit one operation to the engine; `finish` builds the result after its good end. Outputs are in main memory."""
    check_name(name)
    engine = world.engine()
    group = checked_set(process_set).group()
    crossing = crossing_of(inputs)
    if crossing is not None:
        inputs = crossing.inputs
    operation = engine.submit(group, kind, name, inputs, outputs, **options)
    return OperationHandle(operation, lambda: finish(operation), engine)


def start_into(
    process_set: ProcessSet,
    kind: str,
    name: str | None,
    inputs: Sequence[Array],
    outputs: Sequence[Array],
    result: Result,
    op: Op = Op.Sum,
    factors: tuple[float, float] = (1.0, 1.0),
    root: int = -1,
    wire: str = "",
) -> Handle[Result]:
    """Submit one operation that fills `outputs`, of which `result` is made: the short way, a third of the time.

    Of a broadcast only the root reads. Where numbers travel in a narrower type, they cross in it, too; but not with
    factors, which are for the wide ones.
    """
    check_name(name)
    engine = world.engine()
    group = checked_set(process_set).group()
    reads = root < 0 or process_set.rank() == root
    crossing = crossing_of(inputs, outputs, reads, wire if factors == (1.0, 1.0) else "")
    if crossing is not None:
        assert crossing.outputs is not None
        inputs, outputs = crossing.inputs, crossing.outputs
    operation = engine.submit(group, kind, name, inputs, outputs, op, factors[0], factors[1], root, wire)
    if crossing is not None:
        return CrossingHandle(OperationHandle(operation, None, engine), crossing, result)
    return OperationHandle(operation, None, engine, result)


def listed(arrays: Sequence[Array], function: str) -> list[Array]:
    """The arrays of a grouped call.

    Raises:
        UsageError: this is no list of arrays, or an empty one.
    """
    if isinstance(arrays, np.ndarray) or is_tensor(arrays) or not isinstance(arrays, Sequence) or not arrays:
        kind = "an empty one" if isinstance(arrays, Sequence) else f"a {type(arrays).__qualname__}"
        raise UsageError(f"{function} takes a list of one or more arrays: it is {kind}.")
    return list(arrays)


def with_rows(array: Array, function: str) -> Array:
    """The array as a contiguous one, for an operation along its first dimension.

    Raises:
        UsageError: it has no dimensions.
    """
    source = contiguous(array)
    if len(source.shape) == 0:
        raise UsageError(
            f"{function} works on the first dimension of an array: this one has none, its shape is (). Give it one "
            "with reshape(1)."
        )
    return source


def new_array(shape: Sequence[int], like: Array) -> Array:
    """An array of this shape of the library, dtype and device of another one, not initialised."""
    found = native(like)
    if found is not None:
        return found.library.empty(shape, found.array)
    if is_tensor(like):
        return like.new_empty(tuple(shape))
    return np.empty(tuple(shape), like.dtype)


def adopted(received: Received, like: Array) -> Array:
    """What came for one array, of shape (sum of rows, *rest): an array that lies in the engine's buffer, without a
    copy, or one on a GPU if the other one does."""
    buffer, rows = received
    shape = (sum(rows), *like.shape[1:])
    if math.prod(shape) == 0:
        return new_array(shape, like)
    found = native(like)
    if found is not None:
        result = found.library.empty(shape, found.array)
        found.library.fetch(buffer, result)
        return result
    if is_tensor(like):
        import torch

        return torch.frombuffer(buffer, dtype=like.dtype).view(shape)
    return np.frombuffer(memoryview(buffer), np.uint8).view(like.dtype).reshape(shape)
