"""Buckets of gradients on a GPU: they cross to host memory in one copy, are reduced there, and come back in one.

    1. When the last gradient of a bucket is there, all are packed into one tensor of the device, on the current stream.
    2. A stream of its own copies that to pinned memory; it waits for 1 only, so backward goes on beside it.
    3. A thread waits for the copy and hands the memory to the engine.
    4. `wait` has another stream copy the result to the device; both directions go on at the same time.
    5. `deliver` has the current stream wait for that, and copies the averages to where the gradients lie.

Invariant: gradients stay where autograd has put them, and no stream but the current one touches them. The bucket's own
memory is written by the current stream only after the marks of 4 of the round before.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import Any

import torch

from ringred.devices.library import Mark, wait_for
from ringred.devices.of_torch import TorchLibrary
from ringred.devices.recognition import torch_library
from ringred.errors import UsageError
from ringred.handles import OperationHandle
from ringred.torch.buckets import Departure, dense_strides, lay_out
from ringred.torch.channel import Waitable
from ringred.torch.parcels import NONE, Carrier, Slot, separate

WHAT = "the copy of a bucket of gradients to host memory"


class DeviceBucket:
    """Places for the gradients of some parameters of one dtype on one device.

    Args:
        parameters: whose gradients they are.
        carrier: how they travel; in a narrower type, they are rounded to it as they are packed.
    """

    lazy = False
    holds_gradients = False

    def __init__(self, parameters: Sequence[torch.Tensor], carrier: Carrier) -> None:
        first = parameters[0]
        narrow = carrier.narrow_dtype(first.dtype)
        self.dtype = first.dtype
        self.views: list[torch.Tensor] = []  # for hooks that bring gradients there: none do
        self._library: Any = torch_library(first.device.type)
        offsets, count = lay_out([one.numel() for one in parameters], first.element_size())
        self._flat = torch.zeros(max(count, 1), dtype=narrow or first.dtype, device=first.device)
        self._places = [
            self._flat[begin : begin + one.numel()].as_strided(one.shape, dense_strides(one))
            for begin, one in zip(offsets, parameters, strict=True)
        ]
        self._host = self._library.host_memory(self._flat)
        self._returned: Mark | None = None  # when its memory was last written by a stream of copies

    def send(self, departure: Departure) -> DeviceParcel:
        """Start 1 to 3. Without own gradients, zeros travel."""
        slots = departure.slots
        with torch.no_grad():
            self._pack(slots, departure.own)  # 1
        for slot in slots:
            departure.gradients.complete(slot.index)
        packed = self._library.mark(self._flat)
        arrived = self._copied(_streams(self._flat.device)[0], packed, out=True)  # 2
        carrier = departure.carrier
        future = _messenger().submit(_reduced, arrived, carrier, self._host, departure.name)  # 3
        return DeviceParcel(self, slots, future)

    def bring_back(self) -> None:
        """Start 4, on its stream."""
        self._returned = self._copied(_streams(self._flat.device)[1], None, out=False)

    def deliver(self, slots: Sequence[Slot], kinds: bytes) -> None:
        """Do 5, for those parameters for which some rank had a gradient."""
        assert self._returned is not None, "what is delivered has come back"
        self._returned.precede()
        gradients, averages = [], []
        for slot, place in zip(slots, self._places, strict=True):
            if kinds[slot.index] == NONE:
                continue
            gradient = slot.parameter.grad
            if gradient is None or not _is_plain(gradient):
                slot.parameter.grad = place.to(self.dtype, copy=True)
            else:
                gradients.append(gradient)
                averages.append(place)
        if gradients:
            torch._foreach_copy_(gradients, averages)

    def _pack(self, slots: Sequence[Slot], own: bool) -> None:
        if self._returned is not None:
            self._returned.precede()
        gradients, places = [], []
        for slot, place in zip(slots, self._places, strict=True):
            _check_place(slot, place, self.dtype)
            separate(slot)
            gradient = slot.parameter.grad if own else None
            if gradient is None:
                place.zero_()
            elif _is_plain(gradient):
                gradients.append(gradient)
                places.append(place)
            else:
                place.copy_(gradient.to_dense() if gradient.layout == torch.sparse_coo else gradient)
        if gradients:
            torch._foreach_copy_(places, gradients)

    def _copied(self, stream: Any, after: Any, out: bool) -> Mark:
        """Copy the whole bucket on a stream; the mark is behind the copy."""
        library: TorchLibrary = self._library
        if after is not None:
            after.precede_on(stream)
        self._flat.record_stream(stream)  # torch's allocator gives it to nobody else before the copy has ended
        with library.module.stream(stream):
            if out:
                library.copy_out(self._flat, self._host)
            else:
                library.copy_in(self._host, self._flat)
            return library.mark(self._flat)


class DeviceParcel:
    """A bucket on its way."""

    squares = None  # see BucketParcel

    def __init__(self, bucket: DeviceBucket, slots: Sequence[Slot], future: Future[Waitable]) -> None:
        self._bucket = bucket
        self._slots = slots
        self._future = future

    def wait(self) -> None:
        """Return when the averages are on their way back; raise the error."""
        self._future.result().wait()
        self._bucket.bring_back()

    @property
    def spans(self) -> list[tuple[float, float]]:
        """After the end, when its operation began to move and when it ended, in seconds."""
        handle = self._future.result()
        return [handle.span] if isinstance(handle, OperationHandle) else []

    def deliver(self, kinds: bytes) -> None:
        """Make the averages the gradients, in the order of the current stream."""
        self._bucket.deliver(self._slots, kinds)


def _reduced(arrived: Mark, carrier: Carrier, host: torch.Tensor, name: str) -> Waitable:
    wait_for([arrived], WHAT)
    return carrier.reduce([host], name)


def _is_plain(gradient: torch.Tensor) -> bool:
    return gradient.layout == torch.strided and not gradient.is_conj() and not gradient.is_neg()


def _check_place(slot: Slot, place: torch.Tensor, dtype: torch.dtype) -> None:
    parameter = slot.parameter
    if (parameter.shape, parameter.dtype, parameter.device) != (place.shape, dtype, place.device):
        raise UsageError(
            f"Parameters keep their shape and dtype: {slot.name!r} had {tuple(place.shape)}, {dtype} on {place.device} "
            f"when the optimizer was built, and has {tuple(parameter.shape)}, {parameter.dtype} on {parameter.device} "
            "now. Build another one."
        )


@cache
def _streams(device: torch.device) -> tuple[Any, Any]:
    """The two streams of copies of a device: to the host, and back."""
    library: Any = torch_library(device.type)
    return library.module.Stream(device=device), library.module.Stream(device=device)


@cache
def _messenger() -> ThreadPoolExecutor:
    """One thread: copies of a device end in the order in which they were started."""
    return ThreadPoolExecutor(1, thread_name_prefix="ringred-crossing")
