"""How far `ringred simulate` is from measurements: forced algorithms on one node, here, beside the model.

    python benchmarks/check_model.py

Alpha, beta and gamma are calibrated on two ranks from three times: the ring at CALIBRATION[0] bytes, and the ring and
recursive doubling at CALIBRATION[1]. Everything else is predicted with them. Prints a table in Markdown: microseconds
measured (the best over the rounds of the benchmark's best, in place), predicted, and predicted / measured.
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


def predict(algorithm: str, ranks: int, size: int, costs: tuple[float, float, float]) -> float:
    """Seconds of the model."""
    alpha, beta, gamma = costs
    result = _core.simulate(
        algorithm,
        nodes=1,
        local=ranks,
        bytes=float(size),
        pipeline_chunks=0,
        memory=(alpha, beta),
        card=(0.0, 0.0),
        nodes_per_switch=0,
        uplinks=1,
        core=(0.0, 0.0),
        gamma=gamma,
        step=0.0,
    )
    seconds: float = result["seconds"]
    return seconds


def main() -> None:
    """Measure, calibrate, print."""
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
