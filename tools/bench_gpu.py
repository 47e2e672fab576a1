"""Build the benchmark of kernels and run it on the GPU of this machine: `make bench-gpu`.

    python tools/bench_gpu.py [--output DIRECTORY] [--only WORD]

The table goes to standard output and, as DATE-gpu-NAME.md and .json, into DIRECTORY (benchmarks/results). Where there
is no GPU, a sentence says so and nothing is built.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from typing import IO

import gpu_build

RUN_SECONDS = 480.0


def main() -> int:
    """Build and run; 1 if a command failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", default=str(gpu_build.ROOT / "benchmarks" / "results"), metavar="DIRECTORY")
    parser.add_argument("--only", default="", metavar="WORD", help="fusion, reductions, updates, leaves or schedules")
    args = parser.parse_args()
    if not gpu_build.has_gpu():
        print(gpu_build.NO_GPU + "nothing was measured.")
        return 0
    if missing := gpu_build.missing_tool():
        print(f"ringred: nothing was measured: {missing}.", file=sys.stderr)
        return 1
    program = gpu_build.BUILD / "benchmarks" / "gpu" / "gpu_bench"
    commands = [
        gpu_build.configure_command(gpu_build.BUILD, with_module=False),
        gpu_build.build_command(gpu_build.BUILD, "gpu_bench"),
        [str(program), "--output", args.output, *(["--only", args.only] if args.only else [])],
    ]
    for command in commands:
        # What builds write goes to standard error: standard output is for the table.
        output = None if command is commands[-1] else sys.stderr
        status = run(command, output)
        if status != 0:
            print(f"ringred: this failed ({status}): {' '.join(command)}", file=sys.stderr)
            return 1
    return 0


def run(command: list[str], output: IO[str] | None) -> int | str:
    """Run a command and return its exit code, or that it took too long."""
    try:
        ended = subprocess.run(command, env=gpu_build.environment(), stdout=output, timeout=RUN_SECONDS, check=False)
        return ended.returncode
    except subprocess.TimeoutExpired:
        return f"not finished after {RUN_SECONDS:.0f} s"


if __name__ == "__main__":
    sys.exit(main())
