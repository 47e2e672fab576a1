"""Time allreduce (fp32, sum) of ringred and of MPI over hosts that are made on this machine (tools/cluster.py).

    python benchmarks/two_hosts.py [--layout 2+2] [--rate 1gbit] [--rounds 7] [--python PYTHON] [--output NAME]

Both libraries run in one job, in turn: a round times each of them once at each size, so a busy minute of the machine
meets both. A figure is the median over the rounds, each the mean over many calls, of the slowest rank. Buffers are
written anew before each round, and every result is checked. What the link itself does is measured beside it: by TCP
alone (raw_link.py), and by messages of that MPI between two ranks of two hosts, the best of several.

The link bound is the least that an allreduce needs: one message's latency, and the time of its bytes on a host's link,
with the better figures of the two. Each of H hosts sends and gets 2 (H - 1) / H of the buffer. The hosts share this
machine's memory and cores, so without a --rate the link is as fast as the cores copy.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import os
import platform
import socket
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tools")]

SIZES = [8, 64, 512, 4096, 32768, 262144, 1 << 20, 4 << 20, 16 << 20, 64 << 20]
JOB_SECONDS = 900.0
RAW_SECONDS = 120.0
READY_SECONDS = 10.0
REPETITION_SECONDS = 0.1  # of one library at one size in one round
MOST_ITERATIONS = 1000
RAW_PORT = 5000
MESSAGE_BYTES = 4 << 20
ROUND_TRIPS = 500


def main() -> int:
    """Make the hosts, run the job there, print the table."""
    from cluster import Cluster
    from run_on_hosts import find_mpi, layout_of, start

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layout", type=layout_of, default=[2, 2], help="ranks of each host (default: 2+2)")
    parser.add_argument("--interleaved", action="store_true", help="deal ranks out one host after the other")
    parser.add_argument("--rate", help="limit each host's link, e.g. to 1gbit")
    parser.add_argument("--bytes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--carrier", choices=["mpi", "tcp"], default="mpi", help="ringred's link: RINGRED_LINK")
    parser.add_argument("--python", default=sys.executable, help="the ranks' interpreter: its mpi4py chooses the MPI")
    parser.add_argument("--timeout", type=float, default=JOB_SECONDS)
    parser.add_argument("--output", type=Path, help="write OUTPUT.json and OUTPUT.md")
    args = parser.parse_args()
    if len(args.layout) < 2 or any(size < 4 or size % 4 for size in args.bytes):
        parser.error("--layout names two hosts or more, and --bytes are multiples of 4")
    mpi = find_mpi(args.python)
    with Cluster(len(args.layout)) as cluster:
        if args.rate:
            cluster.throttle(args.rate)
        raw = raw_link(cluster)
        words = [args.python, str(HERE / "two_hosts.py"), "rank", str(args.rounds), *map(str, args.bytes)]
        environment = {**os.environ, "RINGRED_LINK": args.carrier}
        ended = start(cluster, args.layout, words, mpi, environment, interleaved=args.interleaved).wait(args.timeout)
    rows = [json.loads(line) for line in ended.text.splitlines() if line.startswith("{")]
    layout = "+".join(map(str, args.layout)) + (" interleaved" if args.interleaved else "")
    text = page(layout, args.rate, mpi.flavour, args.carrier, args.rounds, raw, rows)
    print(text)
    if ended.status != 0:
        late = f"it was ended after {args.timeout:g} s" if ended.timed_out else f"exit code {ended.status}"
        others = [line for line in ended.text.splitlines() if not line.startswith("{")]
        print(f"two_hosts.py: the job did not come to its end: {late}", *others[-30:], sep="\n", file=sys.stderr)
    if args.output:
        args.output.with_suffix(".md").write_text(text + "\n")
        data = {
            "layout": layout,
            "rate": args.rate,
            "carrier": args.carrier,
            "rounds": args.rounds,
            "raw": raw,
            "rows": rows,
        }
        args.output.with_suffix(".json").write_text(json.dumps(data, indent=1) + "\n")
    return 0 if ended.status == 0 else 1


def raw_link(cluster: Any) -> dict[str, float]:
    """What TCP does between the first and the last host."""
    program = [sys.executable, "-IS", str(HERE / "raw_link.py")]
    server = cluster.start(cluster.hosts[-1], [*program, "serve", str(RAW_PORT)])
    deadline = time.monotonic() + READY_SECONDS
    while "ready" not in server.text() and time.monotonic() < deadline:
        time.sleep(0.01)
    words = [*program, "measure", cluster.hosts[-1], str(RAW_PORT)]
    ended = cluster.run(cluster.hosts[0], words, RAW_SECONDS)
    if ended.status != 0:
        raise SystemExit(f"two_hosts.py: TCP could not be measured: {ended.text}{server.text()}")
    server.wait(READY_SECONDS)
    return dict(json.loads(ended.text))


def page(
    layout: str, rate: str | None, mpi: str, carrier: str, rounds: int, raw: dict[str, float], rows: list[Any]
) -> str:
    """The figures as a page in Markdown."""
    from ringred.cli.bench_table import cores, processor

    date = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")
    machine = f"{processor()}, {cores()} cores, {platform.system()} {platform.release()}"
    lines = [
        f"# Allreduce over {len(layout.split('+'))} hosts ({layout}), {date}",
        "",
        f"Machine: {machine}. Link: {rate or 'not limited'}. MPI: {mpi}. ringred over {carrier.upper()}.",
        f"Rounds: {rounds}.",
        "",
        f"- TCP alone: {link_text(raw)}",
    ]
    lines += [f"- {row['mpi']}: {link_text(row)}" for row in rows if "mpi" in row]
    refusals = dict.fromkeys(row["refusal"] for row in rows if "refusal" in row)
    lines += [f"- ringred does not do this here: {refusal}" for refusal in refusals]
    timed = [row for row in rows if "bytes" in row]
    ours = ["ringred arena", "ringred private"]
    heads = ["bytes", *ours, mpi, "arena / MPI", "private / MPI", "link bound", "MPI / link bound"]
    lines += ["", "Microseconds and ratios", "", "| " + " | ".join(heads) + " |", "|--:" * len(heads) + "|"]
    hosts = len(layout.split("+"))
    links = [raw, *(row for row in rows if "mpi" in row)]
    latency, bandwidth = min(link["latency_us"] for link in links), max(link["both_ways"] for link in links)
    for row in timed:
        bound = latency + 2 * (hosts - 1) / hosts * row["bytes"] / bandwidth * 1e6
        theirs, values = row["us"]["MPI"], [row["us"].get(name) for name in ours]
        cells = [str(row["bytes"]), *(number(value) for value in [*values, theirs])]
        cells += [*(ratio(value, theirs) for value in values), number(bound), ratio(theirs, bound)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def link_text(figures: dict[str, float]) -> str:
    """Latency and bandwidths in words."""
    one_way, both_ways = (figures[name] * 8 / 1e9 for name in ("one_way", "both_ways"))
    return (
        f"{figures['latency_us']:.1f} us one way, {one_way:.2f} gbit/s in one direction alone, "
        f"{both_ways:.2f} gbit/s in each of two"
    )


def number(value: float | None) -> str:
    """Microseconds as text."""
    return "-" if value is None else f"{value:.1f}"


def ratio(value: float | None, other: float) -> str:
    """Two figures' ratio as text."""
    return "-" if value is None else f"{value / other:.3f}"


def rank_main(rounds: int, sizes: list[int]) -> None:
    """What each rank of the job does; rank 0 prints a JSON line for the link, for a refusal, and for each size."""
    from time_allreduce import Mpi, Ringred, check, repetition

    mpi = Mpi("MPI")
    tell({"mpi": "messages of this MPI", **message_figures(mpi)}, mpi)
    ringred = unless_refused(mpi, Ringred)
    for size in sizes:
        cases = mpi.cases(size // 4)
        if ringred is not None:
            cases |= unless_refused(mpi, functools.partial(ringred_cases, ringred, size // 4)) or {}
        iterations = {}
        for name, (source, result, call) in cases.items():
            check(mpi, source, result, call)
            source.fill(0)  # a sum in place would grow; zeros stay zeros and take as long
            once = repetition(mpi, call, 2) / 1e6
            iterations[name] = max(1, min(MOST_ITERATIONS, int(REPETITION_SECONDS / once)))
        times: dict[str, list[float]] = {name: [] for name in cases}
        for turn in range(rounds):
            names = list(cases)
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                source, _, call = cases[name]
                source.fill(0)
                times[name].append(repetition(mpi, call, iterations[name]))
        for source, result, call in cases.values():
            check(mpi, source, result, call)
        tell({"bytes": size, "us": {name: statistics.median(values) for name, values in times.items()}}, mpi)


def ringred_cases(ringred: Any, count: int) -> dict[str, Any]:
    """What of ringred is timed, each called once."""
    cases = {name: case for name, case in ringred.cases(count).items() if name.startswith("ringred")}
    for _, _, call in cases.values():
        call()
    return cases


def unless_refused(mpi: Any, action: Callable[[], Any]) -> Any:
    """What ringred gives, or None where it refuses, which rank 0 tells; all ranks have the same outcome."""
    refusal, given = None, None
    try:
        given = action()
    except Exception as error:
        refusal = f"{type(error).__name__}: {error}"
    refusals = [text for text in mpi.world.allgather(refusal) if text is not None]
    if refusals:
        tell({"refusal": refusals[0]}, mpi)
    return None if refusals else given


def message_figures(mpi: Any) -> dict[str, float]:
    """Latency and bandwidth of messages between rank 0 and the first rank of another host; the others wait."""
    import numpy as np

    world = mpi.world
    names = world.allgather(socket.gethostname())
    other = next(rank for rank, name in enumerate(names) if name != names[0])
    peer = {0: other, other: 0}.get(mpi.rank)
    out, back, byte = np.zeros(MESSAGE_BYTES, np.uint8), np.zeros(MESSAGE_BYTES, np.uint8), np.zeros(1, np.uint8)

    def there_and_back() -> None:
        for step in (world.Send, world.Recv) if mpi.rank == 0 else (world.Recv, world.Send):
            step(byte, peer)

    def one_way() -> None:
        if mpi.rank == 0:
            world.Send(out, peer)
        else:
            world.Recv(back, peer)

    def both_ways() -> None:
        world.Sendrecv(out, peer, 0, back, peer, 0)

    def seconds(call: Callable[[], None], iterations: int) -> float:
        values = []
        for _ in range(9):
            world.Barrier()
            start = time.perf_counter()
            if peer is not None:
                for _ in range(iterations):
                    call()
            values.append(float(mpi.slowest((time.perf_counter() - start) / iterations)))
        return min(values)

    latency = seconds(there_and_back, ROUND_TRIPS) / 2
    one, both = (MESSAGE_BYTES / seconds(call, 4) for call in (one_way, both_ways))
    return {"latency_us": latency * 1e6, "one_way": one, "both_ways": both}


def tell(row: dict[str, Any], mpi: Any) -> None:
    """Print a row on rank 0."""
    if mpi.rank == 0:
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["rank"]:
        rank_main(int(sys.argv[2]), [int(size) for size in sys.argv[3:]])
    else:
        sys.exit(main())
