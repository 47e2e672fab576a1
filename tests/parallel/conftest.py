"""All tests here run on every rank at once, under any launcher and any number of ranks, one included.

RINGRED_TEST_NODES="0 0 1" puts ranks 0 and 1 on one node and the others on another, which MPI connects: the last number
holds for all further ranks. What a test needs of one node it says with the fixture one_node.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ringred as rr

sys.path.insert(0, str(Path(__file__).parent))  # with --import-mode=importlib pytest does not


@pytest.fixture(scope="session", autouse=True)
def world() -> Iterator[None]:
    """Initialise once, for all tests of the session."""
    if layout := os.environ.get("RINGRED_TEST_NODES", "").split():
        from mpi4py import MPI

        os.environ.setdefault("RINGRED_LINK", "mpi")
        os.environ["RINGRED_NODE"] = layout[min(MPI.COMM_WORLD.Get_rank(), len(layout) - 1)]
    rr.init()
    yield
    rr.shutdown()


@pytest.fixture
def one_node() -> None:
    """Skip where ranks are on several nodes."""
    if rr.local_size() != rr.size():
        pytest.skip("needs all ranks on one node")


@pytest.fixture
def mpi() -> Any:
    """mpi4py's MPI, if it is what brought the ranks together; else a skip."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # there is none, or no library for it
        pytest.skip(f"needs mpi4py and an MPI: {error}")
    if MPI.COMM_WORLD.Get_size() != rr.size():
        pytest.skip("needs ranks that mpirun has started")
    return MPI
