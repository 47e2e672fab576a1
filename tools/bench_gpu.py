"""Build the benchmarks for GPUs and run them on the GPU of this machine: `make bench-gpu`.

    python tools/bench_gpu.py [--output DIRECTORY] [--only WORD]

First the kernels, then training steps of two ranks (benchmarks/gpu/gpu_training.py), for which the Python module is
built; where the interpreter has no torch, a sentence says that they were left out. Tables go to standard output; those
of kernels as DATE-gpu-NAME.md and .json, figures of training as DATE-gpu-training.json into DIRECTORY
(benchmarks/results). Where there is no GPU, a sentence says so and nothing is built.
"""

from __future__ import annotations

import argparse
import datetime
import shutil
import subprocess
import sys
from pathlib import Path
from typing import IO

import gpu_build
import store_ranks

RUN_SECONDS = 480.0
RANKS = 2
TRAINING = gpu_build.ROOT / "benchmarks" / "gpu" / "gpu_training.py"


def main() -> int:
    """Build and run; 1 if a command failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", default=str(gpu_build.ROOT / "benchmarks" / "results"), metavar="DIRECTORY")
    words = "fusion, reductions, updates, leaves or schedules; or training"
    parser.add_argument("--only", default="", metavar="WORD", help=words)
    args = parser.parse_args()
    if not gpu_build.has_gpu():
        print(gpu_build.NO_GPU + "nothing was measured.")
        return 0
    if missing := gpu_build.missing_tool():
        print(f"ringred: nothing was measured: {missing}.", file=sys.stderr)
        return 1
    kernels = args.only == "training" or measure_kernels(args)
    training = args.only not in ("", "training") or measure_training(args)
    return 0 if kernels and training else 1


def measure_kernels(args: argparse.Namespace) -> bool:
    """Build and run their benchmark; whether it went well."""
    program = gpu_build.BUILD / "benchmarks" / "gpu" / "gpu_bench"
    builds = [
        gpu_build.configure_command(gpu_build.BUILD, with_module=False),
        gpu_build.build_command(gpu_build.BUILD, "gpu_bench"),
    ]
    only = ["--only", args.only] if args.only else []
    return all(run(command, sys.stderr) for command in builds) and run([str(program), "--output", args.output, *only])


def measure_training(args: argparse.Namespace) -> bool:
    """Build the Python module and train with two ranks; whether it went well, or cannot be done here."""
    if against := gpu_build.reason_against_module():
        print(f"ringred: no training steps were measured: {against}.")
        return True
    build = gpu_build.BUILD
    shutil.rmtree(gpu_build.site_of(build), ignore_errors=True)
    builds = [
        gpu_build.configure_command(build, with_module=True),
        gpu_build.build_command(build, "python_modules"),
        gpu_build.install_command(build),
    ]
    if not all(run(command, sys.stderr) for command in builds) or not gpu_build.link_package(build):
        return False
    figures = Path(args.output, f"{datetime.date.today()}-gpu-training.json")
    words = [str(TRAINING), "--json", str(figures)]
    variables = {**gpu_build.environment(), **gpu_build.module_variables(build)}
    if failure := store_ranks.run(words, variables, RANKS, RUN_SECONDS, build):
        print(f"ringred: this failed: {failure}", file=sys.stderr)
    return failure is None


def run(command: list[str], output: IO[str] | None = None) -> bool:
    """Run a command and say how it failed, if it did. What builds write goes to standard error: tables have the other.

    Returns:
        Whether it went well.
    """
    try:
        ended = subprocess.run(command, env=gpu_build.environment(), stdout=output, timeout=RUN_SECONDS, check=False)
        how = f"exit code {ended.returncode}" if ended.returncode else ""
    except subprocess.TimeoutExpired:
        how = f"not finished after {RUN_SECONDS:.0f} s"
    if how:
        print(f"ringred: this failed ({how}): {' '.join(command)}", file=sys.stderr)
    return not how


if __name__ == "__main__":
    sys.exit(main())
