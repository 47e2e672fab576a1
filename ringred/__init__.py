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
from ringred.collectives import allreduce, allreduce_, barrier, broadcast, broadcast_, plan_allreduce
from ringred.errors import (
    HorovodInternalError,
    InterruptedError,
    MismatchError,
    PeerLostError,
    RingredError,
    SystemError,
    TimeoutError,
    UsageError,
)
from ringred.ops import Average, Max, Min, Op, Product, Sum
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
    "Average",
    "HorovodInternalError",
    "InterruptedError",
    "Max",
    "Min",
    "MismatchError",
    "Op",
    "PeerLostError",
    "Product",
    "RingredError",
    "Sum",
    "SystemError",
    "TimeoutError",
    "UsageError",
    "__version__",
    "allreduce",
    "allreduce_",
    "barrier",
    "broadcast",
    "broadcast_",
    "cross_rank",
    "cross_size",
    "empty",
    "init",
    "is_initialized",
    "local_rank",
    "local_size",
    "plan_allreduce",
    "rank",
    "shutdown",
    "size",
]
