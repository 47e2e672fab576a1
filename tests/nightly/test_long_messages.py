"""Collectives of over 2^31 elements, on one node and between two: counts of MPI are ints, those of ringred are not.

Needs 16 GB of memory.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

BYTES = (1 << 31) + 4099

PROGRAM = """
import os
import sys

from mpi4py import MPI

import numpy as np

if os.environ["RINGRED_LINK"] != "none":
    os.environ["RINGRED_NODE"] = str(MPI.COMM_WORLD.rank)
else:
    del os.environ["RINGRED_LINK"]
import ringred as rr

count = int(sys.argv[1])
rr.init()
rank = rr.rank()
pattern = np.resize(np.arange(101, dtype=np.uint8), count)

summed = pattern + np.uint8(rank)
rr.allreduce_(summed, rr.Sum)
summed -= pattern
summed -= pattern
assert (summed == 1).all()
del summed

sent = pattern if rank == 1 else np.zeros_like(pattern)
assert np.array_equal(rr.broadcast(sent, 1), pattern)
del sent

half = pattern[: count // 2 + 1 + rank]
gathered = rr.allgather(half)
assert len(gathered) == 2 * (count // 2 + 1) + 1
assert np.array_equal(gathered[: count // 2 + 1], pattern[: count // 2 + 1])
assert np.array_equal(gathered[count // 2 + 1 :], pattern[: count // 2 + 2])
rr.shutdown()
print("arrived", flush=True)
"""


@pytest.mark.timeout(600)
@pytest.mark.parametrize("link", ["none", "tcp", "mpi"])
def test_arrays_of_more_than_two_gigabytes(link: str) -> None:
    command = ["mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-np", "2"]
    job = subprocess.run(
        [*command, sys.executable, "-c", PROGRAM, str(BYTES)],
        env={**os.environ, "RINGRED_LINK": link},
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )
    assert job.returncode == 0, job.stderr
    assert job.stdout.count("arrived") == 2
