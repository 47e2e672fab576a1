"""Time one library's allreduce (fp32, sum), a JSON line a size: time_allreduce.py WHO BYTES,BYTES,...

WHO is ringred, gloo, or the name of an MPI that mpi4py loads. Run it under the library's launcher. A figure is the best
of five repetitions, each the mean of many iterations, of the slowest rank. Buffers are written anew before each
repetition: untouched buffers stay in the caches of the cores that reduced them. Every size's result is checked.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

REPETITIONS = 5


class Ringred:
    """Three things in turn: a plan on an arena array, a call on a private one, and the memory bound."""

    def __init__(self) -> None:
        import ringred

        ringred.init()
        self.library = ringred
        self.rank, self.size = ringred.rank(), ringred.size()

    def cases(self, count: int) -> dict[str, tuple[Any, Any, Callable[[], Any]]]:
        library = self.library
        arena, private, own = library.empty(count), np.zeros(count, np.float32), library.empty(count)
        one = np.float32(1)
        return {
            "ringred arena": (arena, arena, library.plan_allreduce(arena, library.Sum)),
            "ringred private": (private, private, lambda: library.allreduce_(private, library.Sum)),
            # All ranks at once scale an array of their own in place: each byte is read once and written once.
            "memory bound": (own, None, lambda: np.multiply(own, one, out=own)),
        }

    def barrier(self) -> None:
        self.library.barrier()

    def slowest(self, seconds: float) -> float:
        return float(self.library.allreduce_(np.array([seconds]), self.library.Max)[0])


class Mpi:
    """MPI_Allreduce from one array into another."""

    def __init__(self, name: str) -> None:
        from mpi4py import MPI

        self.name, self.mpi, self.world = name, MPI, MPI.COMM_WORLD
        self.rank, self.size = self.world.rank, self.world.size

    def cases(self, count: int) -> dict[str, tuple[Any, Any, Callable[[], Any]]]:
        source, result = np.zeros(count, np.float32), np.zeros(count, np.float32)
        return {self.name: (source, result, lambda: self.world.Allreduce(source, result))}

    def barrier(self) -> None:
        self.world.Barrier()

    def slowest(self, seconds: float) -> float:
        return float(self.world.allreduce(seconds, self.mpi.MAX))


class Gloo:
    """torch.distributed.all_reduce in place."""

    def __init__(self) -> None:
        import torch
        import torch.distributed as distributed

        torch.set_num_threads(1)
        distributed.init_process_group("gloo")
        self.torch, self.distributed = torch, distributed
        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()

    def cases(self, count: int) -> dict[str, tuple[Any, Any, Callable[[], Any]]]:
        array = np.zeros(count, np.float32)
        tensor = self.torch.from_numpy(array)
        return {"gloo": (array, array, lambda: self.distributed.all_reduce(tensor))}

    def barrier(self) -> None:
        self.distributed.barrier()

    def slowest(self, seconds: float) -> float:
        tensor = self.torch.tensor(seconds)
        self.distributed.all_reduce(tensor, self.distributed.ReduceOp.MAX)
        return float(tensor)


def repetition(library: Any, call: Callable[[], Any], iterations: int) -> float:
    """The mean of the iterations in microseconds, of the slowest rank."""
    library.barrier()
    start = time.perf_counter()
    for _ in range(iterations):
        call()
    return library.slowest((time.perf_counter() - start) / iterations) * 1e6


def check(library: Any, source: Any, result: Any, call: Callable[[], Any]) -> None:
    """One more call on whole numbers, whose sum is exact."""
    values = np.arange(source.size, dtype=np.float32) % 64
    source[:] = values + library.rank
    call()
    expected = values * library.size + library.size * (library.size - 1) / 2
    if not np.array_equal(result, expected):
        raise SystemExit(f"wrong sum of {source.nbytes} bytes on rank {library.rank}")


def main() -> None:
    """Time all sizes."""
    who, sizes = sys.argv[1], [int(size) for size in sys.argv[2].split(",")]
    library: Any = {"ringred": Ringred, "gloo": Gloo}.get(who, lambda: Mpi(who))()
    for nbytes in sizes:
        iterations = max(5, min(3000 if who != "gloo" else 100, int(2e8 // max(nbytes, 20000))))
        cases = library.cases(nbytes // 4)
        best = dict.fromkeys(cases, float("inf"))
        for _ in range(REPETITIONS):
            for name, (source, _, call) in cases.items():
                source.fill(0)  # a sum in place would grow; zeros stay zeros and take as long
                best[name] = min(best[name], repetition(library, call, iterations))
        for source, result, call in cases.values():
            if result is not None:
                check(library, source, result, call)
        if library.rank == 0:
            for name, microseconds in best.items():
                print(json.dumps({"who": name, "np": library.size, "bytes": nbytes, "us": microseconds}), flush=True)


if __name__ == "__main__":
    main()
