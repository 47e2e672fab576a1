"""The benchmark's text: sizes, rates and rows as nccl-tests prints them, with further columns at the end.

algbw = size / time and busbw = algbw * 2 (n - 1) / n for allreduce on n ranks, in GB/s of 1e9 bytes, as nccl-tests
defines them (its doc/PERFORMANCE.md).
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any


def size_in_bytes(text: str) -> int:
    """Read "8", "64K", "2M" or "1G" (1024s)."""
    shift = {"K": 10, "M": 20, "G": 30}.get(text[-1:].upper(), 0)
    digits = text[:-1] if shift else text
    if not digits.isdigit() or int(digits) == 0:
        raise argparse.ArgumentTypeError(f"a size is a whole number above 0, or one with K, M or G behind it: {text!r}")
    return int(digits) << shift


def factor(text: str) -> float:
    """Read the factor between two sizes."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"-f must be a number above 1: {text!r}")
    return value


def rates(seconds: float, size: int, ranks: int) -> dict[str, float]:
    """Time in microseconds, algbw and busbw in GB/s."""
    algbw = size / seconds / 1e9
    return {"time": seconds * 1e6, "alg_bw": algbw, "bus_bw": algbw * 2 * (ranks - 1) / ranks}


def preamble(args: argparse.Namespace, ranks: int) -> str:
    """The lines before the first row."""
    step = f"step: {args.f:g}(factor)"
    lines = [
        f"# ringred bench allreduce: {ranks} ranks, arrays in {args.memory} memory, best of {args.N} repetitions, "
        "slowest rank, buffers written anew before each",
        f"# nThread 1 nGpus 0 minBytes {args.b} maxBytes {args.e} {step} warmup iters: {args.w} "
        f"iters: {args.n or 'by size'} agg iters: 1 validation: {args.c} graph: 0",
        *(
            ["# ratio: in-place time over the time beside it; below 1 is faster"]
            if args.compare or args.roofline
            else []
        ),
        *(["# memory bound: numpy scales S bytes in place, its call included"] if args.roofline else []),
        "#",
    ]
    extra = [" " * 19 + "MPI" for _ in [0] if args.compare] + [" " * 14 + "memory bound" for _ in [0] if args.roofline]
    heads = [("time", "ratio")] * (bool(args.compare) + args.roofline)
    units = [("(us)", "")] * len(heads)
    rate = "  {:>7}  {:>6}  {:>6}  {:>6}"
    body = "# {:>10}  {:>12}  {:>8}  {:>6}  {:>6}" + rate + rate + "  {:>12}  {:>8}" * len(heads)
    titles = ["time", "algbw", "busbw", "#wrong"]
    dimensions = ["(us)", "(GB/s)", "(GB/s)", ""]
    lines.append("# " + " " * 52 + f"{'out-of-place':>26}" + f"{'in-place':>30}" + "".join(extra))
    lines.append(body.format("size", "count", "type", "redop", "root", *titles, *titles, *sum(heads, ())))
    lines.append(body.format("(B)", "(elements)", "", "", "", *dimensions, *dimensions, *sum(units, ())))
    return "\n".join(lines)


def line(row: dict[str, Any], args: argparse.Namespace) -> str:
    """One row. A ratio is the in-place time over the compared time: below 1 is faster."""
    text = f"{row['size']:12d}  {row['count']:12d}  {row['type']:>8}  {row['redop']:>6}  {-1:6d}"
    for name in ("out_of_place", "in_place"):
        one = row[name]
        wrong = str(one["nwrong"]) if args.c else "N/A"
        text += f"  {number(one['time']):>7}  {number(one['alg_bw']):>6}  {number(one['bus_bw']):>6}  {wrong:>6}"
    for name in ("mpi", "roofline"):
        if name in row:
            text += f"  {number(row[name]['time']):>12}  {row['in_place']['time'] / row[name]['time']:8.3f}"
    return text


def footer(rows: list[dict[str, Any]]) -> str:
    """The lines after the last row."""
    wrong = sum(row["out_of_place"]["nwrong"] + row["in_place"]["nwrong"] for row in rows)
    return (
        f"# Out of bounds values : {wrong} {'FAILED' if wrong else 'OK'}\n"
        f"# Avg bus bandwidth    : {average_bus_bandwidth(rows):g}"
    )


def average_bus_bandwidth(rows: list[dict[str, Any]]) -> float:
    """The mean over all rows, both ways."""
    rates_of_all = [row[name]["bus_bw"] for row in rows for name in ("out_of_place", "in_place")]
    return sum(rates_of_all) / len(rates_of_all) if rates_of_all else 0.0


def number(value: float) -> str:
    """At most seven letters, with the digits that say something."""
    return f"{value:.2f}" if value < 1000 else f"{value:.1f}" if value < 100000 else f"{value:.0f}"


def processor() -> str:
    """The processor's name as the system tells it."""
    for text in Path("/proc/cpuinfo").read_text().splitlines():
        if text.startswith("model name"):
            return text.partition(":")[2].strip()
    return "unknown"


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))
