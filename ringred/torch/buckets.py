"""Buckets: gradients that lie side by side in the shared arena, where they are reduced without any further copy.

Invariant: all ranks have the same buckets: they agree on an order once, after the first round, and on nothing else.

A hook brings each gradient to its place in the bucket while the backward pass goes on, and makes that place the
parameter's gradient; the memory that autograd had is free for the next gradient. What accumulates later accumulates in
the bucket. Small gradients are brought there after the backward pass, and the averages back to where they lay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ringred import _core
from ringred.torch.channel import ArenaChannel
from ringred.torch.parcels import Carrier, Slot

ALIGNMENT = 64
"""Bytes; each gradient begins on a cache line."""

FIRST_BYTES = 1 << 20
"""The first bucket is small, so that the exchange begins early."""

ALONE_BYTES = 1 << 20
"""A gradient from this size on has a bucket of its own."""

LATE_BYTES = 8 << 10
"""Gradients up to this size travel after the backward pass: a hook for each takes longer than the reduction."""


@dataclass(frozen=True)
class Departure:
    """What a bucket is told when it is to travel."""

    gradients: _core.Gradients
    number: int  # of its unit
    slots: Sequence[Slot]
    name: str
    carrier: Carrier
    own: bool  # whether this rank's gradients go in; zeros otherwise
    measures: bool  # whether the squares of the averages are wanted


class Bucket:
    """Places for the gradients of some parameters of one dtype; a flat tensor of them all, and one view of each.

    Args:
        parameters: whose gradients they are.
        channel: where the memory comes from.
        alone: there is one parameter, and no padding behind it: its gradient may travel from elsewhere, on some ranks.
        lazy: take no memory before `make`.
    """

    holds_gradients = True  # they lie in it, not only while they travel

    def __init__(
        self, parameters: Sequence[torch.Tensor], channel: ArenaChannel, alone: bool = False, lazy: bool = False
    ) -> None:
        self.dtype = parameters[0].dtype
        self.lazy = lazy
        self._parameters = parameters
        self._channel = channel
        self.offsets, count = lay_out([one.numel() for one in parameters], parameters[0].element_size())
        self.count = parameters[0].numel() if alone else max(count, 1)  # what has no element has no place
        self.views: list[torch.Tensor] = []
        if not lazy:
            self.make()

    def make(self) -> None:
        """Take the memory."""
        size = self._parameters[0].element_size()
        self.block = block = self._channel.allocate(self.count * size)
        self.flat = torch.from_numpy(block).view(self.dtype)[: self.count]
        pairs = zip(self.offsets, self._parameters, strict=True)
        self.views = [view_of(block, begin, parameter) for begin, parameter in pairs]

    def send(self, departure: Departure) -> BucketParcel:
        """Start the reduction, with every gradient in its place."""
        gradients, number = departure.gradients, departure.number
        gradients.fill(number, departure.own)
        sent = gradients.sent(departure.slots[0].index) if departure.own and self.lazy else None
        measures = departure.measures and self.dtype in (torch.float32, torch.float64)
        channel: Any = departure.carrier.channel
        handle = channel.reduce_in_place(self.array(sent), departure.carrier.op, departure.name, measures)
        return BucketParcel(handle, measures, lambda kinds: gradients.deliver(number, kinds))

    def array(self, gradient: torch.Tensor | None) -> torch.Tensor:
        """What travels: a lazy bucket's only gradient if it does not lie in the bucket, or the bucket."""
        if gradient is None or any(gradient is view for view in self.views):
            return self.flat
        return gradient.view(-1)


class BucketParcel:
    """A bucket on its way."""

    def __init__(self, handle: Any, measures: bool, deliver: Callable[[bytes], None]) -> None:
        self._handle = handle
        self._measures = measures
        self._deliver = deliver

    def wait(self) -> None:
        """Return when the averages are there; raise the error."""
        self._handle.wait()

    @property
    def spans(self) -> list[tuple[float, float]]:
        """After the end, when it began to move and when it ended, in seconds."""
        return [self._handle.span] if hasattr(self._handle, "span") else []

    @property
    def squares(self) -> float | None:
        """After the end, this rank's part of the sum of squares, where it was asked for."""
        return float(self._handle.squares) if self._measures else None

    def deliver(self, kinds: bytes) -> None:
        """Copy averages back to small gradients; give a gradient to parameters that had none if some rank had one."""
        self._deliver(kinds)


def lay_out(counts: Iterable[int], element_bytes: int) -> tuple[list[int], int]:
    """Where each of some arrays begins, in elements, each on a cache line; and where the last one ends."""
    unit = max(ALIGNMENT // element_bytes, 1)
    offsets, end = [], 0
    for count in counts:
        offsets.append(end)
        end += -(-count // unit) * unit
    return offsets, end


def view_of(block: np.ndarray[Any, np.dtype[np.uint8]], begin: int, like: torch.Tensor) -> torch.Tensor:
    """The elements of a block of bytes from `begin` on, in the shape, dtype and memory format of another tensor.

    It has a version counter of its own: what is written to others of the block does not count as a change of this one.
    """
    size = like.element_size()
    part = block[begin * size : (begin + max(like.numel(), 1)) * size]
    flat = torch.from_numpy(part).view(like.dtype)[: like.numel()]
    return flat.as_strided(like.shape, dense_strides(like))


def dense_strides(like: torch.Tensor) -> tuple[int, ...]:
    """The strides of a tensor of the same memory format, without gaps."""
    return torch.empty_like(like, device="meta").stride()


def travels_alone(slot: Slot) -> bool:
    """Whether a gradient is large enough for a bucket of its own, which it does not have to be packed into."""
    return slot.parameter.is_cpu and slot.parameter.nbytes >= ALONE_BYTES


def travels_late(slot: Slot) -> bool:
    """Whether a gradient is so small that it goes after the backward pass."""
    return slot.parameter.is_cpu and slot.parameter.nbytes <= LATE_BYTES and not travels_alone(slot)


def kind_of_memory(slot: Slot) -> tuple[torch.dtype, torch.device]:
    """What the gradients of one bucket have in common."""
    return slot.parameter.dtype, slot.parameter.device


def pack_into_buckets(slots: Sequence[Slot], limit: int, first: int = FIRST_BYTES) -> list[list[Slot]]:
    """Cut slots, in the order in which they should travel, into runs of one dtype and device, of at most `limit` bytes.

    The first has at most `first` bytes. One slot that is larger than that, or that travels_alone, has its own.
    """
    buckets: list[list[Slot]] = []
    last: list[Slot] = []
    filled = 0
    for slot in slots:
        size = slot.parameter.nbytes
        if travels_alone(slot):
            buckets.append([slot])
            continue
        room = min(limit, first) if len(buckets) == 1 else limit
        if not last or kind_of_memory(last[-1]) != kind_of_memory(slot) or filled + size > room:
            last, filled = [], 0
            buckets.append(last)
        last.append(slot)
        filled += size
    return buckets
