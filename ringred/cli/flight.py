"""``ringred flight``: the last operations of every rank of running jobs, as JSON: an array with one object a rank."""

from __future__ import annotations

import argparse

from ringred import _core
from ringred.cli import running_jobs
from ringred.cli.autopsy import add_processes, failures_told


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare which jobs."""
    add_processes(parser)


def run(args: argparse.Namespace) -> int:
    """Print the flight recorders of all ranks of the jobs, also of ranks that have ended while their peers run.

    Exit code 1 if there is no rank that can be looked into.
    """
    texts = []
    for job in running_jobs.find(args.processes):
        with running_jobs.opened(job.segments) as descriptors:
            for descriptor in descriptors:
                with failures_told(job):
                    texts.append(_core.flight_recorder_from_outside(descriptor).strip())
    print("[\n" + ",\n".join(texts) + "\n]")
    return 0 if texts else 1
