"""Buckets: gradients that are reduced together, in one flat buffer of one dtype.

Invariant: the layout is a pure function of names, shapes and dtypes, so ranks with equal models have equal buckets; the
tag of each bucket carries a hash of them, so ranks with different models get an error and never a wrong sum.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch

import ringred as rr
from ringred.torch.names import NamedTensor
from ringred.torch.reducer import Reducer

# Large enough for the bandwidth of the memory, small enough that copy, sum and copy back stay in a second-level cache
# and that the first bucket is on its way early in the backward pass.
BUCKET_BYTES = 1 << 20

# Of each gradient: together they tell a scaled set of gradients from the one that was sent, for some microseconds each.
SAMPLED_ELEMENTS = 8


class Slot:
    """One parameter and the place of its gradient in a bucket; the rest is the state of the current round."""

    __slots__ = ("bucket", "name", "parameter", "passes", "place", "sample", "sent", "sent_version")

    def __init__(self, name: str, parameter: torch.Tensor, place: torch.Tensor, bucket: int) -> None:
        self.name = name
        self.parameter = parameter
        self.place = place  # view of the bucket's flat buffer, of the parameter's shape
        self.bucket = bucket  # its number; a reference would close a cycle
        self.clear()

    def clear(self) -> None:
        """Begin a new round."""
        self.passes = 0  # backward passes that reached this parameter
        self.sent: torch.Tensor | None = None  # the gradient that was copied into the place
        self.sent_version = -1
        self.sample = ""  # of the gradient when it was sent

    def send(self, gradient: torch.Tensor) -> None:
        """Copy a gradient into its place."""
        if gradient.layout != torch.strided:
            raise rr.UsageError(
                f"Gradients must be dense; that of parameter {self.name!r} has layout {gradient.layout}. "
                "Build the embedding with sparse=False."
            )
        with torch.no_grad():
            self.place.copy_(gradient)
        self.sent, self.sent_version, self.sample = gradient, gradient._version, sample_of(gradient)

    def sent_gradient_is_current(self) -> bool:
        """Whether the parameter's gradient is still what `send` copied."""
        gradient = self.parameter.grad
        if gradient is None or gradient is not self.sent or gradient._version != self.sent_version:
            return gradient is self.sent is None
        return sample_of(gradient) == self.sample


class Bucket:
    """A flat buffer, its slots in the order in which a backward pass tends to fill them, and its plan."""

    def __init__(self, number: int, parameters: Sequence[NamedTensor], reducer: Reducer, op: rr.Op) -> None:
        length = sum(parameter.numel() for _, parameter in parameters)
        self.flat = reducer.empty(length, parameters[0][1].dtype)
        self.slots: list[Slot] = []
        offset = 0
        for name, parameter in parameters:
            place = self.flat[offset : offset + parameter.numel()].view(parameter.shape)
            self.slots.append(Slot(name, parameter, place, number))
            offset += parameter.numel()
        self.missing = len(self.slots)  # slots whose gradient no hook has sent in this round
        tag = f"gradient bucket {number} ({parameters[0][0]} ... {parameters[-1][0]}; layout {fingerprint(parameters)})"
        self.reduce: Callable[[], object] = reducer.plan(self.flat, op, tag)

    def clear(self) -> None:
        """Begin a new round."""
        self.missing = len(self.slots)
        for slot in self.slots:
            slot.clear()


def sample_of(gradient: torch.Tensor) -> str:
    """Some elements as text. GradScaler unscales without a trace in the version counter, but not without one here."""
    flat = gradient.detach().reshape(-1)
    return str(flat[:: max(1, flat.numel() // SAMPLED_ELEMENTS)].tolist())


def build_buckets(
    parameters: Sequence[NamedTensor], reducer: Reducer, op: rr.Op, limit_bytes: int = BUCKET_BYTES
) -> list[Bucket]:
    """Lay `parameters` out in reverse order, as a backward pass tends to finish them, and bind one plan a bucket."""
    backward = list(reversed(parameters))
    layout = lay_out([parameter for _, parameter in backward], limit_bytes)
    return [
        Bucket(number, [backward[index] for index in indices], reducer, op) for number, indices in enumerate(layout)
    ]


def lay_out(tensors: Sequence[torch.Tensor], limit_bytes: int) -> list[list[int]]:
    """Split `tensors` into batches of one dtype and at most `limit_bytes` each; a larger tensor is a batch of its own.

    Returns the indices of each batch. Batches are ordered by their last tensor, which is when they are complete.
    """
    batches: list[list[int]] = []
    open_batch: dict[torch.dtype, int] = {}
    used_bytes: dict[torch.dtype, int] = {}
    for index, tensor in enumerate(tensors):
        nbytes = tensor.numel() * tensor.element_size()
        if tensor.dtype not in open_batch or used_bytes[tensor.dtype] + nbytes > limit_bytes:
            open_batch[tensor.dtype], used_bytes[tensor.dtype] = len(batches), 0
            batches.append([])
        batches[open_batch[tensor.dtype]].append(index)
        used_bytes[tensor.dtype] += nbytes
    return sorted(batches, key=lambda batch: batch[-1])


def fingerprint(tensors: Sequence[NamedTensor]) -> str:
    """Hash names, shapes and dtypes: 16 hexadecimal digits that agree exactly when ranks hold the same layout."""
    text = "\n".join(f"{name} {tuple(tensor.shape)} {tensor.dtype}" for name, tensor in tensors)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
