"""All operations between ranks on torch tensors, with Horovod's names and arguments: the table of contents."""

from __future__ import annotations

from ringred import asynchronous
from ringred.asynchronous import join
from ringred.handles import poll, synchronize
from ringred.process_sets import ProcessSet, global_process_set
from ringred.torch.allgather import allgather, allgather_async, grouped_allgather, grouped_allgather_async
from ringred.torch.allreduce import (
    allreduce,
    allreduce_,
    allreduce_async,
    allreduce_async_,
    grouped_allreduce,
    grouped_allreduce_,
    grouped_allreduce_async,
    grouped_allreduce_async_,
)
from ringred.torch.alltoall import alltoall, alltoall_async
from ringred.torch.broadcast import broadcast, broadcast_, broadcast_async, broadcast_async_
from ringred.torch.reducescatter import (
    grouped_reducescatter,
    grouped_reducescatter_async,
    reducescatter,
    reducescatter_async,
)
from ringred.torch.sparse import sparse_allreduce_async

__all__ = [
    "allgather",
    "allgather_async",
    "allreduce",
    "allreduce_",
    "allreduce_async",
    "allreduce_async_",
    "alltoall",
    "alltoall_async",
    "barrier",
    "broadcast",
    "broadcast_",
    "broadcast_async",
    "broadcast_async_",
    "grouped_allgather",
    "grouped_allgather_async",
    "grouped_allreduce",
    "grouped_allreduce_",
    "grouped_allreduce_async",
    "grouped_allreduce_async_",
    "grouped_reducescatter",
    "grouped_reducescatter_async",
    "join",
    "poll",
    "reducescatter",
    "reducescatter_async",
    "sparse_allreduce_async",
    "synchronize",
]


def barrier(process_set: ProcessSet = global_process_set) -> None:
    """Return when all ranks of the set have called it; operations in flight are none of its concern.

    Raises:
        PeerLostError, TimeoutError: a rank died, left or did not come.
    """
    asynchronous.barrier(process_set=process_set)
