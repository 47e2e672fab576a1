"""Run Python as several ranks that meet in torch's store: no MPI and no launcher takes part."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KILL_SECONDS = 10.0
POLL_SECONDS = 0.05
SHOWN_LINES = 40


def run(words: Sequence[str], environment: Mapping[str, str], count: int, seconds: float, outputs: Path) -> str | None:
    """Run `python words` as `count` ranks and return what went wrong, if anything did.

    Rank 0 prints; the others write outputs/rank{n}.txt, of which the end is printed for the one that failed. The first
    failure ends all ranks, and so does the end of the time.
    """
    stop = time.monotonic() + seconds
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(count)}
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(count):
            own = {**environment, **where, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            processes.append(start([sys.executable, *words], own, output_of(outputs, rank)))
        failure = first_failure(processes, stop)
    finally:
        for process in processes:
            if process.poll() is None:
                end(process)
    if failure is None:
        return None
    rank, how = failure
    if (path := output_of(outputs, rank)) is not None:
        print(f"-- rank {rank}", *path.read_text(errors="replace").splitlines()[-SHOWN_LINES:], sep="\n", flush=True)
    command = " ".join(word for word in words if "\n" not in word)
    return f"rank {rank} of {count}: {how}: python {command}"


def output_of(outputs: Path, rank: int) -> Path | None:
    """Where a rank writes, if it does not print."""
    return outputs / f"rank{rank}.txt" if rank > 0 else None


def start(command: Sequence[str], environment: Mapping[str, str], path: Path | None) -> subprocess.Popen[bytes]:
    """Start one rank, in a session of its own."""

    def process(output: int | None) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )

    if path is None:
        return process(None)
    with path.open("wb") as file:
        return process(file.fileno())


def first_failure(processes: Sequence[subprocess.Popen[bytes]], stop: float) -> tuple[int, str] | None:
    """Which rank failed first, and how; None when all have ended well."""
    while True:
        states = [process.poll() for process in processes]
        for rank, status in enumerate(states):
            if status:
                return rank, f"exit code {status}"
        if None not in states:
            return None
        if time.monotonic() > stop:
            return states.index(None), "not finished in time"
        time.sleep(POLL_SECONDS)


def end(process: subprocess.Popen[bytes]) -> int:
    """End a process with all that it started; return its status, never 0."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(KILL_SECONDS)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue
    return process.poll() or 1
