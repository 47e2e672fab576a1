"""``ringred bench allreduce --algorithms``: every algorithm that there is here, measured and predicted, and the choice.

In each round every algorithm is timed once, in turn, in an order that moves on by one from round to round, so that a
busy moment of the machine meets all alike. A figure is the median over the rounds, each the mean over many iterations,
of the slowest rank; arrays are written anew before each round, and each result is checked. The choice is what the
library takes by itself, by its costs: those of RINGRED_TUNING, or those that it measured here.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np

import ringred as rr
from ringred import world
from ringred.cli.bench_data import expected, source

SECONDS = 0.025  # of one algorithm at one size in one round
MOST_ITERATIONS = 2000
FIRST_CALL_BYTES = 16 << 10  # of a call that the library is not sure of, which has it measure its costs


class Contest:
    """All algorithms on one array of the size, which is the same memory for all of them."""

    def __init__(self, args: Any, size: int, dtype: Any, op: rr.Op) -> None:
        self.args, self.dtype, self.op = args, dtype, op
        self.count = size // dtype.itemsize
        self.bytes = self.count * dtype.itemsize
        self.arena = args.memory == "arena"
        self.communicator = world.communicator()
        self.selection = self.communicator.selection
        self.names = [
            name
            for name in self.selection.algorithms
            if name != "one_shot" or self.bytes <= self.selection.one_shot_room
        ]
        self.array = rr.empty(self.count, dtype) if self.arena else np.zeros(self.count, dtype)
        self.call = rr.plan_allreduce(self.array, op)

    def row(self) -> dict[str, Any]:
        """Seconds by algorithm, as measured and as predicted; which is chosen, and which was the fastest."""
        wrong, iterations = {}, {}
        for name in self.names:
            self.communicator.force(name)
            wrong[name] = self.wrong()
            once = self.repetition(2)
            iterations[name] = self.args.n or max(1, min(MOST_ITERATIONS, int(SECONDS / once)))
        times: dict[str, list[float]] = {name: [] for name in self.names}
        for turn in range(self.args.N):
            shift = turn % len(self.names)
            for name in self.names[shift:] + self.names[:shift]:
                self.communicator.force(name)
                times[name].append(self.repetition(iterations[name]))
        self.communicator.force("auto")
        rr.allreduce_(self.array, self.op)  # what kind of array it is, is known from here on
        medians = {name: statistics.median(values) for name, values in times.items()}
        best = min(medians, key=lambda name: medians[name])
        chosen = self.selection.chosen(self.bytes, self.arena)
        return {
            "size": self.bytes,
            "count": self.count,
            "type": self.args.d,
            "redop": self.args.o,
            "chosen": chosen,
            "best": best,
            "chosen_over_best": medians[chosen] / medians[best],
            "overlap": min(times[chosen]) <= max(times[best]),
            "algorithms": {
                name: {
                    "time": medians[name] * 1e6,
                    "least": min(times[name]) * 1e6,
                    "most": max(times[name]) * 1e6,
                    "predicted": self.selection.predicted(name, self.bytes, self.arena) * 1e6,
                    "nwrong": wrong[name],
                }
                for name in self.names
            },
        }

    def repetition(self, iterations: int) -> float:
        """The mean of the iterations, of the slowest rank."""
        self.array.fill(0)  # repeated sums in place would overflow: zeros stay zeros, and take as long
        rr.barrier()
        start = time.perf_counter()
        for _ in range(iterations):
            self.call()
        mean = np.array([(time.perf_counter() - start) / iterations])
        return float(rr.allreduce_(mean, rr.Max)[0])

    def wrong(self) -> int:
        """How many elements of a call, on all ranks, are not what they should be."""
        if not self.args.c:
            return 0
        self.array[:] = source(self.count, rr.rank(), self.dtype)
        self.call()
        bad = np.array([np.count_nonzero(self.array != expected(self.count, rr.size(), self.dtype, self.op))])
        return int(rr.allreduce_(bad, rr.Sum)[0])


def first_call(args: Any) -> None:
    """Have the library measure its costs, if it wants to."""
    array = rr.empty(FIRST_CALL_BYTES, np.uint8) if args.memory == "arena" else np.zeros(FIRST_CALL_BYTES, np.uint8)
    rr.allreduce_(array, rr.Max)


def preamble(args: Any, ranks: int) -> str:
    """The lines before the first row."""
    names = world.communicator().selection.algorithms
    lines = [
        f"# ringred bench allreduce --algorithms: {ranks} ranks, arrays in {args.memory} memory, in place, {args.d}, "
        f"{args.o}; median of {args.N} rounds, slowest rank",
        "# microseconds measured / predicted; * is what the library chooses; ratio: its time over that of the fastest; "
        "~ where their spreads overlap",
        "#",
        f"# {'size':>10}  " + "".join(f"{name:>20}  " for name in names) + f"{'ratio':>7}  {'#wrong':>6}",
    ]
    return "\n".join(lines)


def line(row: dict[str, Any]) -> str:
    """One row of the table."""
    text = f"{row['size']:12d}  "
    for name in world.communicator().selection.algorithms:
        one = row["algorithms"].get(name)
        mark = "*" if name == row["chosen"] else ""
        text += f"{'-' if one is None else mark + figure(one['time']) + ' / ' + figure(one['predicted']):>20}  "
    ratio = f"{row['chosen_over_best']:.2f}" + ("~" if row["overlap"] and row["chosen"] != row["best"] else "")
    return text + f"{ratio:>7}  {wrong(row):6d}"


def figure(value: float) -> str:
    """Microseconds with three digits or more."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def wrong(row: dict[str, Any]) -> int:
    """Wrong elements of all algorithms."""
    return sum(one["nwrong"] for one in row["algorithms"].values())
