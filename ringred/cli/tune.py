"""``ringred tune --output FILE``: measures every algorithm on the ranks of this job and writes what they cost.

``RINGRED_TUNING=FILE`` then has jobs of the same layout choose by these costs, the same in every run. The measurement
takes about as long as --seconds says; run it as the job will be run, while the machine does nothing else.
"""

from __future__ import annotations

import argparse
import platform
import time
from pathlib import Path

import ringred as rr
from ringred import tuning, world
from ringred.cli import bench_table
from ringred.cli.bench import start_ranks


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("-np", type=int, help="start this many ranks (otherwise: the ranks of the launcher)")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="where rank 0 writes the costs")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long to measure (default 20)")


def run(args: argparse.Namespace) -> int:
    """Measure on the ranks of this job, or start them first."""
    if not 0 < args.seconds <= 3600:
        raise rr.UsageError(f"--seconds must be from 0 to 3600, and above 0: it is {args.seconds:g}.")
    if args.np is not None:
        return start_ranks(args.np)
    rr.init()
    if rr.size() == 1:
        raise rr.UsageError("ringred tune measures between ranks: start two or more, as with -np 2.")
    found = world.communicator().tune(args.seconds)
    if rr.rank() == 0:
        layout = tuning.layout_of(world.topology())
        text = tuning.document(
            found["costs"],
            layout,
            error=found["error"],
            processor=bench_table.processor(),
            system=platform.release(),
            ringred_version=rr.__version__,
            date=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            samples=found["samples"],
        )
        args.output.write_text(text)
        print(f"# {tuning.in_words(layout)}, {len(found['samples'])} times; the model is off by {found['error']:.0%}")
        for name, value in found["costs"].items():
            print(f"{name:14} {value:.4g}")
        print(f"# wrote {args.output}: set RINGRED_TUNING={args.output.resolve()}")
    rr.shutdown()
    return 0
