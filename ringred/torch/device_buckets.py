"""Buckets of gradients on a GPU: they are packed side by side, reduced in one piece, and copied back.

    1. When the last gradient of a bucket is there, all are packed into one tensor of the device, on the current stream.
    2. The bucket's way reduces that, behind the mark of 1, so that backward goes on beside it: through host memory
       (staged_way.py), or where it lies (direct_way.py).
    3. `deliver` has the current stream wait for the way's mark, and copies the averages to where the gradients lie.

Invariant: gradients stay where autograd has put them, and no stream but the current one touches them. The bucket's own
memory is written by the current stream only after the mark of 2 of the round before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from ringred.devices.library import Mark
from ringred.devices.recognition import torch_library
from ringred.errors import UsageError
from ringred.torch.buckets import Departure, dense_strides, lay_out
from ringred.torch.parcels import NONE, Carrier, Slot, separate


class Journey(Protocol):
    """One reduction of a bucket."""

    def wait(self) -> None:
        """Return when the averages are in the bucket for whoever waits for the way's mark; raise the error."""

    @property
    def spans(self) -> list[tuple[float, float]]:
        """After the end, when its operation began to move and when it ended, in seconds, where the host knows."""


class Way(Protocol):
    """How the memory of one bucket is reduced."""

    @property
    def returned(self) -> Mark | None:
        """Behind what another stream than the current one did last with the memory."""

    def check_open(self) -> None:
        """Raise if the memory may not be written any more."""

    def start(self, packed: Mark, name: str) -> Journey:
        """Reduce what is there behind a mark."""


class DeviceBucket:
    """Places for the gradients of some parameters of one dtype on one device. It has memory after open().

    Args:
        parameters: whose gradients they are.
        carrier: how they travel; in a narrower type, they are rounded to it as they are packed.
    """

    lazy = False
    holds_gradients = False

    def __init__(self, parameters: Sequence[torch.Tensor], carrier: Carrier) -> None:
        first = parameters[0]
        self.dtype, self.device = first.dtype, first.device
        self.packed_dtype = carrier.narrow_dtype(first.dtype) or first.dtype
        self.views: list[torch.Tensor] = []  # for hooks that bring gradients there: none do
        self._parameters = parameters
        self._library: Any = torch_library(first.device.type)
        self._offsets, count = lay_out([one.numel() for one in parameters], first.element_size())
        self.count = max(count, 1)

    def open(self, flat: torch.Tensor, way: Way) -> None:
        """Take memory, `count` elements of packed_dtype that are numbers, and the way that reduces it."""
        self._flat, self._way = flat, way
        self._places = [
            flat[begin : begin + one.numel()].as_strided(one.shape, dense_strides(one))
            for begin, one in zip(self._offsets, self._parameters, strict=True)
        ]

    def send(self, departure: Departure) -> DeviceParcel:
        """Do 1 and start 2. Without own gradients, zeros travel."""
        slots = departure.slots
        with torch.no_grad():
            self._pack(slots, departure.own)
        for slot in slots:
            departure.gradients.complete(slot.index)
        return DeviceParcel(self, slots, self._way.start(self._library.mark(self._flat), departure.name))

    def deliver(self, slots: Sequence[Slot], kinds: bytes) -> None:
        """Do 3, for those parameters for which some rank had a gradient."""
        assert self._way.returned is not None, "what is delivered has come back"
        self._way.returned.precede()
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
        self._way.check_open()
        if self._way.returned is not None:
            self._way.returned.precede()
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


class DeviceParcel:
    """A bucket on its way."""

    squares = None  # see BucketParcel

    def __init__(self, bucket: DeviceBucket, slots: Sequence[Slot], journey: Journey) -> None:
        self._bucket = bucket
        self._slots = slots
        self._journey = journey

    def wait(self) -> None:
        """Return when the averages are on their way back; raise the error."""
        self._journey.wait()

    @property
    def spans(self) -> list[tuple[float, float]]:
        """See Journey."""
        return self._journey.spans

    def deliver(self, kinds: bytes) -> None:
        """Make the averages the gradients, in the order of the current stream."""
        self._bucket.deliver(self._slots, kinds)


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
