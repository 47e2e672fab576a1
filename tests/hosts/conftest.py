"""Tests here make hosts on this machine (tools/cluster.py); where that is impossible, they say why and are skipped."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
sys.path.insert(0, str(Path(__file__).parent))  # with --import-mode=importlib pytest does not

from cluster import Cluster, reason_against
from run_on_hosts import Mpi, find_mpi


@pytest.fixture(scope="session")
def possible() -> None:
    """Skip where hosts cannot be made."""
    if reason := reason_against():
        pytest.skip(reason)


@pytest.fixture
def cluster(possible: None) -> Iterator[Cluster]:
    """Two hosts."""
    with Cluster(2) as made:
        yield made


@pytest.fixture(scope="session")
def mpi() -> Mpi:
    """The MPI that mpi4py loads."""
    return find_mpi()
