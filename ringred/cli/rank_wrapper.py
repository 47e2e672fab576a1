"""Runs one rank's command under ``ringred run`` and leaves a record of how it ended. Standard library only.

The launcher's mpirun starts ``python rank_wrapper.py -- command ...`` by path, so nothing else of ringred is loaded.

1. The command runs as a child in the same process group, with the same stdin, stdout and inherited descriptors (hydra
   hands its ranks one). Its stderr passes through here; the last 64 KiB are kept.
2. How the command ended goes into ``rank-R.json`` in the directory RINGRED_RUN_DIR, in one rename. A rank that is
   ending because of an exception (the file ``rank-R.raised``, see python_hook) gets its record at once.
3. After a failure the wrapper waits for the file ``release``: until then mpirun sees no death and lets the other
   ranks say what they saw. Then it ends as the command ended: same exit code, or same signal.

Nobody outlives anybody: a wrapper stops when its mpirun (parent) or the launcher (RINGRED_RUN_PID) dies, and the
command dies with its wrapper. If the launcher was killed, leftovers.py clears up.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from types import FrameType

TAIL_BYTES = 64 * 1024
TICK_SECONDS = 0.1
RELEASE_SECONDS = 600.0  # only a launcher that is alive but stuck can make a wrapper wait this long
STARTING_SECONDS = 60.0  # by so much an earlier rank of this job may have made a shared segment
STOP_SECONDS = 5.0  # between SIGTERM and SIGKILL when the launcher is gone
RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "RANK")
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Rank:
    """One rank's command: its child process, the end of its stderr and how it ended."""

    def __init__(self, command: list[str]) -> None:
        self.name = next((os.environ[name] for name in RANK_VARIABLES if os.environ.get(name, "").isdigit()), "0")
        self.directory = os.environ.get("RINGRED_RUN_DIR", "")
        self.watched = os.path.isdir(self.directory)
        self.note = os.path.join(self.directory, f"rank-{self.name}.raised")
        self.tail = bytearray()
        self.stopped_by: int | None = None
        self.started = time.time() - STARTING_SECONDS
        self.recorded = False
        self.libc = ctypes.CDLL(None)
        self.libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        self.child: subprocess.Popen[bytes] | None = None
        self.wake_read, wake_write = os.pipe()
        for descriptor in (self.wake_read, wake_write):
            os.set_blocking(descriptor, False)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        for number in FORWARDED:
            signal.signal(number, self.forward)
        self.launcher = open_process(os.environ.get("RINGRED_RUN_PID", "")) if self.watched else None
        self.child = self.start(command)
        if self.stopped_by is not None and self.child is not None:
            self.child.send_signal(self.stopped_by)

    def start(self, command: list[str]) -> subprocess.Popen[bytes] | None:
        """Start the command; a command that cannot be started is recorded as the shell would: exit code 127."""
        try:
            return subprocess.Popen(
                command,
                stderr=subprocess.PIPE,
                close_fds=False,
                env=self.environment(command[0]),
                preexec_fn=lambda: self.libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL),
            )
        except OSError as error:
            self.keep(f"{command[0]}: {error.strerror}\n".encode())
            return None

    def environment(self, program: str) -> dict[str, str]:
        """The rank's environment: the wrapper's, with the hook that reports uncaught exceptions if it is a Python."""
        environment = dict(os.environ)
        hook = os.path.join(os.path.dirname(os.path.abspath(__file__)), "python_hook")
        if self.watched and os.path.basename(program).startswith("python"):
            before = environment.get("PYTHONPATH", "")
            environment["PYTHONPATH"] = hook + (os.pathsep + before if before else "")
            environment["RINGRED_RUN_NOTE"] = self.note
        return environment

    def forward(self, number: int, frame: FrameType | None) -> None:
        """Signal handler: pass the signal on to the command and remember that the end was asked for."""
        if number in STOPPING and self.stopped_by is None:
            self.stopped_by = number
        if self.child is not None and self.child.returncode is None:
            self.child.send_signal(number)

    def keep(self, text: bytes) -> None:
        """Pass stderr on and remember its end."""
        self.tail += text
        del self.tail[:-TAIL_BYTES]
        while text:
            try:
                text = text[os.write(2, text) :]
            except BlockingIOError:
                select.select([], [2], [], TICK_SECONDS)
            except OSError:
                return  # nobody reads any more

    def run(self) -> int:
        """Wait for the command to end; return its status as subprocess does (negative: signal)."""
        if self.child is None or self.child.stderr is None:
            return 127
        pipe = self.child.stderr.fileno()
        os.set_blocking(pipe, False)
        open_ends = [pipe, self.wake_read] + ([self.launcher] if self.launcher is not None else [])
        while self.child.poll() is None:
            ready = select.select(open_ends, [], [], TICK_SECONDS)[0]
            if self.wake_read in ready:
                drain(self.wake_read)
            if pipe in ready and not self.pass_stderr(pipe):
                open_ends.remove(pipe)
            if self.launcher in ready:
                self.stop(self.child)
            elif self.watched and not self.recorded and os.path.exists(self.note):
                while self.pass_stderr(pipe):
                    pass
                self.record(1)
            elif self.recorded and self.released():
                self.child.kill()
        while self.pass_stderr(pipe):  # what is there; a grandchild may hold the pipe open for ever
            pass
        # A raised exception is exit code 1, also when the rank then hung in MPI_Finalize and had to be killed.
        return 1 if self.recorded and self.child.returncode < 0 else self.child.returncode

    def pass_stderr(self, pipe: int) -> bool:
        """Pass on what stderr holds now; False when there is no more."""
        try:
            text = os.read(pipe, 1 << 16)
        except BlockingIOError:
            return False
        except OSError:
            text = b""
        self.keep(text)
        return bool(text)

    def stop(self, child: subprocess.Popen[bytes]) -> None:
        """The launcher is gone: end the command, by force if it does not listen, and see to what is left."""
        undertaker = os.path.join(os.path.dirname(os.path.abspath(__file__)), "leftovers.py")
        subprocess.Popen(
            [sys.executable, undertaker, str(self.started), self.directory],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        child.terminate()
        try:
            child.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()

    def record(self, status: int) -> None:
        """Write how the command ended into the launcher's directory, or on stderr where that is not to be seen."""
        self.recorded = True
        facts = {
            "rank": int(self.name),
            "pid": self.child.pid if self.child is not None else os.getpid(),
            "time": time.time(),
            "exit_code": max(status, 0),
            "signal": signal_name(-status) if status < 0 else "",
            "stopped_by": signal_name(self.stopped_by) if self.stopped_by is not None else "",
            "stderr_tail": self.tail.decode(errors="replace") if status else "",
        }
        path = os.path.join(self.directory, f"rank-{self.name}.json")
        try:
            with open(path + ".part", "w", encoding="utf-8") as file:
                json.dump(facts, file)
            os.replace(path + ".part", path)
        except OSError:
            if status and self.stopped_by is None:
                how = str(facts["signal"] or f"exit code {status}")
                self.keep(f"ringred run: rank {self.name} ended with {how}\n".encode())

    def released(self) -> bool:
        """True once the launcher has heard enough, or is gone."""
        gone = self.launcher is not None and bool(select.select([self.launcher], [], [], 0)[0])
        return gone or not os.path.isdir(self.directory) or os.path.exists(os.path.join(self.directory, "release"))

    def wait_for_release(self) -> None:
        """Keep mpirun from noticing the failure until the other ranks had time to speak, or somebody says stop."""
        deadline = time.monotonic() + RELEASE_SECONDS
        while self.watched and self.stopped_by is None and not self.released() and time.monotonic() < deadline:
            time.sleep(TICK_SECONDS / 2)


def open_process(text: str) -> int | None:
    """A descriptor that becomes readable when that process ends; None where the kernel or the sandbox has none."""
    try:
        return os.pidfd_open(int(text))
    except (ValueError, OSError):
        return None


def drain(descriptor: int) -> None:
    """Empty a pipe that only wakes."""
    try:
        while os.read(descriptor, 4096):
            pass
    except BlockingIOError:
        pass


def signal_name(number: int) -> str:
    """SIGKILL for 9, SIG35 for a number without a name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"


def end_like(status: int) -> int:
    """End as the command did: return its exit code, or die of the same signal (without a second core file)."""
    if status >= 0:
        return status
    sys.stdout.flush()
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    if -status not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
    return 128 - status


def main(arguments: list[str]) -> int:
    """Run the command after ``--`` and end as it ended."""
    command = arguments[1:] if arguments[:1] == ["--"] else arguments
    if not command:
        print("usage: rank_wrapper.py -- command ...", file=sys.stderr)
        return 2
    rank = Rank(command)
    status = rank.run()
    if not rank.recorded:
        rank.record(status)
    if status:
        rank.wait_for_release()
    return end_like(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
