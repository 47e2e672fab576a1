"""ringred for PyTorch: `import ringred.torch as hvd`.

The functions of `ringred` under the names that Horovod's users know, and what a training loop needs beside them.
"""

from ringred import (
    Average,
    Max,
    Min,
    Op,
    Product,
    Sum,
    allreduce,
    allreduce_,
    barrier,
    broadcast,
    broadcast_,
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
from ringred.torch.arena import empty
from ringred.torch.optimizer import DistributedOptimizer
from ringred.torch.parameters import broadcast_parameters

__all__ = [
    "Average",
    "DistributedOptimizer",
    "Max",
    "Min",
    "Op",
    "Product",
    "Sum",
    "allreduce",
    "allreduce_",
    "barrier",
    "broadcast",
    "broadcast_",
    "broadcast_parameters",
    "cross_rank",
    "cross_size",
    "empty",
    "init",
    "is_initialized",
    "local_rank",
    "local_size",
    "rank",
    "shutdown",
    "size",
]
