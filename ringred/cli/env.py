"""``ringred env``: what ringred finds on this machine, for a bug report. The settings are those of the core's table."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import resource
import subprocess
import sys

from ringred import _core, environment
from ringred.cli.bench_table import processor
from ringred.cores import usable_cores
from ringred.version import __version__


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """There are no options."""


def run(args: argparse.Namespace) -> int:
    """Print one line for each fact."""
    print(f"ringred            {__version__}, kernels for {_core.instruction_set()}")
    print(f"python             {platform.python_version()} ({sys.prefix})")
    for package in ("numpy", "torch", "mpi4py"):
        print(f"{package:18} {_version(package)}")
    print(f"MPI library        {_mpi_library()}")
    print(f"system             {platform.system()} {platform.release()}, {processor()}")
    print(f"usable cores       {usable_cores()} of {os.cpu_count()}")
    soft, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    print(f"file size limit    {'none' if soft == resource.RLIM_INFINITY else soft}")
    print("\nsetting                      value (default)")
    reading = environment.read()
    twins = {ours: horovod for horovod, ours in reading.twins.items()}
    for name, default, must_agree, text in _core.setting_table():
        value = reading.settings.get(name)
        shown = f"{value} ({default})" if value is not None else f"({default or 'not set'})"
        if name in twins:
            shown += f", from {twins[name]}"
        print(f"{name:28} {shown}\n{'':28} {text}{' The same on all ranks.' if must_agree else ''}")
    for problem in reading.problems:
        print(f"\n{problem}")
    return 0


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _mpi_library() -> str:
    """What mpi4py would load, asked in a process of its own so that this one does not start MPI."""
    command = [sys.executable, "-m", "mpi4py", "--mpi-lib-version"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return answer.stdout.strip().splitlines()[0] if answer.returncode == 0 and answer.stdout.strip() else "none"
