"""broadcast_parameters: all ranks start from the same numbers.

Invariant: ranks first agree on names, shapes and dtypes, so a broadcast never writes one tensor's bytes into another.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from ringred.devices.recognition import check_device
from ringred.errors import UsageError
from ringred.objects import allgather_object
from ringred.process_sets import ProcessSet, checked_set, global_process_set
from ringred.torch.agreement import check_agreement, describe
from ringred.torch.broadcast import grouped_broadcast_async_
from ringred.torch.names import check_pairs
from ringred.torch.places import check_places


def broadcast_parameters(
    params: Mapping[str, Any] | Iterable[tuple[str, Any]],
    root_rank: int = 0,
    process_set: ProcessSet = global_process_set,
) -> None:
    """Overwrite tensors on all ranks, in place, with those of `root_rank`. A collective.

    All tensors travel in one operation. Bytes are moved, not numbers, so every dtype works; tensors may be 0-dim, empty
    or non-contiguous.

    Args:
        params: a state_dict or other mapping from name to tensor, or pairs (name, tensor) such as
            `model.named_parameters()`; equal names, shapes and dtypes in equal order on all ranks.
        root_rank: the rank whose values win: of the whole job, also with a process set.
        process_set: the ranks that take part.

    Raises:
        UsageError: also a ValueError; `params` is something else, or holds something else than dense tensors on CPU or
            GPU.
        MismatchError: names, shapes or dtypes differ between ranks; raised on all of them, nothing is written.
        PeerLostError, TimeoutError: a rank died, left or did not come.
    """
    pairs = params.items() if isinstance(params, Mapping) else params
    if isinstance(pairs, (torch.Tensor, str, bytes)) or not isinstance(pairs, Iterable):
        raise UsageError(
            "params must be a mapping from name to tensor or an iterable of pairs (name, tensor); got "
            f"{type(params).__name__}. Pass model.state_dict() or model.named_parameters()."
        )
    named = check_pairs(pairs, "params")
    for name, tensor in named:
        check_device(tensor.device, repr(name))
        if tensor.layout != torch.strided:
            raise UsageError(f"Tensors must be dense; {name!r} has layout {tensor.layout}.")
    check_places([tensor for _, tensor in named])
    checked_set(process_set).rank_of(root_rank, "root_rank")
    check_in_set(process_set, "The tensors of broadcast_parameters", describe(named))
    broadcast_tensors([tensor for _, tensor in named], root_rank, "broadcast_parameters", process_set)


def broadcast_tensors(tensors: Sequence[torch.Tensor], root_rank: int, name: str, process_set: ProcessSet) -> None:
    """Overwrite dense tensors in place with the root's; shapes and dtypes are known to agree. None at all are fine."""
    if tensors:
        grouped_broadcast_async_(tensors, root_rank, name, process_set).wait()


def check_in_set(process_set: ProcessSet, what: str, lines: Sequence[str]) -> None:
    """Compare `lines` between the ranks of a set; see check_agreement."""
    check_agreement(partial(allgather_object, process_set=process_set), process_set.ranks, what, lines)
