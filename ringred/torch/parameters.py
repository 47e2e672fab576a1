"""broadcast_parameters: all ranks start from the same numbers.

Invariant: ranks first agree on names, shapes and dtypes, so a broadcast never writes one tensor's bytes into another.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

import ringred as rr
from ringred.torch.buckets import fingerprint, lay_out
from ringred.torch.names import check_pairs

# A packed message is one call and one copy more; beyond this size the copy costs more than the call.
PACKED_BYTES = 1 << 20


def broadcast_parameters(params: Mapping[str, Any] | Iterable[tuple[str, Any]], root_rank: int = 0) -> None:
    """Overwrite tensors on all ranks, in place, with those of `root_rank`. A collective.

    Tensors of one dtype travel together in flat messages of about 1 MiB, larger ones alone. Bytes are moved, not
    numbers, so every dtype works; tensors may be 0-dim, empty or non-contiguous.

    Args:
        params: a state_dict or other mapping from name to tensor, or pairs (name, tensor) such as
            `model.named_parameters()`; equal names, shapes and dtypes in equal order on all ranks.
        root_rank: the rank whose values win, 0 <= root_rank < size.

    Raises:
        ringred.UsageError: also a ValueError; `params` is something else, or holds something else than dense CPU
            tensors.
        ringred.MismatchError: names, shapes or dtypes differ between ranks; raised on all of them, nothing is written.
    """
    pairs = params.items() if isinstance(params, Mapping) else params
    if isinstance(pairs, (torch.Tensor, str, bytes)) or not isinstance(pairs, Iterable):
        raise rr.UsageError(
            "params must be a mapping from name to tensor or an iterable of pairs (name, tensor); got "
            f"{type(params).__name__}. Pass model.state_dict() or model.named_parameters()."
        )
    named = check_pairs(pairs, "params")
    for name, tensor in named:
        if tensor.device.type != "cpu" or tensor.layout != torch.strided:
            raise rr.UsageError(
                f"Tensors must be dense and on the CPU; {name!r} has layout {tensor.layout} on {tensor.device}."
            )
    agreement = torch.zeros(1, dtype=torch.uint8)
    rr.allreduce_(agreement, op=rr.Max, tag=f"broadcast_parameters: {len(named)} tensors, layout {fingerprint(named)}")
    tensors = [tensor.detach() for _, tensor in named]
    for indices in lay_out(tensors, PACKED_BYTES):
        _broadcast_batch([tensors[index] for index in indices], root_rank)


def _broadcast_batch(tensors: list[torch.Tensor], root_rank: int) -> None:
    if len(tensors) == 1 and tensors[0].is_contiguous() and not (tensors[0].is_conj() or tensors[0].is_neg()):
        rr.broadcast_(_bytes_of(tensors[0]), root_rank=root_rank)
        return
    flat = torch.cat([_bytes_of(tensor) for tensor in tensors])
    rr.broadcast_(flat, root_rank=root_rank)
    offset = 0
    for tensor in tensors:
        nbytes = tensor.numel() * tensor.element_size()
        tensor.copy_(flat[offset : offset + nbytes].view(tensor.dtype).view(tensor.shape))
        offset += nbytes


def _bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    """Return the elements as a 1-d uint8 tensor, which shares memory with a contiguous tensor."""
    return tensor.resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)
