"""MPI jobs over several hosts have the ranks where the layout says, and end with all that they started."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

import pytest
import run_on_hosts
from cluster import Cluster, ClusterError
from run_on_hosts import Mpi, layout_of

# Prints each rank's host and the number of ranks that MPI counts as its neighbours, in rank order.
PLACES = """
import array, json, socket
from mpi4py import MPI
world = MPI.COMM_WORLD
node = world.Split_type(MPI.COMM_TYPE_SHARED)
ones, total = array.array("f", [1]) * (1 << 18), array.array("f", [0]) * (1 << 18)
world.Allreduce(ones, total)
places = world.gather([socket.gethostname(), node.size, total == array.array("f", [world.size]) * (1 << 18)])
if world.rank == 0:
    print(json.dumps(places), flush=True)
"""
# Comes to a standstill in an exchange between the hosts once the link is cut; every rank has a child.
EXCHANGE = """
import array, subprocess
from mpi4py import MPI
world = MPI.COMM_WORLD
child = subprocess.Popen(["sleep", "600"])
ones, total = array.array("f", [1]) * (1 << 16), array.array("f", [0]) * (1 << 16)
while True:
    world.Allreduce(ones, total)
    if world.rank == 0:
        print(".", flush=True)
"""


@pytest.mark.parametrize(
    ("layout", "interleaved", "hosts"),
    [
        ([2, 2], False, ["h0", "h0", "h1", "h1"]),
        ([2, 2], True, ["h0", "h1", "h0", "h1"]),
        ([3, 1], False, ["h0", "h0", "h0", "h1"]),
        ([1, 1], False, ["h0", "h1"]),
    ],
    ids=["2+2", "2+2-interleaved", "3+1", "1+1"],
)
def test_ranks_are_where_the_layout_says(
    cluster: Cluster, mpi: Mpi, layout: list[int], interleaved: bool, hosts: list[str]
) -> None:
    ended = run_on_hosts.run(cluster, layout, [sys.executable, "-c", PLACES], mpi, interleaved=interleaved)
    assert ended.status == 0, ended.text
    expected = [[host, layout[int(host[1:])], True] for host in hosts]
    assert json.loads(ended.text.splitlines()[-1]) == expected
    assert cluster.wait_until_idle(10) == {}


def test_job_over_a_cut_link_stops_and_leaves_no_process(cluster: Cluster, mpi: Mpi) -> None:
    job = run_on_hosts.start(cluster, [2, 2], [sys.executable, "-c", EXCHANGE], mpi)
    deadline = time.monotonic() + 30
    while job.text().count(".") < 10:
        assert time.monotonic() < deadline and job.process.poll() is None, job.text()
        time.sleep(0.02)
    cluster.cut("h1")
    time.sleep(0.2)  # what was on its way
    before = job.text()
    ended = job.wait(0.5)
    assert ended.timed_out and ended.text == before
    assert cluster.processes() == {}
    cluster.mend("h1")
    again = run_on_hosts.run(cluster, [1, 1], ["cat", "/proc/sys/kernel/hostname"], mpi)
    assert again.status == 0 and {"h0", "h1"} <= set(again.text.split()), again.text


def test_environment_and_directory_reach_the_ranks(cluster: Cluster, mpi: Mpi, tmp_path: Path) -> None:
    environment = {**os.environ, "COLOUR": "red"}
    ended = run_on_hosts.run(cluster, [1, 1], ["sh", "-c", "echo $COLOUR $PWD $TMPDIR"], mpi, environment, tmp_path)
    assert ended.status == 0
    for host in cluster.hosts:
        assert f"red {tmp_path} {cluster.directory / host / 'tmp'}" in ended.text


def test_exit_code_of_a_rank_is_the_jobs(cluster: Cluster, mpi: Mpi) -> None:
    assert run_on_hosts.run(cluster, [1, 1], ["sh", "-c", "exit 3"], mpi).status == 3


def test_command_line_passes_a_job_on(possible: None, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["run_on_hosts.py", "--layout", "1+1", "--seconds", "30", "--", "sh", "-c", "cat /proc/sys/kernel/hostname"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", words)
        assert run_on_hosts.main() == 0
    assert {"h0", "h1"} <= set(capfd.readouterr().out.split())


def test_layouts_that_make_no_sense_are_refused(cluster: Cluster, mpi: Mpi) -> None:
    for layout in ([], [2, 0], [1, 1, 1]):
        with pytest.raises(ClusterError, match="at least one rank for each host, and no more hosts than the 2"):
            run_on_hosts.start(cluster, layout, ["true"], mpi)


def test_layouts_are_read_from_text() -> None:
    assert layout_of("3+1") == [3, 1] and layout_of("4") == [4]
    for text in ("", "2+", "2+0", "2x2", "-1+2"):
        with pytest.raises(argparse.ArgumentTypeError, match="such as 2\\+2 or 3\\+1"):
            layout_of(text)
