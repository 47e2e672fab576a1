"""``ringred bench allreduce``: times the collective, checks its result, and prints rows in the format of nccl-tests.

Every figure is the best of several repetitions, each the mean over the iterations, of the slowest rank. All buffers
are written anew before each repetition: buffers that nobody touched stay in the caches of the core that reduced them,
and hide the transfers that a training step pays. What is compared (MPI, the memory bound) is timed in turn with the
collective, repetition by repetition, so that a busy moment of the machine meets all alike.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import ringred as rr
from ringred import world
from ringred.cli import bench_algorithms
from ringred.cli import bench_table as table
from ringred.cli.bench_data import DTYPES, OPS, expected, numpy_dtype, source

Run = Callable[[], Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options; one-letter ones are those of nccl-tests."""
    parser.add_argument("collective", choices=["allreduce"])
    parser.add_argument("-np", type=int, help="start this many ranks (otherwise: the ranks of the launcher, or one)")
    parser.add_argument("-b", default="8", type=table.size_in_bytes, help="smallest size in bytes (K, M, G: 1024s)")
    parser.add_argument("-e", default="64M", type=table.size_in_bytes, help="largest size")
    parser.add_argument("-f", default=2.0, type=table.factor, help="factor from one size to the next, above 1")
    parser.add_argument("-n", type=int, help="iterations of a repetition (default: from 5 to 3000, by size)")
    parser.add_argument("-w", default=5, type=int, help="iterations before the first repetition, not timed")
    parser.add_argument("-N", default=5, type=int, help="repetitions, of which the best counts")
    parser.add_argument("-c", default=1, type=int, choices=[0, 1], help="check the result of every size")
    parser.add_argument("-d", default="float", choices=DTYPES, help="element type")
    parser.add_argument("-o", default="sum", choices=OPS, help="operator")
    parser.add_argument("--memory", default="arena", choices=["arena", "private"], help="where the arrays lie")
    parser.add_argument("--compare", choices=["mpi"], help="time MPI_Allreduce of the MPI in use beside it")
    parser.add_argument("--roofline", action="store_true", help="time the memory bound beside it")
    parser.add_argument(
        "--algorithms", action="store_true", help="time every algorithm instead, beside its prediction and the choice"
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file")


def run(args: argparse.Namespace) -> int:
    """Run the benchmark on the ranks of this job, or start them first."""
    if args.b > args.e:
        raise rr.UsageError(f"The smallest size must not exceed the largest: -b is {args.b}, -e is {args.e} bytes.")
    if args.np is not None:
        return start_ranks(args.np)
    if args.algorithms and (args.compare or args.roofline):
        raise rr.UsageError("--algorithms compares ringred's own: leave out --compare and --roofline.")
    rr.init()
    wrong = run_algorithms(args) if args.algorithms else run_collective(args)
    rr.shutdown()
    return 1 if wrong else 0


def sizes(args: argparse.Namespace) -> Iterator[int]:
    """From -b to -e by -f."""
    size = max(args.b, numpy_dtype(args.d).itemsize)
    while size <= args.e:
        yield size
        size = max(size + 1, int(size * args.f))


def run_collective(args: argparse.Namespace) -> int:
    """Time the collective as users call it. Returns the number of wrong elements."""
    rows = []
    if rr.rank() == 0:
        print(table.preamble(args, rr.size()), flush=True)
    for size in sizes(args):
        row = Measurement(args, size).row()
        rows.append(row)
        if rr.rank() == 0:
            print(table.line(row, args), flush=True)
    wrong: int = sum(row["out_of_place"]["nwrong"] + row["in_place"]["nwrong"] for row in rows)
    if rr.rank() == 0:
        print(table.footer(rows))
        write_json(args, rows, __doc__, out_of_bounds=wrong, average_bus_bandwidth=table.average_bus_bandwidth(rows))
    return wrong


def run_algorithms(args: argparse.Namespace) -> int:
    """Time every algorithm. Returns the number of wrong elements."""
    if rr.size() == 1:
        raise rr.UsageError("--algorithms compares ways between ranks: start two or more, as with -np 2.")
    bench_algorithms.first_call(args)
    rows = []
    if rr.rank() == 0:
        print(bench_algorithms.preamble(args, rr.size()), flush=True)
    for size in sizes(args):
        row = bench_algorithms.Contest(args, size, numpy_dtype(args.d), rr.Op[OPS[args.o]]).row()
        rows.append(row)
        if rr.rank() == 0:
            print(bench_algorithms.line(row), flush=True)
    wrong = sum(bench_algorithms.wrong(row) for row in rows)
    if rr.rank() == 0:
        print(f"# Out of bounds values : {wrong} {'FAILED' if wrong else 'OK'}")
        costs = world.communicator().selection.costs
        write_json(args, rows, bench_algorithms.__doc__, out_of_bounds=wrong, costs=costs)
    return wrong


def start_ranks(ranks: int) -> int:
    """Start this benchmark again under the launcher, without -np."""
    from ringred.cli.main import main

    words = sys.argv[1:]
    where = words.index("-np")
    # The script rather than -m: that would take a folder named ringred in the working directory for the package.
    script = Path(sys.executable).with_name("ringred")
    own = [str(script)] if script.exists() else ["-m", "ringred"]
    return main(["run", "-np", str(ranks), "--", sys.executable, *own, *words[:where], *words[where + 2 :]])


@dataclass
class Case:
    """One thing to time: `run` once, after `refill`."""

    run: Run
    refill: Callable[[], None]
    best: float = float("inf")

    def repeat(self, iterations: int) -> None:
        """One repetition: the mean of the iterations, of the slowest rank; keep it if it is the best."""
        self.refill()
        rr.barrier()
        start = time.perf_counter()
        for _ in range(iterations):
            self.run()
        mean = np.array([(time.perf_counter() - start) / iterations])
        self.best = min(self.best, float(rr.allreduce_(mean, rr.Max)[0]))


class Measurement:
    """Everything that is timed at one size."""

    def __init__(self, args: argparse.Namespace, size: int) -> None:
        self.args = args
        self.dtype = numpy_dtype(args.d)
        self.count = size // self.dtype.itemsize
        self.bytes = self.count * self.dtype.itemsize
        self.op = rr.Op[OPS[args.o]]
        self.iterations = args.n or max(5, min(3000, int(2e8 // max(self.bytes, 20000))))
        self.input, self.output, self.in_place = self.new(), self.new(), self.new()
        self.cases = {"out_of_place": self.out_of_place(), "in_place": self.in_place_case()}
        if args.compare == "mpi":
            self.cases["mpi"] = self.mpi()
        if args.roofline:
            self.cases["roofline"] = self.roofline()

    def new(self) -> NDArray[Any]:
        """An array of this size where --memory says."""
        return rr.empty(self.count, self.dtype) if self.args.memory == "arena" else np.zeros(self.count, self.dtype)

    def fill(self, array: NDArray[Any]) -> None:
        """This rank's values, which are its own."""
        array[:] = source(self.count, rr.rank(), self.dtype)

    def out_of_place(self) -> Case:
        return Case(lambda: rr.allreduce(self.input, self.op, out=self.output), lambda: self.fill(self.input))

    def in_place_case(self) -> Case:
        """An arena array goes through a plan; a private one through the call that a script makes."""
        self.keep = rr.plan_allreduce(self.in_place, self.op) if self.args.memory == "arena" else None
        call: Run = self.keep or (lambda: rr.allreduce_(self.in_place, self.op))
        # Repeated sums in place would overflow: zeros stay zeros, and take as long.
        return Case(call, lambda: self.in_place.fill(0))

    def mpi(self) -> Case:
        """MPI_Allreduce from one private array into another, as MPI programs call it."""
        from mpi4py import MPI

        ops = {"sum": MPI.SUM, "avg": MPI.SUM, "min": MPI.MIN, "max": MPI.MAX, "prod": MPI.PROD}
        into, out = np.zeros(self.count, self.dtype), np.zeros(self.count, self.dtype)
        return Case(lambda: MPI.COMM_WORLD.Allreduce(into, out, ops[self.args.o]), lambda: self.fill(into))

    def roofline(self) -> Case:
        """All ranks at once scale an array of their own in place: each byte is read once and written once."""
        array = rr.empty(self.count, self.dtype)
        factor = self.dtype.type(1)
        return Case(lambda: np.multiply(array, factor, out=array), lambda: self.fill(array))

    def row(self) -> dict[str, Any]:
        """Time all cases in turn, check the collective, and return the figures: seconds, bytes, wrong elements."""
        for case in self.cases.values():
            case.refill()
            for _ in range(self.args.w):
                case.run()
        for _ in range(self.args.N):
            for case in self.cases.values():
                case.repeat(self.iterations)
        row: dict[str, Any] = {"size": self.bytes, "count": self.count, "type": self.args.d, "redop": self.args.o}
        for name in ("out_of_place", "in_place"):
            row[name] = table.rates(self.cases[name].best, self.bytes, rr.size()) | {"nwrong": self.wrong(name)}
        for name in ("mpi", "roofline"):
            if name in self.cases:
                row[name] = table.rates(self.cases[name].best, self.bytes, rr.size())
        return row

    def wrong(self, name: str) -> int:
        """How many elements of one more run, on all ranks, are not what they should be."""
        if not self.args.c:
            return 0
        source_array = self.input if name == "out_of_place" else self.in_place
        self.fill(source_array)
        self.cases[name].run()
        result = self.output if name == "out_of_place" else self.in_place
        bad = np.array([np.count_nonzero(result != expected(self.count, rr.size(), self.dtype, self.op))])
        return int(rr.allreduce_(bad, rr.Sum)[0])


def write_json(args: argparse.Namespace, rows: list[dict[str, Any]], method: str | None, **more: Any) -> None:
    """The figures with what is needed to understand them later; times in microseconds, rates in GB/s."""
    if not args.json:
        return
    report = {
        "args": {name: str(value) for name, value in vars(args).items() if name not in ("json", "subcommand")},
        "ranks": rr.size(),
        "ringred_version": rr.__version__,
        "machine": {"processor": table.processor(), "cores": table.cores(), "system": platform.release()},
        "end_time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "method": (method or "").partition("\n\n")[2].strip(),
        "results": rows,
        **more,
    }
    args.json.write_text(json.dumps(report, indent=1) + "\n")
