"""Jobs that a test starts itself: some processes, what each printed, how each ended, and nothing of them afterwards.

Ranks that no launcher started would meet in torch's store, and each would import torch for it, which takes seconds.
Most tests are about what comes after the meeting, so their ranks meet through files (meeting.py beside this module).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

LINGERING_SECONDS = 5.0
JOB_SECONDS = 60.0
LAUNCHER_PREFIXES = (
    *("OMPI_", "PMIX_", "PMI_", "PRTE_", "MPI_LOCAL", "HYDRA_", "SLURM_"),
    *("RINGRED_", "PYTEST_", "TORCHELASTIC_"),
)
STORE_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code, or minus the signal, and what it printed to both streams."""

    status: int
    text: str


class Job:
    """Processes of one job. As a context it ends those that still run, with all that they started."""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []
        self._outputs: list[IO[bytes]] = []
        self._directory = tempfile.TemporaryDirectory(prefix="ringred-job-")
        self.directory = Path(self._directory.name)

    def start(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start one more process, in a session of its own and outside the sources."""
        output = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the job
        self._outputs.append(output)
        self.processes.append(
            subprocess.Popen(
                command,
                env=dict(environment),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        )

    def wait(self, seconds: float = JOB_SECONDS) -> list[Ended]:
        """Wait for all processes; one that does not end is killed, which its status tells."""
        deadline = time.monotonic() + seconds
        for process in self.processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self.kill()
        return [Ended(process.wait(), self._text(index)) for index, process in enumerate(self.processes)]

    def kill(self) -> None:
        """End all sessions of this job."""
        for process in self.processes:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def left_behind(self) -> list[int]:
        """Processes of this job's sessions that still run. Helpers of multiprocessing end a moment after the owner."""
        sessions = {process.pid for process in self.processes}
        deadline = time.monotonic() + LINGERING_SECONDS
        while True:
            running = [process for process in running_processes() if session_of(process) in sessions]
            if not running or time.monotonic() > deadline:
                return running
            time.sleep(0.05)

    def _text(self, index: int) -> str:
        self._outputs[index].seek(0)
        return self._outputs[index].read().decode(errors="replace")

    def __enter__(self) -> Job:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        for process in self.processes:
            process.wait()
        for output in self._outputs:
            output.close()
        self._directory.cleanup()


def check(ended: list[Ended], *statuses: int) -> None:
    """Fail with what the ranks printed unless they ended like this; all with 0 if nothing is said."""
    expected = list(statuses) or [0] * len(ended)
    told = "\n".join(f"rank {rank} ended with {one.status}: {one.text}" for rank, one in enumerate(ended))
    assert [one.status for one in ended] == expected, told


def clean_environment(**more: str) -> dict[str, str]:
    """This process's environment without what launchers and ringred read."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(LAUNCHER_PREFIXES) and name not in STORE_VARIABLES
    }
    return {**kept, "OMP_NUM_THREADS": "1", **more}


def start_ranks(
    size: int,
    program: str,
    *,
    settings: Mapping[str, str] | None = None,
    own: Mapping[int, Mapping[str, str]] | None = None,
) -> Job:
    """Start ranks that meet through files. The program finds `rr`, `np`, `os`, `time`, `signal` and `meeting` there.

    Args:
        settings: environment variables of all ranks.
        own: environment variables of single ranks.
    """
    here = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    opening = (
        "import os, signal, sys, time\nimport numpy as np\nimport ringred as rr\nimport meeting\nmeeting.install()\n"
    )
    job = Job()
    for rank in range(size):
        place = {"PYTHONPATH": here, "MEETING_DIRECTORY": str(job.directory)}
        number = {"MEETING_RANK": str(rank), "MEETING_SIZE": str(size)}
        environment = clean_environment(**{**place, **number, **(settings or {}), **((own or {}).get(rank, {}))})
        job.start([sys.executable, "-c", opening + textwrap.dedent(program)], environment)
    return job


def run_ranks(
    size: int,
    program: str,
    *,
    settings: Mapping[str, str] | None = None,
    own: Mapping[int, Mapping[str, str]] | None = None,
    seconds: float = JOB_SECONDS,
) -> list[Ended]:
    """Start ranks that meet through files, and wait for their end."""
    with start_ranks(size, program, settings=settings, own=own) as job:
        ended = job.wait(seconds)
        assert not job.left_behind()
    return ended


def running_processes() -> list[int]:
    """The numbers of all processes that are no zombies."""
    return [
        int(path.name)
        for path in Path("/proc").iterdir()
        if path.name.isdigit() and state_of(int(path.name)) not in "ZX"
    ]


def state_of(process: int) -> str:
    """The scheduler's letter for a process; X where there is none."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def session_of(process: int) -> int:
    """The session that a process belongs to; 0 where there is no such process."""
    try:
        return os.getsid(process)
    except ProcessLookupError:
        return 0
