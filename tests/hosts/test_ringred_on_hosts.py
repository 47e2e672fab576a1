"""ringred over hosts that only a network connects: right results in every layout, and an error that names the rank
which a cut link has taken away."""

from __future__ import annotations

import sys
import time

import pytest
import run_on_hosts
from cluster import Cluster
from programs import COLLECTIVES, ROUND_AND_ROUND, environment
from run_on_hosts import Mpi

from ringred.links import has_fabric


@pytest.mark.parametrize(
    ("layout", "link", "places"),
    [
        ([2, 2], "auto", ["local=0/2 cross=0/2", "local=1/2 cross=0/2", "local=0/2 cross=1/2", "local=1/2 cross=1/2"]),
        ([3, 1], "mpi", ["local=0/3 cross=0/2", "local=1/3 cross=0/1", "local=2/3 cross=0/1", "local=0/1 cross=1/2"]),
        ([1, 1], "auto", ["local=0/1 cross=0/2", "local=0/1 cross=1/2"]),
    ],
    ids=["2+2", "3+1", "1+1"],
)
def test_all_collectives_are_right(cluster: Cluster, mpi: Mpi, layout: list[int], link: str, places: list[str]) -> None:
    words = [sys.executable, "-P", "-c", COLLECTIVES]
    variables = environment(RINGRED_LINK=link, RINGRED_LOG_LEVEL="info")
    ended = run_on_hosts.run(cluster, layout, words, mpi, variables, seconds=60)
    assert ended.status == 0, ended.text
    if link == "auto" and not has_fabric():
        assert "over TCP (10.77.0.1, 10.77.0.2), not through MPI: on Ethernet it is the faster" in ended.text
    assert sorted(line for line in ended.text.splitlines() if line.startswith("local=")) == sorted(places)


@pytest.mark.parametrize("link", ["tcp", "mpi"])
def test_cut_link_ends_in_an_error_that_names_a_rank_beyond_it(cluster: Cluster, mpi: Mpi, link: str) -> None:
    words = [sys.executable, "-P", "-c", ROUND_AND_ROUND]
    job = run_on_hosts.start(cluster, [2, 2], words, mpi, environment(RINGRED_TIMEOUT_SECONDS="3", RINGRED_LINK=link))
    deadline = time.monotonic() + 40
    while job.text().count(".") < 10:
        assert time.monotonic() < deadline and job.process.poll() is None, job.text()
        time.sleep(0.02)
    cluster.cut("h1")
    began = time.monotonic()
    while "rank 0 ended with" not in job.text() and time.monotonic() < began + 20:
        time.sleep(0.1)
    seconds = time.monotonic() - began
    text = job.text()
    job.wait(0.1)
    assert "rank 0 ended with TimeoutError" in text or "rank 0 ended with PeerLostError" in text, text
    said = text[text.index("rank 0 ended with") :].splitlines()[0]
    assert "rank 2" in said or "rank 3" in said, said
    assert seconds < 10, said
    cluster.mend("h1")
