"""Average CuPy arrays, which lie in the memory of a GPU, over all ranks, and check the result.

    mpirun -np 2 python examples/cupy_allreduce.py
    torchrun --nproc-per-node 2 examples/cupy_allreduce.py

Ranks of one machine take its GPUs in turn; they may share one. Without CuPy or without a GPU the script says what is
missing, and ends with exit code 1.
"""

from __future__ import annotations

import sys
from typing import Any

import ringred as rr

COUNT = 1_000_003


def load_cupy() -> tuple[Any, int]:
    """The module, and how many GPUs it can use; ends the script if it can use none."""
    try:
        import cupy
    except ImportError as error:
        sys.exit(
            f"This example needs CuPy, which is not here ({error}): install the cupy package of your CUDA version."
        )
    try:
        return cupy, int(cupy.cuda.runtime.getDeviceCount())
    except cupy.cuda.runtime.CUDARuntimeError as error:
        sys.exit(f"This example needs a GPU, and CuPy {cupy.__version__} can use none here ({error}).")


def main() -> None:
    """Average once out of place and once in place."""
    cupy, devices = load_cupy()
    rr.init()
    cupy.cuda.Device(rr.local_rank() % devices).use()
    mine = cupy.arange(COUNT, dtype=cupy.float32) % 1000 + rr.rank()
    # The mean of the ranks' numbers is added to what all of them have: exact in float32.
    expected = cupy.arange(COUNT, dtype=cupy.float32) % 1000 + (rr.size() - 1) / 2
    mean = rr.allreduce(mine)
    if not isinstance(mean, cupy.ndarray) or not bool(cupy.array_equal(mean, expected)):
        sys.exit(f"rank {rr.rank()}: the average is wrong: {mean!r} is not {expected!r}")
    rr.allreduce_(mine)
    if not bool(cupy.array_equal(mine, expected)):
        sys.exit(f"rank {rr.rank()}: the average in place is wrong: {mine!r} is not {expected!r}")
    if rr.rank() == 0:
        print(f"{rr.size()} ranks averaged CuPy arrays of {COUNT:,} elements: right in every element")
    rr.shutdown()


if __name__ == "__main__":
    main()
