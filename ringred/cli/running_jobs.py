"""Finds the ringred jobs that run on this machine, from outside: by the shared segments that their ranks hold open.

A rank holds its own segment and those of its peers, each a memfd. Processes that hold a segment in common are one job;
what a rank has forked after init() holds some too, and counts as part of it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ringred.errors import UsageError

SEGMENT_LINK = "/memfd:ringred (deleted)"
PROCESSES = Path("/proc")
SCAN = "Give the number of a rank or of its launcher, or none to see all of this user's jobs."


@dataclass
class Job:
    """One job of this machine.

    Attributes:
        processes: the numbers of the processes that hold segments, ascending.
        segments: where each segment can be opened, /proc/PID/fd/N; each once.
    """

    processes: list[int]
    segments: list[Path]


@dataclass
class _Cluster:
    processes: set[int] = field(default_factory=set)
    segments: dict[int, Path] = field(default_factory=dict)  # by inode


def find(wanted: Sequence[int], processes: Path = PROCESSES) -> list[Job]:
    """The jobs that `wanted` processes, or descendants of theirs, belong to; all of this user's if nobody is wanted.

    Raises:
        UsageError: there are none, or a wanted process is none of ours to look at.
    """
    jobs = running(processes)
    if not wanted:
        if not jobs:
            raise UsageError(
                f"No ringred job of this user (number {os.geteuid()}) runs on this machine and in this container: "
                "no process holds a shared segment. Jobs of other users cannot be seen."
            )
        return jobs
    chosen = []
    for process in wanted:
        mine = [job for job in jobs if any(process in _lineage(one, processes) for one in job.processes)]
        if not mine:
            raise UsageError(_why_not(process, processes))
        chosen += [job for job in mine if job not in chosen]
    return chosen


def running(processes: Path = PROCESSES) -> list[Job]:
    """All jobs whose processes this user may look into, in the order of their lowest process number."""
    clusters: list[_Cluster] = []
    for process, inode, path in _held_segments(processes):
        touched = [one for one in clusters if process in one.processes or inode in one.segments]
        merged = _Cluster({process}, {inode: path})
        for one in touched:
            merged.processes |= one.processes
            merged.segments |= one.segments
            clusters.remove(one)
        clusters.append(merged)
    jobs = [Job(sorted(one.processes), list(one.segments.values())) for one in clusters]
    return sorted(jobs, key=lambda job: job.processes)


@contextlib.contextmanager
def opened(paths: Iterable[Path]) -> Iterator[list[int]]:
    """Descriptors of these segments, without those whose holder has just ended; closed at the end."""
    with contextlib.ExitStack() as closing:
        descriptors = []
        for path in paths:
            with contextlib.suppress(OSError):
                descriptors.append(os.open(path, os.O_RDWR | os.O_CLOEXEC))
                closing.callback(os.close, descriptors[-1])
        yield descriptors


def _held_segments(processes: Path) -> Iterator[tuple[int, int, Path]]:
    """(process, inode, link) of each descriptor of a segment."""
    for process in sorted(int(path.name) for path in processes.iterdir() if path.name.isdigit()):
        try:
            links = list((processes / str(process) / "fd").iterdir())
        except OSError:  # ended, or another user's
            continue
        for link in links:
            try:
                if os.readlink(link) == SEGMENT_LINK:
                    yield process, link.stat().st_ino, link
            except OSError:
                continue


def _lineage(process: int, processes: Path) -> Iterator[int]:
    """The process, its parent, and so on."""
    while process > 0:
        yield process
        try:
            process = int((processes / str(process) / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return


def _why_not(process: int, processes: Path) -> str:
    """What to say of a process that belongs to no job that can be seen."""
    try:
        owner = (processes / str(process)).stat().st_uid
        list((processes / str(process) / "fd").iterdir())
    except FileNotFoundError:
        return f"A process must run to be looked at: there is no process {process}. {SCAN}"
    except PermissionError:
        return (
            f"Only a process's own user may look into it: process {process} belongs to user {owner}, and this is user "
            f"{os.geteuid()}."
        )
    return f"Process {process} is no rank of ringred between init() and shutdown(), and started none. {SCAN}"
