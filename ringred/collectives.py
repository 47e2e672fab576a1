"""The synchronous collectives. All ranks call them in the same order; they run on the caller's thread."""

from __future__ import annotations

from numbers import Integral

from ringred import _core
from ringred.arguments import check_text, checked_op, shown
from ringred.arrays import Array, contiguous, like
from ringred.devices.crossing import CrossingPlan, crossed
from ringred.devices.recognition import is_on_device
from ringred.errors import UsageError
from ringred.ops import Op
from ringred.world import communicator

_OPS = (Op.Sum, Op.Average, Op.Min, Op.Max, Op.Product)
"""What a synchronous allreduce knows."""


def barrier() -> None:
    """Return when all ranks have called it.

    Raises:
        MismatchError: another rank called something else. PeerLostError, TimeoutError: a rank did not come.
    """
    communicator().barrier()


def allreduce(array: Array, op: Op = Op.Average, *, out: Array = None, tag: str = "") -> Array:
    """Return the combination of all ranks' arrays, as a new array of the same kind, shape and dtype, or in `out`.

    All ranks get the same bits, and the same from run to run: values are combined in rank order. Across nodes those of
    each node are combined first, in rank order, then the nodes' results, in their order or, from 32 nodes on, in
    that of a binary tree; half types are rounded after each of the two.

    Args:
        array: a numpy array, torch tensor, CuPy array, or anything with the buffer protocol, DLPack or
            __cuda_array_interface__, of any shape; bool, (u)int8 to (u)int64, float16, bfloat16, float32, float64,
            complex64 or complex128. On a GPU it goes through host memory: the values are those that it has on the
            current stream, and the result is there for what is enqueued on it afterwards (docs/gpu.md).
        op: Sum, Average, Min, Max or Product (see Op for integers, half types, NaN, booleans).
        out: a contiguous, writable array of the same dtype and number of elements for the result; None makes one.
        tag: a name for this call that all ranks must agree on, such as a layer's.

    Raises:
        UsageError: the array or op is not one of these; nothing was started.
        MismatchError: ranks differ in dtype, shape, op or tag; raised on all ranks, and the next call works.
        PeerLostError, TimeoutError: a rank died, left or did not come.
    """
    op = _checked(op, tag)
    source = contiguous(array)
    result = like(source) if out is None else out
    world = communicator()
    if is_on_device(source) or is_on_device(result):
        crossed([source], [result], lambda inputs, outputs: world.allreduce(inputs[0], outputs[0], op, tag))
    else:
        world.allreduce(source, result, op, tag)
    return result


def allreduce_(array: Array, op: Op = Op.Average, *, tag: str = "") -> Array:
    """Combine all ranks' arrays in place and return `array`, which must be contiguous and writable. See allreduce."""
    world, op = communicator(), _checked(op, tag)
    if not is_on_device(array):
        return world.allreduce_(array, op, tag)
    arrays = [array]
    crossed(arrays, arrays, lambda inputs, _: world.allreduce_(inputs[0], op, tag))
    return array


def broadcast(array: Array, root_rank: int = 0, *, tag: str = "") -> Array:
    """Return the root's array on every rank, as a new array. Shape and dtype must agree on all ranks.

    Raises:
        UsageError: root_rank is no rank, or the array is not one that allreduce takes.
        MismatchError: ranks differ in dtype, shape, root_rank or tag.
        PeerLostError, TimeoutError: a rank died, left or did not come.
    """
    source = contiguous(array)
    result = like(source)
    result[...] = source
    return broadcast_(result, root_rank, tag=tag)


def broadcast_(array: Array, root_rank: int = 0, *, tag: str = "") -> Array:
    """Overwrite `array` with the root's, and return it. It must be contiguous and writable. See broadcast."""
    world = communicator()
    _checked(Op.Sum, tag)
    if not (isinstance(root_rank, Integral) and 0 <= root_rank < world.size):
        raise UsageError(f"root_rank must be a rank, 0 to {world.size - 1}: it is {shown(root_rank)}.")
    root = int(root_rank)
    if not is_on_device(array):
        return world.broadcast_(array, root, tag)
    arrays = [array]
    crossed(arrays, arrays, lambda inputs, _: world.broadcast_(inputs[0], root, tag), reads=world.rank == root)
    return array


def plan_allreduce(
    array: Array, op: Op = Op.Sum, *, tag: str = ""
) -> _core.AllreducePlan | _core.SpanningPlan | CrossingPlan:
    """Bind an in-place allreduce to `array` and return it as a callable without arguments.

    Calling it reduces what the array holds by then, and returns the array; it parses nothing. All ranks must call it
    where the others call theirs, or allreduce_ with the same dtype, shape, op and tag. The plan keeps the array alive
    and ends with shutdown(). Errors are those of allreduce.
    """
    world, op = communicator(), _checked(op, tag)

    def bind(place: Array) -> _core.AllreducePlan | _core.SpanningPlan:
        if isinstance(world, _core.Communicator):
            return _core.AllreducePlan(world, place, op, tag)
        return world.plan(place, op, tag)

    return CrossingPlan(array, bind) if is_on_device(array) else bind(array)


def _checked(op: Op, tag: str) -> Op:
    """The op that is meant, after a look at the tag; nearly free where both are of the right type."""
    if type(tag) is not str or not tag.isascii():
        check_text(tag, "tag")
    return op if type(op) is Op else checked_op(op, "rr.allreduce", _OPS)
