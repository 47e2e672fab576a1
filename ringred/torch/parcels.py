"""Parcels: gradients on their way, and how what comes back gets to where optimizers look for it.

Invariant: a parcel holds the same messages on all ranks: a rank that has no gradient sends zeros.

A dense gradient travels in the memory where it lies, if it is contiguous and no compressor of the user's is in the way;
otherwise as a copy, which is copied back. So it must not be touched while it travels, and shares its memory with none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from ringred import _core
from ringred.devices.groups import DeviceCommunicator
from ringred.errors import UsageError
from ringred.handles import OperationHandle
from ringred.ops import Op
from ringred.torch.channel import Channel, Waitable
from ringred.torch.compression import Compression, wire_of
from ringred.torch.places import put_back, writable

Kinds = Mapping[int, int] | bytes
"""What gradients are, by slot index: NONE, DENSE, or more."""

NONE, DENSE = 0, 1
"""Kinds of gradients; DENSE + k is a sparse one with k indexed dimensions. The larger one wins between ranks."""


@dataclass(frozen=True)
class Slot:
    """One parameter, and what it travels in."""

    index: int
    name: str
    parameter: torch.Tensor


def kind_of(gradient: torch.Tensor | None) -> int:
    """Return the kind of a gradient, NONE for None."""
    if gradient is None:
        return NONE
    return DENSE + gradient.sparse_dim() if gradient.layout == torch.sparse_coo else DENSE


class _Dense(NamedTuple):
    slot: Slot
    message: torch.Tensor  # what travels
    context: Any  # what the compressor wants to have back


class Parcel:
    """What was sent for some slots; ends with wait(), and then deliver()."""

    def __init__(self, carrier: Carrier) -> None:
        self._carrier = carrier
        self._dense: list[_Dense] = []
        self._sparse: list[tuple[Slot, Waitable]] = []
        self._handle: Waitable | None = None

    def start(self, name: str, dense: list[_Dense], sparse: Sequence[tuple[Slot, torch.Tensor]]) -> None:
        """Submit all messages."""
        carrier = self._carrier
        self._dense = dense
        if self._dense:
            self._handle = carrier.reduce([entry.message for entry in self._dense], name)
        for slot, tensor in sparse:
            self._sparse.append((slot, carrier.channel.sparse_allreduce(tensor, carrier.op, f"gradient.{slot.name}")))

    squares = None  # see BucketParcel

    @property
    def spans(self) -> list[tuple[float, float]]:
        """After the end, when its operations began to move and when they ended, in seconds."""
        handles = [self._handle, *(handle for _, handle in self._sparse)]
        return [handle.span for handle in handles if isinstance(handle, OperationHandle)]

    def wait(self) -> None:
        """Return when everything has come back; raise the first error."""
        if self._handle is not None:
            self._handle.wait()
        for _, handle in self._sparse:
            handle.wait()

    def deliver(self, kinds: Kinds) -> None:
        """Make the results the gradients of those parameters for which some rank had one; `kinds` is by slot index."""
        for slot, message, context in self._dense:
            if kinds[slot.index] == NONE:
                continue
            result = self._carrier.unpack(message, context)
            if slot.parameter.grad is None:
                slot.parameter.grad = result
            else:
                put_back(slot.parameter.grad, result)
        for slot, handle in self._sparse:
            slot.parameter.grad = handle.wait()


class Carrier:
    """How the gradients of one optimizer travel: what all its parcels have in common."""

    def __init__(self, channel: Channel, op: Op, predivide_factor: float = 1.0, compression: Any = None) -> None:
        self.channel = channel
        self.op = op
        compression = Compression.none if compression is None else compression
        wire = wire_of(compression)
        self._wire = wire or ""
        self._compressor = compression if wire is None else None  # one of the user's
        self._factors = (1.0 / predivide_factor, predivide_factor)
        self.is_plain = compression is Compression.none and predivide_factor == 1.0  # numbers travel as they are
        self.packs = self._compressor is None  # a compressor gets each gradient by itself

    def send(self, slots: Sequence[Slot], name: str, kinds: Kinds, own: bool) -> Parcel:
        """Start the exchange of the gradients of these slots as one group, sparse ones each by itself.

        Args:
            slots: parameters whose gradients travel together.
            name: of the group's message.
            kinds: by slot index, the kind that its gradient has on those ranks that have one.
            own: whether this rank's gradients go in; zeros otherwise.
        """
        parcel = Parcel(self)
        if own and self._compressor is None:
            for slot in slots:
                separate(slot)
        dense = [self._pack(slot, own) for slot in slots if kinds[slot.index] <= DENSE]
        sparse = [
            (slot, _sparse_part(slot, kinds[slot.index] - DENSE, own)) for slot in slots if kinds[slot.index] > DENSE
        ]
        parcel.start(name, dense, sparse)
        return parcel

    def narrow_dtype(self, dtype: torch.dtype) -> torch.dtype | None:
        """The type in which gradients are packed on a GPU; None: their own. Factors are for the wide ones."""
        if not self._wire or self._factors != (1.0, 1.0) or dtype not in (torch.float32, torch.float64):
            return None
        narrow: torch.dtype = getattr(torch, self._wire)
        return narrow

    def reduce(self, messages: Sequence[torch.Tensor], name: str) -> Waitable:
        """Submit dense messages as one group."""
        return self.channel.allreduce_(messages, self.op, name, *self._factors, self._wire)

    def reduce_on_device(self, communicator: DeviceCommunicator, flat: torch.Tensor, name: str) -> None:
        """Enqueue the reduction of packed gradients where they lie; they are rounded already, if they are."""
        prescale, postscale = self._factors
        communicator.allreduce_(flat, self.op, prescale_factor=prescale, postscale_factor=postscale, tag=name)

    def unpack(self, message: torch.Tensor, context: Any) -> torch.Tensor:
        """Return the gradient that a message carries."""
        if self._compressor is None:
            return message
        restored: torch.Tensor = self._compressor.decompress(message, context)
        return restored

    def _pack(self, slot: Slot, own: bool) -> _Dense:
        gradient = slot.parameter.grad if own else None
        if gradient is None:
            gradient = torch.zeros_like(slot.parameter, memory_format=torch.contiguous_format).detach()
        if self._compressor is None:
            return _Dense(slot, _message_of(gradient, slot), None)
        compressed, context = self._compressor.compress(gradient.detach())
        return _Dense(slot, _message_of(compressed, slot), context)


def separate(slot: Slot) -> None:
    """Give a dense gradient memory of its own: autograd lets those of a.view(-1) + b.view(-1) share theirs.

    Each would be reduced there, and the sum be that of sums.
    """
    gradient = slot.parameter.grad
    if gradient is None or gradient.layout != torch.strided:
        return
    if not _core.has_own_memory(gradient):
        slot.parameter.grad = gradient.clone() if gradient.requires_grad else gradient.detach().clone()


def _message_of(tensor: torch.Tensor, slot: Slot) -> torch.Tensor:
    if tensor.layout != torch.strided:
        raise UsageError(f"Gradients are dense or sparse (COO); that of {slot.name!r} has layout {tensor.layout}.")
    return writable(tensor)


def _sparse_part(slot: Slot, indexed: int, own: bool) -> torch.Tensor:
    gradient, shape = slot.parameter.grad, slot.parameter.shape
    if own and gradient is not None:
        return gradient if gradient.layout == torch.sparse_coo else gradient.to_sparse(indexed)
    indices = torch.empty((indexed, 0), dtype=torch.int64, device=slot.parameter.device)
    values = torch.empty((0, *shape[indexed:]), dtype=slot.parameter.dtype, device=slot.parameter.device)
    return torch.sparse_coo_tensor(indices, values, shape, device=values.device, check_invariants=False)
