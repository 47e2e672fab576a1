"""What ranks on several hosts run, and with which environment."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]

# Every collective, small and large, with whole numbers, whose sums are exact.
COLLECTIVES = """
import numpy as np
import ringred as rr

rr.init()
rank, size = rr.rank(), rr.size()
total = size * (size - 1) // 2
for count in (0, 1, 1000, 5000, 400_001):
    mine = np.arange(count, dtype="float32") % 7 + rank
    expected = (np.arange(count, dtype="float32") % 7) * size + total
    assert np.array_equal(rr.allreduce(mine, rr.Sum), expected), count
    handles = [rr.allreduce_async(mine, rr.Sum, name=f"{i}") for i in range(3)]
    assert all(np.array_equal(handle.wait(), expected) for handle in handles), count
    assert np.array_equal(rr.broadcast(mine, size - 1), mine - rank + size - 1), count
rows = rr.allgather(np.full((rank + 1, 3), rank))
assert rows[:, 0].tolist() == [peer for peer in range(size) for _ in range(peer + 1)]
sent, splits = rr.alltoall(np.repeat(np.arange(size), rank + 1), [rank + 1] * size)
assert sent.tolist() == [rank] * (total + size) and splits.tolist() == [peer + 1 for peer in range(size)]
try:
    rr.allreduce(np.ones(rank + 1))
except rr.MismatchError as error:
    assert "All ranks must make the same call" in str(error), error
else:
    raise AssertionError("nobody noticed")
rr.barrier()
print(f"local={rr.local_rank()}/{rr.local_size()} cross={rr.cross_rank()}/{rr.cross_size()}", flush=True)
rr.shutdown()
"""

# Rank 0 says how often it came round, until an error ends it.
ROUND_AND_ROUND = """
import sys
import numpy as np
import ringred as rr

rr.init()
values = np.ones(200_000, "float32")
try:
    while True:
        rr.allreduce_(values, rr.Max)
        if rr.rank() == 0:
            print(".", flush=True)
except (rr.PeerLostError, rr.TimeoutError) as error:
    print(f"rank {rr.rank()} ended with {type(error).__name__}: {error}", flush=True)
    sys.exit(7)
"""


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}
