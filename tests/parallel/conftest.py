"""All tests here run on every rank at once, under any launcher and any number of ranks, one included.

RINGRED_TEST_NODES="0 0 1" puts ranks 0 and 1 on one node and the others on another, which MPI connects: the last number
holds for all further ranks. What a test needs of one node it says with the fixture one_node.

RINGRED_TEST_DEVICE=cuda puts every tensor that a test makes on a GPU, and "fake" on a device that is made up for the
purpose (fake_gpu.py): what a test makes with torch's factories is there, and so is what it makes of that. What a test
needs of the CPU it says with the fixture on_cpu.
"""

from __future__ import annotations

import functools
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


@pytest.fixture(scope="session", autouse=True)
def device(world: None) -> Iterator[str]:
    """Where the tensors of all tests are."""
    kind = os.environ.get("RINGRED_TEST_DEVICE", "cpu")
    if kind == "cpu":
        yield kind
        return
    import torch

    if kind == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU that torch sees")
    if kind == "fake":
        import fake_communicator
        import fake_gpu

        if not fake_gpu.install():
            pytest.skip("needs a torch that takes devices made in Python (2.10)")
        fake_communicator.install()
    torch.set_default_device(kind)
    if kind == "cuda":  # whose tensors take random numbers of generators of their own
        torch.Generator = functools.partial(torch.Generator, device=kind)  # type: ignore[assignment,misc]
    yield kind
    torch.set_default_device(None)


@pytest.fixture
def fake(device: str) -> Iterator[Any]:
    """The module of torch's fake device; other tensors are on the CPU."""
    if device != "fake":  # torch has to know of it before the first backward pass of the process
        pytest.skip("needs RINGRED_TEST_DEVICE=fake")
    import fake_gpu
    import torch

    torch.set_default_device("cpu")
    yield fake_gpu
    torch.set_default_device(device)


@pytest.fixture
def direct(fake: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ask for gradients that are reduced where they lie, and leave no groups."""
    from ringred.devices import groups

    if rr.size() == 1:
        pytest.skip("is about several ranks")
    monkeypatch.setenv("RINGRED_GPU", "direct")
    groups.end("a test begins")
    yield
    groups.end("a test is over")


@pytest.fixture
def on_cpu(device: str) -> None:
    """Skip where tensors are elsewhere."""
    if device != "cpu":
        pytest.skip("is about tensors on the CPU")


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
