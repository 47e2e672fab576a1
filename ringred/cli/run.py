"""``ringred run``: start a command on several ranks and say last, and clearly, which rank failed first and why.

1. Find the mpirun that belongs to the MPI that mpi4py loads, and call it as a container needs it (mpi_launcher).
2. mpirun starts one wrapper per rank (rank_wrapper); a wrapper leaves a record when its rank ends (rank_records).
3. After the first failure the other ranks get a grace to report; then the job is ended, and the report is printed.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

from ringred import cores
from ringred.cli import leftovers, mpi_launcher, rank_records

TICK_SECONDS = 0.1
STOP_SECONDS = 10.0  # mpirun clears up its own ranks and files within two; after this it is killed
PR_SET_PDEATHSIG = 1  # linux/prctl.h
ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``ringred run``."""
    parser.add_argument("-np", "-n", "--ranks", type=int, required=True, metavar="N", help="number of ranks")
    parser.add_argument(
        "--mpi-arg",
        action="append",
        default=[],
        metavar="ARG",
        help="one more argument for mpirun, in its own syntax, e.g. --mpi-arg=--report-bindings; repeatable",
    )
    parser.add_argument(
        "--threads", type=int, metavar="N", help="OMP_NUM_THREADS of each rank (default: as set, else cores / ranks)"
    )
    parser.add_argument(
        "--timeout-after-failure",
        type=float,
        default=5.0,
        metavar="SECONDS",
        help="how long the other ranks may go on to report after a rank has failed (default: 5; inf: no limit)",
    )
    parser.add_argument(
        "command", nargs=argparse.REMAINDER, metavar="[--] command ...", help="a program, or a Python file"
    )


def run(args: argparse.Namespace) -> int:
    """Run the job; return its exit code: that of the rank that failed first, or 128 + the signal that ended it."""
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    problem = usage_problem(args, command)
    if problem:
        print(f"ringred run: {problem}", file=sys.stderr)
        return 2
    try:
        library = mpi_launcher.loaded_library()
        launcher = mpi_launcher.find_launcher(library)
    except mpi_launcher.LauncherError as error:
        print(f"ringred run: {error}", file=sys.stderr)
        return 1
    machine = mpi_launcher.this_machine(cores.usable_cores())
    environment = mpi_launcher.launch_environment(library.flavour, launcher, args.ranks, machine, args.threads)
    wrapper = [sys.executable, str(Path(__file__).with_name("rank_wrapper.py")), "--"]
    ranks_command = [*wrapper, *with_interpreter(command)]
    words = mpi_launcher.command_line(library.flavour, launcher, args.ranks, machine, args.mpi_arg, ranks_command)
    return Job(words, environment, args.ranks, args.timeout_after_failure).run()


def usage_problem(args: argparse.Namespace, command: list[str]) -> str:
    """Return what is wrong with the arguments, or an empty text."""
    if args.ranks < 1:
        return f"-np must be at least 1, not {args.ranks}"
    if args.threads is not None and args.threads < 1:
        return f"--threads must be at least 1, not {args.threads}"
    if args.timeout_after_failure < 0:
        return f"--timeout-after-failure must not be negative, not {args.timeout_after_failure}"
    if not command:
        return "a command is missing, e.g.: ringred run -np 4 python train.py"
    return ""


def with_interpreter(command: list[str]) -> list[str]:
    """Put this interpreter before a Python file, and in the place of a bare ``python``: PATH may have another one."""
    if command[0].endswith(".py"):
        return [sys.executable, *command]
    if command[0] in ("python", "python3"):
        return [sys.executable, *command[1:]]
    return command


class Job:
    """One mpirun, the directory where its ranks leave their records, and the signals that may end it."""

    def __init__(self, words: list[str], environment: dict[str, str], ranks: int, grace_seconds: float) -> None:
        self.words = words
        self.environment = environment
        self.ranks = ranks
        self.grace_seconds = grace_seconds
        self.ended_by: int | None = None
        self.directory = Path(tempfile.gettempdir())
        self.process: subprocess.Popen[bytes] | None = None
        self.stop_deadline = float("inf")

    def run(self) -> int:
        """Start mpirun, wait for its end, report; nothing of the job is left when this returns."""
        previous = {number: signal.signal(number, self.on_signal) for number in ENDING_SIGNALS}
        self.directory = Path(tempfile.mkdtemp(prefix="ringred-run-"))
        started = time.time()
        try:
            self.process = self.start()
            self.watch(self.process)
            return self.report(self.process.returncode, started)
        finally:
            if self.process is not None and self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            if self.process is not None and self.process.returncode:
                leftovers.remove_left_behind(started)
            shutil.rmtree(self.directory, ignore_errors=True)
            for number, handler in previous.items():
                signal.signal(number, handler)

    def start(self) -> subprocess.Popen[bytes]:
        """Start mpirun in a process group of its own: Ctrl-C must reach it once, through us, and it ends if we die."""
        libc = ctypes.CDLL(None)

        def before_exec() -> None:
            os.setpgid(0, 0)
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)

        environment = {**self.environment, "RINGRED_RUN_DIR": str(self.directory), "RINGRED_RUN_PID": str(os.getpid())}
        # A background process group that reads from a terminal would be stopped by it; files and pipes pass through.
        source = subprocess.DEVNULL if sys.stdin is None or sys.stdin.isatty() else None
        return subprocess.Popen(self.words, env=environment, stdin=source, preexec_fn=before_exec)

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Ctrl-C and the like end the job; a second one ends it at once."""
        if self.process is None or self.process.poll() is not None:
            self.ended_by = self.ended_by or number
        elif self.ended_by is None:
            self.ended_by = number
            self.stop_deadline = time.monotonic() + STOP_SECONDS
            self.process.send_signal(number)
        else:
            self.process.kill()

    def watch(self, process: subprocess.Popen[bytes]) -> None:
        """Wait for mpirun. After a failure: grace, release of the wrappers, SIGTERM, SIGKILL."""
        if self.ended_by is not None:
            process.terminate()
        release_at = terminate_at = float("inf")
        failed = released = False
        while not self.waited(process):
            now = time.monotonic()
            if not failed and self.someone_failed():
                failed, release_at = True, now + self.grace_seconds
            if failed and not released and (now >= release_at or self.all_recorded()):
                (self.directory / "release").touch()
                released, terminate_at = True, now + 2.0
            if now >= terminate_at:
                process.terminate()
                terminate_at, self.stop_deadline = float("inf"), min(self.stop_deadline, now + STOP_SECONDS)
            if now >= self.stop_deadline:
                process.kill()

    def waited(self, process: subprocess.Popen[bytes]) -> bool:
        """Wait one tick for the end of mpirun."""
        try:
            process.wait(TICK_SECONDS)
            return True
        except subprocess.TimeoutExpired:
            return False

    def someone_failed(self) -> bool:
        """True once a record tells of a failure."""
        return any(record.failed for record in rank_records.read_records(self.directory))

    def all_recorded(self) -> bool:
        """True once every rank has ended."""
        return len(rank_records.read_records(self.directory)) >= self.ranks

    def report(self, status: int, started: float) -> int:
        """Print what ended the job, the failed rank's last traceback last; return the exit code."""
        records = rank_records.read_records(self.directory)
        first = rank_records.first_failure(records)
        sys.stdout.flush()
        if self.ended_by is not None:
            say(f"ended by {signal.Signals(self.ended_by).name} after {time.time() - started:.1f} s")
            return 128 + self.ended_by
        if first is None or first.stopped_by:
            return self.report_launcher(status)
        when = f"{first.time - started:.1f} s after the start"
        say(f"rank {first.rank} of {self.ranks} failed first: {first.how} (pid {first.pid}, {when})")
        others = [str(r.rank) for r in records if r.failed and not r.stopped_by and r.rank != first.rank]
        if others:
            say(f"after it failed rank{'s' if len(others) > 1 else ''} {', '.join(others)}")
        text = rank_records.last_traceback(first.stderr_tail)
        told = rank_records.TRACEBACK in text or rank_records.FATAL in text
        what = "traceback" if told else "lines on stderr"
        if text:
            say(f"last {what} of rank {first.rank}:\n{text}")
        else:
            say(f"rank {first.rank} wrote nothing on stderr")
        return first.exit_code or 128 + first.signal_number

    def report_launcher(self, status: int) -> int:
        """No rank says why: what mpirun says is all there is."""
        if status:
            how = f"signal {-status}" if status < 0 else f"exit code {status}"
            name = Path(self.words[0]).name
            say(f"{name} ended with {how}, and no rank reports a failure of its own:\n{shlex.join(self.words)}")
        return status if status >= 0 else 128 - status


def say(text: str) -> None:
    """Print on stderr, after everything else."""
    print(f"ringred run: {text}", file=sys.stderr, flush=True)
