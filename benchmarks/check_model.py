"""How far `ringred simulate` is from measurements: forced algorithms on one node, here, beside the model; or what
two_hosts.py has written of several hosts of as many ranks, beside the model of them.

    python benchmarks/check_model.py
    python benchmarks/check_model.py two-hosts.json ...

Alpha, beta and gamma are calibrated on two ranks from three times: the ring at CALIBRATION[0] bytes, and the ring and
recursive doubling at CALIBRATION[1]. Everything else is predicted with them. Prints a table in Markdown: microseconds
measured (the best over the rounds of the benchmark's best, in place), predicted, and predicted / measured.

Of hosts, the card's alpha and beta are the latency and the bandwidth both ways that two_hosts.py measured of messages
alone, and memory's are NODE_COSTS, which the first form printed.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

from ringred import _core
from ringred.cli import bench_table

ALGORITHMS = [row[0] for row in _core.algorithm_table()]
RANKS = (2, 4)
ROUNDS = 3
SIZES = [1 << 10, 1 << 14, 1 << 18, 1 << 22]
CALIBRATION = (1 << 10, 1 << 18)
NODE_COSTS = (0.79e-6, 0.0253e-9, 0.0886e-9)  # alpha, beta, gamma: docs/scaling.md


def measure(algorithm: str, ranks: int) -> dict[int, float]:
    """Seconds by size, as `ringred bench` takes them."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figures.json"
        words = ["-np", str(ranks), "-b", str(SIZES[0]), "-e", str(SIZES[-1]), "-f", "16", "-N", "5"]
        command = [sys.executable, "-P", "-m", "ringred", "bench", "allreduce", *words, "--json", str(file)]
        environment = {**os.environ, "RINGRED_ALGORITHM": algorithm}
        subprocess.run(command, check=True, env=environment, cwd=folder, stdout=subprocess.DEVNULL)
        rows = json.loads(file.read_text())["results"]
    return {row["size"]: row["in_place"]["time"] * 1e-6 for row in rows if row["size"] in SIZES}


def calibrate(ring: dict[int, float], doubling: dict[int, float]) -> tuple[float, float, float]:
    """Alpha, beta, gamma of two ranks: ring 2 alpha + 2 S beta + S/2 gamma, doubling alpha + 2 S beta + S gamma."""
    small, large = CALIBRATION
    alpha = ring[small] / 2
    gamma = max(0.0, 2 * (doubling[large] - ring[large] + alpha) / large)
    beta = max(0.0, (ring[large] - 2 * alpha - large * gamma / 2) / (2 * large))
    return alpha, beta, gamma


def predict(
    algorithm: str,
    ranks: int,
    size: int,
    costs: tuple[float, float, float],
    nodes: int = 1,
    card: tuple[float, float] = (0.0, 0.0),
) -> float:
    """Seconds of the model. `ranks`: of each node."""
    alpha, beta, gamma = costs
    result = _core.simulate(
        algorithm,
        nodes=nodes,
        local=ranks,
        bytes=float(size),
        pipeline_chunks=0,
        memory=(alpha, beta),
        card=card,
        nodes_per_switch=0,
        uplinks=1,
        core=(0.0, 0.0),
        gamma=gamma,
        step=0.0,
    )
    seconds: float = result["seconds"]
    return seconds


def compare_hosts(file: Path) -> None:
    """Print what was measured over hosts beside the model."""
    figures = json.loads(file.read_text())
    ranks = [int(number) for number in figures["layout"].split("+")]
    if len(set(ranks)) != 1:
        raise SystemExit(f"check_model.py: the model has as many ranks on every node, {file} has {figures['layout']}")
    links = [figures["raw"], *(row for row in figures["rows"] if "mpi" in row)]
    card = min(link["latency_us"] for link in links) * 1e-6, 1 / max(link["both_ways"] for link in links)
    print(f"\n{file.name}: card {card[0] * 1e6:.1f} us, {card[1] * 1e9:.2f} ns/B\n")
    print("| bytes | measured | predicted | predicted / measured |\n|--:|--:|--:|--:|")
    for row in figures["rows"]:
        if "bytes" not in row:
            continue
        measured = row["us"]["ringred arena"]
        predicted = predict("hierarchical", ranks[0], row["bytes"], NODE_COSTS, len(ranks), card) * 1e6
        print(f"| {row['bytes']} | {measured:.1f} | {predicted:.1f} | {predicted / measured:.2f} |")


def main() -> None:
    """Measure, calibrate, print."""
    if len(sys.argv) > 1:
        for name in sys.argv[1:]:
            compare_hosts(Path(name))
        return
    measured: dict[tuple[str, int], dict[int, float]] = {}
    for _ in range(ROUNDS):  # interleaved, so that a busy minute of the machine meets all alike
        for key in [(name, ranks) for ranks in RANKS for name in ALGORITHMS]:
            times = measure(*key)
            measured[key] = {size: min(times[size], measured.get(key, times)[size]) for size in SIZES}
    costs = calibrate(measured["ring", 2], measured["recursive_doubling", 2])
    print(f"Machine: {bench_table.processor()}, {bench_table.cores()} cores, Linux {platform.release()}.")
    print(f"alpha {costs[0] * 1e6:.2f} us, beta {costs[1] * 1e9:.4f} ns/B, gamma {costs[2] * 1e9:.4f} ns/B\n")
    print("| algorithm | ranks |" + "".join(f" {size >> 10} KiB |" for size in SIZES))
    print("|---|--:|" + "--:|" * len(SIZES))
    for (name, ranks), times in measured.items():
        cells = [
            f" {times[size] * 1e6:.1f}, {predicted * 1e6:.1f}: {predicted / times[size]:.2f} |"
            for size in SIZES
            for predicted in [predict(name, ranks, size, costs)]
        ]
        print(f"| {name} | {ranks} |" + "".join(cells))


if __name__ == "__main__":
    main()
