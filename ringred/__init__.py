"""ringred: gradient averaging for processes that share a machine, at the speed of memory.

import ringred as rr

rr.init()
rr.allreduce_(array, rr.Sum)
"""

try:
    import ringred._core  # noqa: F401
except ImportError as missing:
    raise ImportError(
        f"ringred's compiled part cannot be loaded from {__path__[0]}: {missing}. If this is the source folder, "
        "work elsewhere or install it with 'pip install -e .'; otherwise reinstall ringred with this Python."
    ) from missing

from ringred.arrays import empty
from ringred.asynchronous import (
    allgather,
    allgather_async,
    allreduce_async,
    allreduce_async_,
    alltoall,
    alltoall_async,
    barrier_async,
    broadcast_async,
    broadcast_async_,
    grouped_allgather,
    grouped_allgather_async,
    grouped_allreduce,
    grouped_allreduce_,
    grouped_allreduce_async,
    grouped_allreduce_async_,
    grouped_broadcast_async_,
    grouped_reducescatter,
    grouped_reducescatter_async,
    join,
    reducescatter,
    reducescatter_async,
)
from ringred.collectives import allreduce, allreduce_, barrier, broadcast, broadcast_, plan_allreduce
from ringred.errors import (
    HorovodInternalError,
    InterruptedError,
    MismatchError,
    PeerLostError,
    ReplicaError,
    RingredError,
    SystemError,
    TimeoutError,
    UsageError,
)
from ringred.flight_recorder import dump_flight_recorder
from ringred.handles import Handle, poll, synchronize
from ringred.lateness import Straggler, stragglers
from ringred.objects import allgather_object, broadcast_object
from ringred.ops import Adasum, Average, Max, Min, Op, Product, Sum
from ringred.process_sets import (
    ProcessSet,
    add_process_set,
    global_process_set,
    process_set_ids,
    remove_process_set,
)
from ringred.replicas import check_replicas
from ringred.step_report import StepReport, step_report
from ringred.timeline import start_timeline, stop_timeline
from ringred.version import __version__
from ringred.world import (
    cross_rank,
    cross_size,
    init,
    is_initialized,
    local_rank,
    local_size,
    rank,
    shutdown,
    size,
)

__all__ = [
    "Adasum",
    "Average",
    "Handle",
    "HorovodInternalError",
    "InterruptedError",
    "Max",
    "Min",
    "MismatchError",
    "Op",
    "PeerLostError",
    "ProcessSet",
    "Product",
    "ReplicaError",
    "RingredError",
    "StepReport",
    "Straggler",
    "Sum",
    "SystemError",
    "TimeoutError",
    "UsageError",
    "__version__",
    "add_process_set",
    "allgather",
    "allgather_async",
    "allgather_object",
    "allreduce",
    "allreduce_",
    "allreduce_async",
    "allreduce_async_",
    "alltoall",
    "alltoall_async",
    "barrier",
    "barrier_async",
    "broadcast",
    "broadcast_",
    "broadcast_async",
    "broadcast_async_",
    "broadcast_object",
    "check_replicas",
    "cross_rank",
    "cross_size",
    "dump_flight_recorder",
    "empty",
    "global_process_set",
    "grouped_allgather",
    "grouped_allgather_async",
    "grouped_allreduce",
    "grouped_allreduce_",
    "grouped_allreduce_async",
    "grouped_allreduce_async_",
    "grouped_broadcast_async_",
    "grouped_reducescatter",
    "grouped_reducescatter_async",
    "init",
    "is_initialized",
    "join",
    "local_rank",
    "local_size",
    "plan_allreduce",
    "poll",
    "process_set_ids",
    "rank",
    "reducescatter",
    "reducescatter_async",
    "remove_process_set",
    "shutdown",
    "size",
    "start_timeline",
    "stop_timeline",
    "step_report",
    "stragglers",
    "synchronize",
]
