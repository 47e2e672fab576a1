"""``ringred simulate --nodes 1024 --local 8 --bytes 100M``: the cost of an allreduce on a machine that is not here.

Plays the schedules on modelled hardware with contention (csrc/schedule/simulate.h). docs/scaling.md tells what the
model is, what it leaves out, and what limits each algorithm.
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path
from typing import Any

from ringred import _core
from ringred.cli import hardware
from ringred.cli.bench_table import rates, size_in_bytes
from ringred.errors import UsageError

ALGORITHMS = [*(row[0] for row in _core.algorithm_table()), "hierarchical"]
LARGEST = 16384  # ranks; as in csrc/algorithms/forecast.h

# Two more switches on the way, each of the order of a quarter of a microsecond: an assumption.
CORE_ALPHA = 0.5e-6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--nodes", type=int, default=16, help="number of nodes (default 16)")
    parser.add_argument("--local", type=int, default=8, help="ranks on a node, 64 at most (default 8)")
    parser.add_argument("--bytes", type=size_in_bytes, default="100M", help="the vector (K, M, G: 1024s; default 100M)")
    parser.add_argument(
        "--algorithm", nargs="+", choices=ALGORITHMS, default=ALGORITHMS, metavar="NAME", help=", ".join(ALGORITHMS)
    )
    parser.add_argument("--chunks", type=int, default=0, help="depth of double_tree's pipeline (default: by size)")
    parser.add_argument("--scaling", action="store_true", help=f"also the time from 2 to {LARGEST} ranks")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw these times; .svg, or .png with matplotlib")
    model = parser.add_argument_group("hardware")
    model.add_argument(
        "--link",
        type=hardware.link,
        default="infiniband-hdr",
        help=f"a node's network card, in each direction: {', '.join(hardware.PRESETS)}, "
        "or alpha=5us,bandwidth=12.5GB/s (default infiniband-hdr)",
    )
    model.add_argument(
        "--memory",
        type=hardware.described_link,
        default="alpha=0.5us,bandwidth=100GB/s",
        help="a node's memory, shared by its ranks (default alpha=0.5us,bandwidth=100GB/s)",
    )
    model.add_argument("--switch", type=int, default=0, metavar="NODES", help="nodes below one switch (default: all)")
    model.add_argument(
        "--oversubscription",
        type=float,
        default=1.0,
        metavar="FACTOR",
        help="by how much the cards below a switch exceed its way to the core; needs --switch (default 1)",
    )
    model.add_argument(
        "--reduce", type=hardware.rate, default="10GB/s", help="what a rank reduces in a second (default 10GB/s)"
    )
    model.add_argument(
        "--step", type=hardware.duration, default="0.1us", help="a rank's time for a step (default 0.1us)"
    )


def run(args: argparse.Namespace) -> int:
    """Print the tables."""
    check(args)
    print(preamble(args))
    print(table([head(args), *(row(args, name) for name in args.algorithm)]))
    if args.scaling or args.plot:
        curves = scaling(args)
        print(f"\n# time by number of ranks, {args.local} on a node, {args.bytes} bytes; * is the fastest")
        print(table(scaling_rows(curves)))
        if args.plot:
            from ringred.cli import plot

            title = f"Allreduce of {args.bytes / 2**20:.4g} MiB, {args.local} ranks a node, {args.link}"
            plot.write(args.plot, title, "ranks", "seconds", curves)
            print(f"# wrote {args.plot}")
    return 0


def check(args: argparse.Namespace) -> None:
    """Refuse, before anything is computed, what would only fail later."""
    if args.oversubscription <= 0 or (args.oversubscription != 1 and not args.switch):
        raise UsageError(
            "--oversubscription is a number above 0 and needs --switch, the nodes below one switch: "
            f"--oversubscription is {args.oversubscription:g}, --switch {args.switch}."
        )
    if args.plot:
        from ringred.cli import plot

        plot.check(args.plot)


def simulate(args: argparse.Namespace, algorithm: str, nodes: int, local: int) -> dict[str, Any]:
    """Simulate one algorithm on so many nodes of the machine that the options describe."""
    nodes_per_switch = args.switch if args.switch < nodes else 0
    # Links as fast as a card, but for a factor near 1 where their number would not be whole.
    uplinks = max(1, round(nodes_per_switch / args.oversubscription))
    return cached(
        algorithm,
        nodes=nodes,
        local=local,
        bytes=float(args.bytes),
        pipeline_chunks=args.chunks,
        memory=args.memory.costs,
        card=args.link.costs,
        nodes_per_switch=nodes_per_switch,
        uplinks=uplinks,
        core=(CORE_ALPHA, uplinks * args.oversubscription / (args.link.bandwidth * max(1, nodes_per_switch))),
        gamma=1 / args.reduce,
        step=args.step,
    )


@functools.cache
def cached(algorithm: str, **model: Any) -> dict[str, Any]:
    """The machine asked for is often one of those of the curves."""
    return _core.simulate(algorithm, **model)


def preamble(args: argparse.Namespace) -> str:
    """What is simulated, and what the columns are."""
    switches = (
        f"{args.switch} nodes a switch, oversubscribed {args.oversubscription:g} times" if args.switch else "one switch"
    )
    return (
        f"# ringred simulate: allreduce of {args.bytes} bytes on {args.nodes} nodes of {args.local} ranks; a model\n"
        f"# card {args.link}; memory {args.memory}; {switches}\n"
        f"# a rank reduces {args.reduce / 1e9:.4g} GB/s, a step takes {args.step * 1e6:.4g} us\n"
        "# busbw: GB/s, as nccl-tests defines it; links: how busy the busiest one is, and the bytes of one on average"
    )


def head(args: argparse.Namespace) -> list[str]:
    """The names of the columns of `row`."""
    return ["algorithm", "time", "busbw", *kinds(args)]


def kinds(args: argparse.Namespace) -> list[str]:
    """The links that this machine has."""
    names = ["memory"]
    if args.nodes > 1:
        names += ["card out", "card in"]
    if 0 < args.switch < args.nodes:
        names += ["core up", "core down"]
    return names


def row(args: argparse.Namespace, algorithm: str) -> list[str]:
    """Time, bus bandwidth and loads of one algorithm on the machine asked for."""
    result = simulate(args, algorithm, args.nodes, args.local)
    seconds = result["seconds"]
    ranks = args.nodes * args.local
    name = f"{algorithm} ({result['across']})" if result["across"] and args.nodes > 1 else algorithm
    rate = f"{rates(seconds, args.bytes, ranks)['bus_bw']:.2f}" if seconds > 0 else "-"
    loads = [result["loads"][kind] for kind in kinds(args)]
    return [name, in_units(seconds), rate, *(f"{load['busiest']:4.0%} {bytes_of_one(load)}" for load in loads)]


def bytes_of_one(load: dict[str, Any]) -> str:
    """The bytes of a link, the mean of its kind."""
    mean = load["bytes"] / load["links"]
    unit, factor = ("GB", 1e-9) if mean >= 1e9 else ("MB", 1e-6) if mean >= 1e6 else ("KB", 1e-3)
    return f"{mean * factor:.4g} {unit}".rjust(9)


def shapes(local: int) -> list[tuple[int, int]]:
    """(nodes, ranks on each) whose product doubles from 2 to LARGEST: first a node that fills, then more nodes."""
    filling = [(1, 2**power) for power in range(1, local.bit_length()) if 2**power < local]
    nodes = [2**power for power in range(LARGEST.bit_length()) if 2**power * local <= LARGEST]
    return filling + [(count, local) for count in nodes if count * local > 1]


def scaling(args: argparse.Namespace) -> dict[str, list[tuple[int, float]]]:
    """(ranks, seconds) by algorithm."""
    return {
        name: [(nodes * local, simulate(args, name, nodes, local)["seconds"]) for nodes, local in shapes(args.local)]
        for name in args.algorithm
    }


def scaling_rows(curves: dict[str, list[tuple[int, float]]]) -> list[list[str]]:
    """Number of ranks by algorithm; the fastest of a row is marked if there are several."""
    rows = [["ranks", *curves]]
    for points in zip(*curves.values(), strict=True):
        best = min(seconds for _, seconds in points) if len(points) > 1 else -1.0
        rows.append(
            [str(points[0][0]), *(in_units(seconds) + ("*" if seconds == best else " ") for _, seconds in points)]
        )
    return rows


def in_units(seconds: float) -> str:
    """Four digits and a unit."""
    unit, factor = ("s", 1.0) if seconds >= 1 else ("ms", 1e3) if seconds >= 1e-3 else ("us", 1e6)
    return f"{seconds * factor:.4g} {unit}"


def table(rows: list[list[str]]) -> str:
    """Columns as wide as they need; the first one to the left, the others to the right."""
    widths = [max(len(one[column]) for one in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.rjust(width) if column else cell.ljust(width) for column, (cell, width) in enumerate(pairs))
        for pairs in (list(zip(one, widths, strict=True)) for one in rows)
    )
