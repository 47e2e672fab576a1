"""Allreduce of arrays where they lie on GPUs, by kernels on the ranks' devices.

    group = ringred.cuda.Communicator()      # on all ranks
    group.allreduce_(gradient)               # in order with the current stream; returns at once

The devices of the ranks load and store each other's memory; where they cannot, vectors go through pinned host memory.
`how` says which, and why.

Invariant: nothing of CUDA is loaded before a Communicator is made.
"""

from __future__ import annotations

import importlib
import mmap
import sys
from collections.abc import Sequence
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from ringred import bootstrap, world
from ringred.arguments import check_text, checked_factors, checked_op, shown
from ringred.arrays import Array, empty
from ringred.devices.addresses import check_result, view
from ringred.devices.recognition import native
from ringred.devices.symmetric import Block, Form
from ringred.errors import RingredError, SystemError, UsageError
from ringred.messages import exchange
from ringred.objects import allgather_object
from ringred.ops import Op
from ringred.process_sets import ProcessSet, checked_set, global_process_set

if TYPE_CHECKING:
    from ringred import _cuda

__all__ = ["Communicator"]

_OPS = (Op.Sum, Op.Average, Op.Min, Op.Max, Op.Product)

_left_open: list[Any] = []
"""Host memory of communicators that broke: peers' devices may still look at it."""


class Communicator:
    """Allreduces of GPU arrays between the ranks of a process set, all on one node. Making one is a collective.

    All ranks make the same calls in the same order; what they disagree about raises MismatchError on all of them, at
    the call, at a later one or in wait(). Calls return when the work is enqueued, and are ordered by the caller's
    stream: of torch and CuPy the current one, of other arrays the one that __cuda_array_interface__ names. Where
    `is_direct`, calls can be captured in CUDA graphs. Used by one thread at a time.

    Args:
        process_set: the ranks that take part.
        device: the ordinal of this rank's GPU; None takes the local rank, modulo the number of GPUs that torch or CuPy
            sees.

    Raises:
        UsageError: init() was not called, the ranks are on several nodes, or the device is none of this process's.
        SystemError: there is no driver, it is too old, or the device is; or this ringred was built without CUDA. The
            text says what is needed.
        PeerLostError, TimeoutError: a rank died, did not come or could not take part.
    """

    def __init__(self, process_set: ProcessSet = global_process_set, device: int | None = None) -> None:
        module = _module()
        members = checked_set(process_set).ranks
        nodes = world.topology().nodes
        if len({nodes[member] for member in members}) > 1:
            raise UsageError(
                f"A communicator of devices is for ranks of one node: ranks {members} are on nodes "
                f"{sorted({nodes[member] for member in members})}. Make a process set for each node."
            )
        self._rank = process_set.rank()
        self._device = _ordinal(device)
        blocks = _host_blocks(process_set, module.host_bytes(len(members)))
        self._blocks: list[Any] | None = list(blocks)
        self._native: _cuda.Communicator = module.Communicator(
            device=self._device,
            rank=self._rank,
            gather=_gather(process_set),
            host_blocks=[block.ctypes.data for block in blocks],
            lifelines=[-1 if member == world.rank() else world.peer(member).lifeline for member in members],
            cores_suffice=False,
            environment=bootstrap.environment(),
        )

    @property
    def is_direct(self) -> bool:
        """Whether all devices load and store each other's memory."""
        return self._native.is_direct

    @property
    def waits_on_host(self) -> bool:
        """Whether calls of this rank wait for other ranks before they return; where not is_direct, on some systems."""
        return self._native.waits_on_host

    @property
    def how(self) -> str:
        """Which way vectors take, and why, in one sentence."""
        return self._native.sentence

    @property
    def device(self) -> int:
        """The ordinal of this rank's GPU."""
        return self._device

    def allreduce(
        self,
        array: Array,
        op: Op = Op.Average,
        *,
        out: Array = None,
        prescale_factor: float = 1.0,
        postscale_factor: float = 1.0,
        algorithm: str | None = None,
        tag: str = "",
    ) -> Array:
        """Combine all ranks' arrays; the result is a new array of the same shape and dtype, or `out`.

        Args:
            array: a torch tensor, CuPy array or anything with __cuda_array_interface__ on this rank's GPU; contiguous;
                float16, bfloat16, float32, float64, int32 or int64.
            op: Sum, Average, Min, Max or Product. Half types are added in float32.
            out: a contiguous array of the same dtype and number of elements.
            prescale_factor, postscale_factor: multiply floats before and after; 1 for integers.
            algorithm: a schedule by name ("ring", "double_tree", ...), where `is_direct`; None chooses by size.
            tag: a name for this call that all ranks must agree on, such as a layer's.

        Raises:
            UsageError: an array, op or factor is not one of these; nothing was started.
            MismatchError: ranks disagree. PeerLostError: one has died or broken off, or a kernel waited for too long.
        """
        result = _like(array) if out is None else out
        self._reduce(array, result, op, (prescale_factor, postscale_factor), algorithm, tag)
        return result

    def allreduce_(
        self,
        array: Array,
        op: Op = Op.Average,
        *,
        prescale_factor: float = 1.0,
        postscale_factor: float = 1.0,
        algorithm: str | None = None,
        tag: str = "",
    ) -> Array:
        """Combine all ranks' arrays in place and return `array`. See allreduce."""
        self._reduce(array, array, op, (prescale_factor, postscale_factor), algorithm, tag)
        return array

    def empty(self, shape: Sequence[int] | int, dtype: Any) -> Array:
        """Memory that all ranks have at the same offset, as a new array, not initialised. A collective.

        Where `is_direct`, an allreduce_ of what lies in it takes no copies on the device, if it lies at the same place
        on all ranks. It is freed by end(): the array must not be used after that.

        Args:
            shape: the same on all ranks.
            dtype: of torch, for a tensor; or one that numpy knows, for a CuPy array.

        Raises:
            UsageError: shape or dtype is none. MismatchError: ranks ask for different sizes. SystemError: a device has
                no memory for it; raised on all ranks.
        """
        form = Form(shape, dtype)
        return form.made_of(Block(self, self._native.allocate(form.nbytes), form.nbytes), self._device)

    def wait(self) -> None:
        """Return when the last call is over, for whoever reads results on the host.

        Raises:
            TimeoutError: it took longer than RINGRED_TIMEOUT_SECONDS. MismatchError, PeerLostError, SystemError: it has
                no result, and says why. The communicator is of no use afterwards.
        """
        self._native.wait()

    def check(self) -> None:
        """Raise what wait() would, if it is known already. Never waits."""
        self._native.check()

    def end(self) -> None:
        """Give the memory back, when all ranks have come to this. Afterwards nothing may be called."""
        self._native.end()
        self._blocks = None

    def abandon(self, reason: str) -> None:
        """End without the other ranks. What is under way breaks off if it does not end within seconds; who still calls
        gets PeerLostError with the reason. Memory that they may have opened goes with the process."""
        self._native.abandon(reason)

    def __enter__(self) -> Communicator:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End, unless an error is on its way: then others may not come."""
        if kind is None:
            self.end()

    def __del__(self) -> None:
        """Keep the host memory of one that was not ended."""
        blocks = getattr(self, "_blocks", None)
        if blocks is not None:
            _left_open.append(blocks)

    def _reduce(
        self, source: Array, result: Array, op: Op, factors: tuple[float, float], algorithm: str | None, tag: str
    ) -> None:
        check_text(tag, "tag")
        op = checked_op(op, "ringred.cuda", _OPS)
        prescale, postscale = checked_factors(factors)
        read = view(source)
        written = read if result is source else view(result)
        check_result(read, written)
        self._native.allreduce(
            stream=read.stream,
            input=read.address,
            output=written.address,
            count=read.count,
            dtype=read.dtype,
            op=int(op),
            prescale=prescale,
            postscale=postscale,
            algorithm=algorithm,
            tag=tag,
        )


def reason_against(process_set: ProcessSet, device: int) -> str:
    """Why this rank cannot make a Communicator of these ranks for its device; "": nothing that it can tell alone."""
    nodes = world.topology().nodes
    if len({nodes[member] for member in process_set.ranks}) > 1:
        return "the ranks are on several nodes"
    try:
        _module().check_device(device)
    except RingredError as error:
        return str(error)
    return ""


def _module() -> ModuleType:
    try:
        return importlib.import_module("ringred._cuda")
    except ImportError as missing:
        raise SystemError(
            f"This ringred has no part for GPUs ({missing}). Reinstall it where nvcc of CUDA 12.8 or newer is found: "
            "CMAKE_ARGS=-DRINGRED_CUDA=ON pip install --no-cache-dir ringred. Collectives of GPU arrays go through "
            "host memory without it."
        ) from missing


def _ordinal(device: int | None) -> int:
    if device is None:
        return world.local_rank() % max(_device_count(), 1)
    if isinstance(device, bool) or not isinstance(device, int) or device < 0:
        raise UsageError(f"device must be the ordinal of a GPU, 0 or more: it is {shown(device)}.")
    return device


def _device_count() -> int:
    """The number of GPUs that torch or CuPy sees, of those that are imported; 0 where neither is."""
    torch, cupy = sys.modules.get("torch"), sys.modules.get("cupy")
    if torch is not None:
        return int(torch.cuda.device_count())
    return int(cupy.cuda.runtime.getDeviceCount()) if cupy is not None else 0


def _like(array: Array) -> Array:
    """A new array of the same shape, dtype and device, of the same library if that is torch or CuPy."""
    view(array)  # whose errors say what is taken
    found = native(array)
    assert found is not None, "it is on a GPU"
    return found.library.empty(found.array.shape, found.array)


def _gather(process_set: ProcessSet) -> Any:
    """Everybody's bytes, through the engine."""

    def gather(mine: bytes) -> list[bytes]:
        if process_set.size() == 1:
            return [mine]
        parts = exchange(world.engine(), process_set.group(), None, mine)
        return [bytes(part) for part in parts]

    return gather


def _host_blocks(process_set: ProcessSet, size: int) -> list[np.ndarray[Any, np.dtype[np.uint8]]]:
    """Memory of each rank's arena, by member, that all members see; of whole pages, zeroed. Collective."""
    page = mmap.ALLOCATIONGRANULARITY
    own = empty(size + page, np.uint8)
    offset = world.engine().offset_of(own)
    begin = -offset % page
    blocks = []
    for member, place in zip(process_set.ranks, allgather_object(offset + begin, process_set=process_set), strict=True):
        if member == world.rank():
            blocks.append(own[begin : begin + size])
        else:
            mapped = mmap.mmap(world.peer(member).segment, size, offset=place)
            blocks.append(np.frombuffer(mapped, np.uint8))
    return blocks
