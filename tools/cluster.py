"""Several hosts on one machine, made of namespaces, for tests and benchmarks of what happens between nodes.

    with Cluster(2) as cluster:
        cluster.throttle("1gbit")
        ended = cluster.run("h0", ["ping", "-c", "1", "h1"], seconds=10)

         head (bridge, 10.77.0.254)          A host has its own network, host name, processes, /proc, /sys, /dev/shm and
         /                 \\                 TMPDIR; all other files it shares. The head is the switch
    h0 (10.77.0.1)    h1 (10.77.0.2)  ...    between the hosts and the place where mpirun runs (run_on_hosts.py).

The cores are dealt out to the hosts; where there are fewer cores than hosts, every host has them all.

Invariant: whatever happens to the process that made a cluster, nothing of the cluster stays behind. No namespace has a
name, the machine's own network is not touched, and all processes live below the head's process 1. That one reads from a
pipe that only the maker holds: at its end, it ends all others and removes the directory.
"""

from __future__ import annotations

import contextlib
import functools
import os
import select
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

HEAD = "head"
NETWORK = "10.77.0"
LARGEST = 250  # hosts, in one network of 8 bits
TOOLS = {
    "ip": "iproute2",
    "tc": "iproute2",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "taskset": "util-linux",
    "mount": "mount",
}
SETUP_SECONDS = 20.0  # a command takes milliseconds; the machine may be busy
KILL_SECONDS = 10.0
TIMED_OUT = 124  # what timeout(1) ends with
BURST_BYTES = 128 * 1024  # above the largest packet that a veth device passes on in one piece, 64 KB
QUEUE = "50ms"  # how long a packet may wait for the rate before it is dropped

# What process 1 of the head or a host does first: it is called with its name, the directory, and what it is then to
# become. Its number in the namespace around its own is the first line that it prints.
SET_UP = """
set -e
read -r number rest < /proc/self/stat
mount -t proc proc /proc
echo "$1" > /proc/sys/kernel/hostname
if [ -d /sys/fs/cgroup ]; then
  mkdir "$2/$1/cgroup"
  mount --rbind /sys/fs/cgroup "$2/$1/cgroup"
  mount -t sysfs sysfs /sys
  mount --move "$2/$1/cgroup" /sys/fs/cgroup
else
  mount -t sysfs sysfs /sys
fi
mount --bind "$2/hosts" /etc/hosts
mount -t tmpfs tmpfs /dev/shm
for which in all default; do
  [ ! -e "/proc/sys/net/ipv6/conf/$which" ] || echo 1 > "/proc/sys/net/ipv6/conf/$which/disable_ipv6"
done
ip link set lo up
directory=$2
shift 2
exec "$@" "$number" "$directory"
"""

# What process 1 then is. It ignores SIGCHLD, so what becomes its child is forgotten at its end, and no zombies stay.
KEEP = """
import os, shutil, signal, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
print(sys.argv[1], flush=True)
"""
KEEP_HOST = KEEP + "while True: signal.pause()"
KEEP_HEAD = (
    KEEP
    + """
sys.stdin.buffer.read()
try:
    os.kill(-1, signal.SIGKILL)
except ProcessLookupError:
    pass
shutil.rmtree(sys.argv[2], ignore_errors=True)
"""
)

# In place of ssh: agent.sh [-options] HOST WORDS..., where a shell on HOST reads the words.
AGENT = """#!/bin/sh
directory=$(dirname "$0")
while case $1 in -*) true ;; *) false ;; esac do shift; done
host=$1
shift
number=$(cat "$directory/$host/number") || exit 255
cores=$(cat "$directory/$host/cores")
export TMPDIR="$directory/$host/tmp"
exec taskset --cpu-list "$cores" nsenter --target "$number" --mount --uts --ipc --net --pid -- sh -c "$*"
"""

# Enter the directory $0, then become the words.
IN_DIRECTORY = 'cd "$0" && exec "$@"'


class ClusterError(Exception):
    """Hosts cannot be made on this machine; the message says why and ends with the remedy."""


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, minus the signal, or 124 if it was ended for lateness; what it printed."""

    status: int
    text: str

    @property
    def timed_out(self) -> bool:
        """True if the command did not end in its time."""
        return self.status == TIMED_OUT


class Running:
    """A command that runs on a host."""

    def __init__(self, cluster: Cluster, words: Sequence[str], environment: Mapping[str, str], show: bool) -> None:
        self._cluster = cluster
        self._text = ""
        self._output: IO[bytes] | None = None if show else tempfile.TemporaryFile()  # noqa: SIM115 - closed in kill()
        self.process = subprocess.Popen(
            words,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=None if show else subprocess.STDOUT,
            start_new_session=True,
        )

    def wait(self, seconds: float) -> Ended:
        """Wait for the end. A command that is late is ended, and with it all that runs in the cluster."""
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            status = TIMED_OUT
        except BaseException:
            self.kill()
            raise
        self._close()
        return Ended(status, self._text)

    def kill(self) -> None:
        """End it at once, and all else that runs in the cluster: what a launcher started is not below it."""
        if self.process.returncode is None:
            self._cluster.kill()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(KILL_SECONDS)
        self._close()

    def text(self) -> str:
        """What it has printed so far to both streams."""
        if self._output is not None:
            size = os.fstat(self._output.fileno()).st_size
            self._text = os.pread(self._output.fileno(), size, 0).decode(errors="replace")
        return self._text

    def _close(self) -> None:
        self.text()
        if self._output is not None:
            self._output.close()
            self._output = None


class Cluster:
    """Hosts h0, h1, ... that are joined by a switch. As a context it ends with all that runs there."""

    def __init__(self, hosts: int = 2) -> None:
        if not 1 <= hosts <= LARGEST:
            raise ClusterError(f"a cluster has 1 to {LARGEST} hosts, not {hosts}")
        check_tools()
        self.hosts = [f"h{number}" for number in range(hosts)]
        self.cores = _deal_out(sorted(os.sched_getaffinity(0)), self.hosts)
        self.directory = Path(tempfile.mkdtemp(prefix="ringred-hosts-"))
        self.agent = self.directory / "agent.sh"
        self._keepers: list[subprocess.Popen[bytes]] = []
        self._started: list[Running] = []
        self._numbers: dict[str, int] = {}
        self._kept: set[int] = set()
        self._namespaces: set[str] = set()
        try:
            self._write_files()
            self._add(HEAD, KEEP_HEAD)
            for host in self.hosts:
                self._add(host, KEEP_HOST)
            self._join()
            self._namespaces = {_namespace(process) for process in self._tree()}
            self._kept = set(self.processes())
        except BaseException:
            self.close()
            raise

    def address(self, host: str) -> str:
        """The IPv4 address of a host, or of the head."""
        return f"{NETWORK}.{254 if host == HEAD else self.hosts.index(host) + 1}"

    def start(
        self,
        host: str,
        words: Sequence[str],
        environment: Mapping[str, str] | None = None,
        directory: Path | str = "/",
        show: bool = False,
    ) -> Running:
        """Start a command on a host, or on the head. Its output is kept, or shown as it comes."""
        variables = {**(os.environ if environment is None else environment), "TMPDIR": str(self._place(host) / "tmp")}
        command = [*self._entry(host), "sh", "-c", IN_DIRECTORY, str(directory), *words]
        self._started.append(Running(self, command, variables, show))
        return self._started[-1]

    def run(
        self,
        host: str,
        words: Sequence[str],
        seconds: float,
        environment: Mapping[str, str] | None = None,
        directory: Path | str = "/",
    ) -> Ended:
        """Run a command on a host, or on the head, to its end."""
        return self.start(host, words, environment, directory).wait(seconds)

    def throttle(self, rate: str) -> None:
        """Limit what every host sends and what it gets, each way on its own, to a rate such as "1gbit" (tc-tbf)."""
        limit = f"root tbf rate {rate} burst {BURST_BYTES} latency {QUEUE}"
        for host in self.hosts:
            self._set_up(host, f"qdisc replace dev eth0 {limit}", "tc")
        self._set_up(HEAD, "\n".join(f"qdisc replace dev {host} {limit}" for host in self.hosts), "tc")

    def unthrottle(self) -> None:
        """Take the limits away."""
        for host in self.hosts:
            self._set_up(host, "qdisc del dev eth0 root", "tc")
        self._set_up(HEAD, "\n".join(f"qdisc del dev {host} root" for host in self.hosts), "tc")

    def cut(self, host: str) -> None:
        """Cut a host off, as if somebody pulled its cable: what is sent is lost, and nobody is told."""
        self._set_up(HEAD, f"link set dev {host} down")

    def mend(self, host: str) -> None:
        """Put a host's cable back."""
        self._set_up(HEAD, f"link set dev {host} up")

    def processes(self) -> dict[int, str]:
        """What runs on the hosts and the head: the machine's numbers of the processes, and their command lines."""
        found = {}
        for path in Path("/proc").iterdir():
            if path.name.isdigit() and int(path.name) not in self._kept:
                with contextlib.suppress(OSError):
                    if _namespace(int(path.name)) in self._namespaces and _is_alive(int(path.name)):
                        words = (path / "cmdline").read_bytes().split(b"\0")
                        found[int(path.name)] = b" ".join(words).decode(errors="replace").strip()
        return found

    def wait_until_idle(self, seconds: float) -> dict[int, str]:
        """Wait until nothing runs any more; return what still does when the time is over."""
        deadline = time.monotonic() + seconds
        while (running := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.02)
        return running

    def kill(self) -> None:
        """End all that runs on the hosts and the head. The cluster stays."""
        deadline = time.monotonic() + KILL_SECONDS
        while running := self.processes():
            for process in running:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            if time.monotonic() > deadline:
                raise ClusterError(f"processes must end within {KILL_SECONDS:g} s of SIGKILL; these run: {running}")
            time.sleep(0.01)

    def close(self) -> None:
        """End all that runs there, and the cluster."""
        for running in self._started:
            running.kill()
        self._started.clear()
        for keeper in reversed(self._keepers):
            for pipe in (keeper.stdin, keeper.stdout, keeper.stderr):
                if pipe is not None:
                    pipe.close()
        for keeper in self._keepers:
            try:
                keeper.wait(KILL_SECONDS)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(KeyError, ProcessLookupError):
                    os.kill(self._numbers[HEAD], signal.SIGKILL)  # and with it all of the cluster's processes
                keeper.kill()
                keeper.wait(KILL_SECONDS)
        self._keepers.clear()
        shutil.rmtree(self.directory, ignore_errors=True)  # the head did, unless it did not come that far

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write_files(self) -> None:
        lines = ["127.0.0.1 localhost", *(f"{self.address(name)} {name}" for name in [HEAD, *self.hosts])]
        (self.directory / "hosts").write_text("".join(f"{line}\n" for line in lines))
        self.agent.write_text(AGENT)
        self.agent.chmod(stat.S_IRWXU)
        for name in [HEAD, *self.hosts]:
            (self._place(name) / "tmp").mkdir(parents=True)
            (self._place(name) / "cores").write_text(",".join(map(str, self.cores[name])))

    def _place(self, host: str) -> Path:
        return self.directory / host

    def _add(self, name: str, script: str) -> None:
        """Start the process that keeps the namespaces of a host or the head."""
        apart = ["unshare", "--mount", "--uts", "--ipc", "--net", "--pid", "--fork", "--"]
        inside = [] if name == HEAD else self._entry(HEAD)
        keeper = subprocess.Popen(
            [*inside, *apart, "sh", "-c", SET_UP, "sh", name, str(self.directory), sys.executable, "-ISc", script],
            stdin=subprocess.PIPE if name == HEAD else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self._keepers.append(keeper)
        self._numbers[name] = int(_first_line(keeper, name))
        (self._place(name) / "number").write_text(str(self._numbers[name]))

    def _entry(self, host: str) -> list[str]:
        """The words that run what follows them on a host; it is entered from the head."""
        enter = ["nsenter", "--mount", "--uts", "--ipc", "--net", "--pid", "--target"]
        head = [*enter, str(self._numbers[HEAD]), "--"]
        if host == HEAD:
            return head
        cores = ",".join(map(str, self.cores[host]))
        return ["taskset", "--cpu-list", cores, *head, *enter, str(self._numbers[host]), "--"]

    def _join(self) -> None:
        """Join the hosts by a bridge on the head."""
        lines = [
            "link add switch type bridge",
            f"addr add {self.address(HEAD)}/24 dev switch",
            "link set switch up",
        ]
        for host in self.hosts:
            lines.append(f"link add {host} type veth peer name eth0 netns {self._numbers[host]}")
            lines.append(f"link set {host} master switch up")
        self._set_up(HEAD, "\n".join(lines))
        for host in self.hosts:
            self._set_up(host, f"addr add {self.address(host)}/24 dev eth0\nlink set eth0 up")

    def _set_up(self, host: str, lines: str, tool: str = "ip") -> None:
        """Let ip or tc carry out lines of their batch language."""
        words = [*self._entry(host), tool, "-batch", "-"]
        result = subprocess.run(
            words, input=lines + "\n", capture_output=True, text=True, timeout=SETUP_SECONDS, check=False
        )
        if result.returncode != 0:
            raise _refused(f"{tool} on {host}: {lines}", result.stderr or result.stdout)

    def _tree(self) -> list[int]:
        """The head's process 1 and all below it."""
        parents = {}
        for path in Path("/proc").iterdir():
            if path.name.isdigit():
                with contextlib.suppress(OSError):
                    parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
        entries = {keeper.pid for keeper in self._keepers}
        found: set[int] = set()
        below = {process for process, parent in parents.items() if parent in entries}
        while below:
            found |= below
            below = {process for process, parent in parents.items() if parent in below}
        return sorted(found)


def check_tools() -> None:
    """Raise unless this user may make hosts and the tools for it are installed."""
    if os.geteuid() != 0:
        raise ClusterError(f"network namespaces need root, this is user {os.geteuid()}; run it as root")
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        packages = " ".join(sorted({TOOLS[tool] for tool in missing}))
        raise ClusterError(f"hosts are made with {', '.join(missing)}, not found; apt-get install {packages}")


@functools.cache
def reason_against() -> str | None:
    """Why hosts cannot be made on this machine, with the remedy; None if they can. It tries."""
    try:
        with Cluster(2) as cluster:
            cluster.throttle("1gbit")
            cluster.cut("h0")
    except ClusterError as error:
        return str(error)
    return None


def _deal_out(cores: Sequence[int], hosts: Sequence[str]) -> dict[str, list[int]]:
    """Each host's cores, neighbours of one another; the head has all."""
    share = len(cores) // len(hosts)
    own = {host: list(cores[number * share : (number + 1) * share] or cores) for number, host in enumerate(hosts)}
    return {HEAD: list(cores), **own}


def _first_line(keeper: subprocess.Popen[bytes], name: str) -> str:
    """What a keeper prints when it is ready."""
    assert keeper.stdout is not None and keeper.stderr is not None
    ready, _, _ = select.select([keeper.stdout], [], [], SETUP_SECONDS)
    line = keeper.stdout.readline().decode() if ready else ""
    if line:
        return line
    if ready:  # the end of its output: it has ended, or is about to
        errors = keeper.stderr.read().decode(errors="replace")
    else:
        keeper.kill()
        errors = f"no answer within {SETUP_SECONDS:g} s"
    raise _refused(f"namespaces for {name}", errors)


def _refused(what: str, errors: str) -> ClusterError:
    return ClusterError(
        f"this machine must allow namespaces, mounts, veth, bridge and tbf: it refused {what} ({errors.strip()}); "
        "in a container, start it with --privileged; on a machine, load the kernel modules veth, bridge and sch_tbf"
    )


def _namespace(process: int) -> str:
    return os.readlink(f"/proc/{process}/ns/pid")


def _is_alive(process: int) -> bool:
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
