"""Times the engine beside the synchronous path, in one run: what a named operation costs, and what fusion keeps.

    ringred run -np 2 python benchmarks/time_engine.py
    ringred run -np 4 python benchmarks/time_engine.py

Prints, as medians over interleaved rounds with their spread:
  - a lone 8-byte named allreduce, from the call to its result: blocking, and submitted and then awaited (microseconds);
  - busbw of one grouped_allreduce_ of 256 private 64 KiB tensors, and of 256 submissions and waits, as a part of the
    busbw of rr.allreduce_ on one private 16 MiB array.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np

import ringred as rr

TENSORS = 256
ELEMENTS = 16 << 10
ROUNDS = 25
LONE_CALLS = 500
ARRAYS = {  # which of the arrays each action reduces
    "blocking": slice(0, 1),
    "submitted": slice(0, 1),
    "one": slice(1, 2),
    "grouped": slice(2, None),
    "separate": slice(2, None),
}


def seconds(action: Callable[[], object]) -> float:
    rr.barrier()
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def spread(values: list[float]) -> str:
    low, _, high = statistics.quantiles(values, n=4)
    return f"{statistics.median(values):.2f} (quartiles {low:.2f} to {high:.2f}, best {min(values):.2f})"


def lone(submit_first: bool, array: np.ndarray) -> Callable[[], None]:  # type: ignore[type-arg]
    def run() -> None:
        for _ in range(LONE_CALLS):
            if submit_first:
                rr.allreduce_async_(array, rr.Max, name="lone").wait()
            else:
                rr.grouped_allreduce_([array], rr.Max, name="lone")

    return run


def main() -> None:
    rr.init()
    small = np.ones(1)
    big = np.ones(TENSORS * ELEMENTS, np.float32)
    tensors = [np.ones(ELEMENTS, np.float32) for _ in range(TENSORS)]

    def separate() -> None:
        handles = [rr.allreduce_async_(tensor, rr.Max, name=f"tensor.{i}") for i, tensor in enumerate(tensors)]
        for handle in handles:
            handle.wait()

    actions: dict[str, Callable[[], object]] = {
        "blocking": lone(False, small),
        "submitted": lone(True, small),
        "one": lambda: rr.allreduce_(big, rr.Max),
        "grouped": lambda: rr.grouped_allreduce_(tensors, rr.Max, name="group"),
        "separate": separate,
    }
    times: dict[str, list[float]] = {name: [] for name in actions}
    arrays = [small, big, *tensors]
    for turn in range(ROUNDS + 2):
        for name, action in actions.items():
            for array in arrays:
                array.fill(rr.rank())
            took = seconds(action)
            reduced = arrays[ARRAYS[name]]
            if any((array != rr.size() - 1).any() for array in reduced):
                raise AssertionError(f"{name}: the maximum over the ranks is {rr.size() - 1}, and the result is not")
            if turn >= 2:
                times[name].append(took)
    if rr.rank() == 0:
        per_call = {name: [1e6 * took / LONE_CALLS for took in times[name]] for name in ("blocking", "submitted")}
        print(f"{rr.size()} ranks")
        print(f"lone 8-byte named allreduce, blocking: {spread(per_call['blocking'])} us")
        print(f"lone 8-byte named allreduce, submitted and awaited: {spread(per_call['submitted'])} us")
        for name in ("grouped", "separate"):
            ratios = [one / took for one, took in zip(times["one"], times[name], strict=True)]
            print(f"busbw of 256 x 64 KiB {name}, against one 16 MiB array: {spread(ratios)}")
    rr.shutdown()


if __name__ == "__main__":
    main()
