"""``ringred autopsy``: what a running job waits for, from outside. The same screen that rank 0 prints in a long stall.

The job is not stopped and need not cooperate: its shared memory is read, and each rank's engine writes down the stacks
of its threads on request. A rank whose engine does not answer is described without stacks.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator

from ringred import _core
from ringred.cli import running_jobs
from ringred.errors import RingredError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_processes(parser)
    parser.add_argument("--no-stacks", action="store_true", help="do not ask the ranks for their stacks")
    parser.add_argument(
        "--timeout", type=float, default=3.0, metavar="SECONDS", help="how long to wait for stacks (default: 3)"
    )


def add_processes(parser: argparse.ArgumentParser) -> None:
    """Declare which jobs."""
    parser.add_argument(
        "processes",
        nargs="*",
        type=int,
        metavar="PID",
        help="a rank or its launcher (default: all jobs of this user)",
    )


def run(args: argparse.Namespace) -> int:
    """Print one report for each job; exit code 1 if there is none that can be looked into."""
    jobs = running_jobs.find(args.processes)
    reports = 0
    for number, job in enumerate(jobs):
        if len(jobs) > 1:
            print(("\n" if number else "") + f"Job {number + 1} of {len(jobs)}, {in_words(job)}:\n", flush=True)
        with running_jobs.opened(job.segments) as descriptors, failures_told(job):
            print(_core.autopsy_from_outside(descriptors, not args.no_stacks, args.timeout).rstrip("\n"), flush=True)
            reports += 1
    return 0 if reports else 1


@contextlib.contextmanager
def failures_told(job: running_jobs.Job) -> Iterator[None]:
    """Say on stderr why a job cannot be looked into: it is about to start or to end, or of another version."""
    try:
        yield
    except RingredError as error:
        print(f"{in_words(job)}: {error}", file=sys.stderr, flush=True)


def in_words(job: running_jobs.Job) -> str:
    """The processes of a job."""
    numbers = ", ".join(map(str, job.processes))
    return ("process " if len(job.processes) == 1 else "processes ") + numbers
