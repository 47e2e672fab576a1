"""ringred over hosts that only a network connects: right results in every layout, and an error that names the rank
which a cut link has taken away."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest
import run_on_hosts
from cluster import Cluster
from run_on_hosts import Mpi

ROOT = str(Path(__file__).parents[2])

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
    return {**os.environ, "PYTHONPATH": ROOT, **more}


@pytest.mark.parametrize(
    ("layout", "places"),
    [
        ([2, 2], ["local=0/2 cross=0/2", "local=1/2 cross=0/2", "local=0/2 cross=1/2", "local=1/2 cross=1/2"]),
        ([3, 1], ["local=0/3 cross=0/2", "local=1/3 cross=0/1", "local=2/3 cross=0/1", "local=0/1 cross=1/2"]),
        ([1, 1], ["local=0/1 cross=0/2", "local=0/1 cross=1/2"]),
    ],
    ids=["2+2", "3+1", "1+1"],
)
def test_all_collectives_are_right(cluster: Cluster, mpi: Mpi, layout: list[int], places: list[str]) -> None:
    words = [sys.executable, "-P", "-c", COLLECTIVES]
    ended = run_on_hosts.run(cluster, layout, words, mpi, environment(), seconds=60)
    assert ended.status == 0, ended.text
    assert sorted(line for line in ended.text.splitlines() if line.startswith("local=")) == sorted(places)


def test_cut_link_ends_in_an_error_that_names_a_rank_beyond_it(cluster: Cluster, mpi: Mpi) -> None:
    words = [sys.executable, "-P", "-c", ROUND_AND_ROUND]
    job = run_on_hosts.start(cluster, [2, 2], words, mpi, environment(RINGRED_TIMEOUT_SECONDS="3"))
    deadline = time.monotonic() + 40
    while job.text().count(".") < 10:
        assert time.monotonic() < deadline and job.process.poll() is None, job.text()
        time.sleep(0.02)
    cluster.cut("h1")
    began = time.monotonic()
    while "rank 0 ended with" not in job.text() and time.monotonic() < began + 20:
        time.sleep(0.1)
    seconds = time.monotonic() - began
    text = job.text()
    job.wait(0.1)
    assert "rank 0 ended with TimeoutError" in text or "rank 0 ended with PeerLostError" in text, text
    said = text[text.index("rank 0 ended with") :].splitlines()[0]
    assert "rank 2" in said or "rank 3" in said, said
    assert seconds < 10, said
    cluster.mend("h1")
