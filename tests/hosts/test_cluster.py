"""Hosts made on this machine are apart, are joined by a link that can be limited and cut, and leave nothing behind."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cluster as cluster_module
import pytest
from cluster import Cluster, ClusterError, Running, check_tools

SECONDS = 20.0  # for what takes a fraction of a second
QUIET_SECONDS = 0.6  # longer than TCP's first repetitions, which would bring an answer if anything came through

# Serves one connection: takes what comes, and answers each 'p' with a 'p', and the end of the stream with an 'e'.
SERVER = """
import socket
with socket.create_server(("", 5000)) as server:
    print("ready", flush=True)
    with server.accept()[0] as peer:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while data := peer.recv(1 << 18):
            if data == b"p":
                peer.sendall(b"p")
        peer.sendall(b"e")
"""
# Prints the seconds that 12.5 MB take, 100 ms at 1 gbit/s.
SENDER = """
import socket, time
with socket.create_connection(("h1", 5000), 10) as peer:
    start = time.perf_counter()
    peer.sendall(bytes(12_500_000))
    peer.shutdown(socket.SHUT_WR)
    assert peer.recv(1) == b"e"
    print(time.perf_counter() - start)
"""
# Prints a dot for each answer.
PINGER = """
import socket, time
with socket.create_connection(("h1", 5000), 10) as peer:
    peer.settimeout(None)
    while True:
        peer.sendall(b"p")
        assert peer.recv(1) == b"p"
        print(".", end="", flush=True)
        time.sleep(0.01)
"""


def python(program: str) -> list[str]:
    """The words that run a program without what site-packages bring."""
    return [sys.executable, "-IS", "-c", program]


def wait_for(what: Callable[[], bool]) -> None:
    """Wait until it is so."""
    deadline = time.monotonic() + SECONDS
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def serve(cluster: Cluster) -> Running:
    """A server on h1 that is ready."""
    server = cluster.start("h1", python(SERVER))
    wait_for(lambda: "ready" in server.text())
    return server


def seconds_of_transfer(cluster: Cluster) -> float:
    """How long 12.5 MB take from h0 to h1."""
    server = serve(cluster)
    sent = cluster.run("h0", python(SENDER), SECONDS)
    assert server.wait(SECONDS).status == 0 and sent.status == 0, sent.text
    return float(sent.text)


def namespaces(directory: Path | None = None) -> set[str]:
    """The network namespaces that some process is in; with a directory, those of the cluster that has it."""
    found = set()
    for path in Path("/proc").iterdir():
        try:
            if directory is None or os.fsencode(directory) in (path / "cmdline").read_bytes():
                found.add(os.readlink(path / "ns" / "net"))
        except OSError:
            continue
    return found - {os.readlink("/proc/self/ns/net")}


def test_a_host_has_a_name_a_network_and_processes_of_its_own(cluster: Cluster) -> None:
    program = "hostname=$(cat /proc/sys/kernel/hostname); echo $hostname $$ $(ls /sys/class/net) $(ls /dev/shm) $PWD"
    for host in cluster.hosts:
        ended = cluster.run(host, ["sh", "-c", program + "; echo > /dev/shm/mine"], SECONDS)
        name, process, *rest = ended.text.split()
        assert (ended.status, name, rest) == (0, host, ["eth0", "lo", "/"])
        assert int(process) < 1000  # counted from 1 on each host


def test_hosts_find_each_other_by_name(cluster: Cluster) -> None:
    ended = cluster.run("h0", ["getent", "hosts", "h1", "head"], SECONDS)
    assert ended.text.split() == [cluster.address("h1"), "h1", cluster.address("head"), "head"]


def test_abstract_sockets_of_one_host_are_out_of_the_others_reach(cluster: Cluster) -> None:
    bind = "import socket, time\nwith socket.socket(socket.AF_UNIX) as s:\n s.bind('\\0ringred')\n s.listen()\n"
    connect = "import socket\nwith socket.socket(socket.AF_UNIX) as s:\n s.connect('\\0ringred')\n print('connected')"
    server = cluster.start("h0", python(bind + " print('ready', flush=True)\n time.sleep(60)"))
    wait_for(lambda: "ready" in server.text())
    assert cluster.run("h0", python(connect), SECONDS).text == "connected\n"
    assert "ConnectionRefusedError" in cluster.run("h1", python(connect), SECONDS).text


def test_exit_code_environment_and_directory_are_passed_on(cluster: Cluster, tmp_path: Path) -> None:
    words = ["sh", "-c", "echo $COLOUR $PWD; exit 7"]
    ended = cluster.run("h1", words, SECONDS, {"PATH": os.environ["PATH"], "COLOUR": "red"}, tmp_path)
    assert (ended.status, ended.text) == (7, f"red {tmp_path}\n")


def test_rate_limit_holds_and_goes(cluster: Cluster) -> None:
    bits = 12_500_000 * 8
    cluster.throttle("1gbit")
    limited = seconds_of_transfer(cluster)
    # Both ends of the link let a burst through at once.
    assert limited >= (bits - 2 * 8 * cluster_module.BURST_BYTES) / 1e9
    cluster.throttle("200mbit")
    assert seconds_of_transfer(cluster) > 3 * limited
    cluster.unthrottle()
    assert seconds_of_transfer(cluster) < 0.02 * bits / 1e6  # 50 mbit/s, 0.02 us a bit: even on a busy machine


def test_cut_link_stops_traffic_and_mended_link_lets_it_go_on(cluster: Cluster) -> None:
    serve(cluster)
    pinger = cluster.start("h0", python(PINGER))
    wait_for(lambda: pinger.text().count(".") > 10)
    cluster.cut("h1")
    time.sleep(0.1)  # what was on its way
    before = pinger.text()
    time.sleep(QUIET_SECONDS)
    assert pinger.text() == before
    cluster.mend("h1")
    wait_for(lambda: len(pinger.text()) > len(before) + 10)


def test_late_command_is_ended_with_all_that_it_started(cluster: Cluster) -> None:
    ended = cluster.run("h0", ["sh", "-c", "setsid sleep 600 & echo started; sleep 600"], 0.5)
    assert ended.timed_out and ended.text == "started\n"
    assert cluster.processes() == {}
    assert cluster.run("h0", ["echo", "usable"], SECONDS).text == "usable\n"


def test_closed_cluster_leaves_no_process_namespace_or_file(possible: None) -> None:
    with Cluster(3) as cluster:
        running = cluster.start("h2", ["sh", "-c", "setsid sleep 600 & sleep 600"])
        wait_for(lambda: sum("sleep" in line for line in cluster.processes().values()) >= 2)
        processes, directory = cluster.processes(), cluster.directory
        apart = namespaces(directory)
        assert len(apart) == 4 and directory.exists()
        assert not {"switch", "h0"} & set(os.listdir("/sys/class/net"))  # the machine's own
    assert running.process.wait(SECONDS) != 0
    wait_for(lambda: not any(Path(f"/proc/{process}").exists() for process in processes))
    wait_for(lambda: not apart & namespaces())
    assert not directory.exists()


def test_killed_maker_leaves_nothing_either(possible: None) -> None:
    program = (
        "import sys, time\nfrom cluster import Cluster\ncluster = Cluster(2)\n"
        "cluster.start('h1', ['sleep', '600'])\nprint(cluster.directory, flush=True)\ntime.sleep(600)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(cluster_module.__file__).parent)}
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment) as maker:
        assert maker.stdout is not None
        directory = Path(maker.stdout.readline().strip())
        apart = namespaces(directory)
        maker.send_signal(signal.SIGKILL)
    assert directory.name.startswith("ringred-hosts-") and len(apart) == 3
    wait_for(lambda: not apart & namespaces() and not directory.exists())


def test_clusters_do_not_meet(cluster: Cluster) -> None:
    serve(cluster)
    connect = "import socket\nsocket.create_connection(('h1', 5000), 5)"
    with Cluster(2) as other:
        assert "ConnectionRefusedError" in other.run("h0", python(connect), SECONDS).text
    assert cluster.run("h0", python(connect), SECONDS).status == 0


def test_error_of_a_set_up_says_what_was_refused(cluster: Cluster) -> None:
    with pytest.raises(ClusterError, match=re.escape("tc on h0: qdisc replace dev eth0 root tbf rate fast")):
        cluster.throttle("fast")


def test_a_missing_tool_or_right_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ClusterError, match="need root, this is user 1000; run it as root"):
        check_tools()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    real = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name in ("ip", "tc") else real(name) or name)
    with pytest.raises(ClusterError, match="made with ip, tc, not found; apt-get install iproute2"):
        check_tools()


def test_nothing_stays_when_a_set_up_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, possible: None) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(cluster_module, "KEEP_HOST", "raise SystemExit('no host today')")
    with pytest.raises(ClusterError, match=r"namespaces for h0 \(no host today\)"):
        Cluster(2)
    assert list(tmp_path.iterdir()) == []
