"""The ``ringred`` command. It knows the names of the subcommands; only the module of the chosen one is imported.

A subcommand is a module of this package with ``add_arguments(parser)`` and ``run(args) -> int``.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Sequence

from ringred.errors import UsageError

SUBCOMMANDS = {
    "run": "start a command on several ranks, with the mpirun of the MPI in use",
    "bench": "time collectives, check their results and compare them",
    "tune": "measure what algorithms cost here, for RINGRED_TUNING",
    "draw": "draw the schedule of an algorithm",
    "simulate": "predict what allreduce costs on a machine that is not here, by simulation",
    "autopsy": "say what a running job waits for, and where each of its ranks is",
    "flight": "print the last operations of each rank of a running job, as JSON",
    "env": "report what ringred finds on this machine",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse ``arguments`` (default: the command line), run the chosen subcommand and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    chosen = words[0] if words else None
    parser = argparse.ArgumentParser(prog="ringred", description="Averages gradients across processes, fast.")
    subparsers = parser.add_subparsers(dest="subcommand", metavar="{" + ",".join(SUBCOMMANDS) + "}", required=True)
    for name, summary in SUBCOMMANDS.items():
        subparser = subparsers.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        if name == chosen:
            importlib.import_module(f"ringred.cli.{name}").add_arguments(subparser)
    args = parser.parse_args(words)
    try:
        status: int = importlib.import_module(f"ringred.cli.{args.subcommand}").run(args)
        sys.stdout.flush()
    except UsageError as error:
        print(f"ringred {args.subcommand}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    return status
