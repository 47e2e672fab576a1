"""Which way of meeting the environment asks for, and environments that make no sense."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

import ringred as rr
from ringred import bootstrap

STORE = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture(autouse=True)
def without_mpi(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "mpi4py.MPI", raising=False)


@pytest.mark.parametrize(
    ("environment", "kind"),
    [
        ({}, "single"),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "mpi"),
        ({"PMI_SIZE": "1"}, "mpi"),
        ({"MPI_LOCALNRANKS": "2"}, "mpi"),
        ({"OMPI_COMM_WORLD_SIZE": ""}, "single"),
        (STORE, "store"),
        ({**STORE, "MASTER_PORT": ""}, "single"),
        ({**STORE, "PMI_SIZE": "2"}, "mpi"),
        ({**STORE, "RINGRED_BOOTSTRAP": "single"}, "single"),
        ({"PMI_SIZE": "2", "RINGRED_BOOTSTRAP": "store"}, "store"),
        ({"RINGRED_BOOTSTRAP": "mpi"}, "mpi"),
        ({**STORE, "RINGRED_BOOTSTRAP": "auto"}, "store"),
    ],
)
def test_choice(environment: dict[str, str], kind: str) -> None:
    assert bootstrap.choose(environment) == kind


@pytest.mark.parametrize(("size", "kind"), [(1, "single"), (3, "mpi")])
def test_choice_where_mpi_was_started_already(monkeypatch: pytest.MonkeyPatch, size: int, kind: str) -> None:
    """Launchers that set none of the known variables: the user's script has imported MPI, and it has several ranks."""
    module = SimpleNamespace(COMM_WORLD=SimpleNamespace(Get_size=lambda: size))
    monkeypatch.setitem(sys.modules, "mpi4py.MPI", module)
    assert bootstrap.choose({}) == kind


def test_launched_size() -> None:
    assert bootstrap.launched_size({}) is None
    assert bootstrap.launched_size({"PMI_SIZE": "many"}) is None
    assert bootstrap.launched_size({"PMI_SIZE": "8", "MPI_LOCALNRANKS": "4"}) == 8


@pytest.mark.parametrize("name", bootstrap.MPI_SIZE_VARIABLES)
def test_launcher_and_library_of_different_mpis(name: str) -> None:
    with pytest.raises(rr.UsageError, match=r"launcher started 4 ranks, and MPI says 1 \(MPICH 5\).*ringred run"):
        bootstrap.check_launcher({name: "4"}, 1, "MPICH 5\nmore lines")


def test_launcher_and_library_that_belong_together() -> None:
    bootstrap.check_launcher({}, 1, "any")
    bootstrap.check_launcher({"OMPI_COMM_WORLD_SIZE": "4"}, 4, "any")
    bootstrap.check_launcher({"MPI_LOCALNRANKS": "2"}, 4, "any")  # of two nodes


@pytest.mark.parametrize(
    ("name", "value"),
    [("RANK", "two"), ("RANK", "-1"), ("RANK", "2"), ("WORLD_SIZE", "0"), ("MASTER_PORT", ""), ("MASTER_ADDR", "")],
)
def test_store_variables_that_make_no_sense(name: str, value: str) -> None:
    with pytest.raises(rr.UsageError, match=f"{name}='{value}'"):
        bootstrap.start({**STORE, name: value, "RINGRED_BOOTSTRAP": "store"}, 1, 1.0)


def test_store_of_one_needs_no_store() -> None:
    assert bootstrap.start({**STORE, "WORLD_SIZE": "1"}, 1, 1.0).name == "single"


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(rr.SystemError, match=r"mpirun started needs the package mpi4py.*pip install mpi4py"):
        bootstrap.start({"PMI_SIZE": "2"}, 1, 1.0)
    monkeypatch.setitem(sys.modules, "torch.distributed.distributed_c10d", None)
    with pytest.raises(rr.SystemError, match=r"torchrun started needs the package torch.*pip install torch"):
        bootstrap.start(STORE, 1, 1.0)


class Meeting:
    """A meeting of this rank with others whose values are made up."""

    name = "made up"
    rank = 0

    def __init__(self, *others: object) -> None:
        self.size = 1 + len(others)
        self.others = others

    def allgather(self, value: object) -> list[object]:
        return [value, *self.others]


def test_agree_returns_the_result() -> None:
    assert bootstrap.agree(Meeting(None, None), "do it", lambda: 7) == 7


def test_agree_raises_what_a_peer_raised() -> None:
    with pytest.raises(rr.SystemError, match="rank 2 could not do it, so no rank can start: no room"):
        bootstrap.agree(Meeting(None, "no room"), "do it", lambda: 7)


@pytest.mark.parametrize("error", [rr.UsageError("wrong"), OSError("broken"), MemoryError()])
def test_agree_tells_the_peers_before_it_raises(error: Exception) -> None:
    told = []

    class Listening(Meeting):
        def allgather(self, value: object) -> list[object]:
            told.append(value)
            return super().allgather(value)

    def fail() -> None:
        raise error

    with pytest.raises(type(error)):
        bootstrap.agree(Listening(None), "do it", fail)
    assert told == [str(error)]


def test_ranks_of_a_communicator_are_taken_in_one_order() -> None:
    """Create_group must get the same group on all ranks, whatever order each of them lists it in."""
    seen: list[list[int]] = []

    class World:
        Get_size, Get_rank = staticmethod(lambda: 4), staticmethod(lambda: 1)
        Get_group = staticmethod(lambda: SimpleNamespace(Incl=list))
        Create_group = staticmethod(seen.append)

    mpi = SimpleNamespace(Comm=World, COMM_WORLD=World)
    for ranks in ([3, 1], (1, 3)):
        bootstrap._communicator_of(mpi, ranks)
    assert seen == [[1, 3], [1, 3]]
