"""Which link the environment asks for, and by which address a node is reached."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import ringred as rr
from ringred import links, sockets
from ringred.topology import Topology

NOBODY = "no launcher of MPI's started these ranks"
STEP = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4"}
RANK = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "4"}


@pytest.fixture(autouse=True)
def with_mpi4py_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "mpi4py.MPI", raising=False)
    monkeypatch.setattr(links.importlib.util, "find_spec", lambda name: SimpleNamespace())


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, NOBODY),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, NOBODY),
        (RANK, (1, 4)),
        ({"PMI_RANK": "3", "PMI_SIZE": "4"}, (3, 4)),
        ({"PMIX_RANK": "3", **STEP}, (3, 4)),
        ({"PMIX_RANK": "3"}, NOBODY),  # of how many?
        (STEP, NOBODY),
    ],
)
def test_place_in_mpi_before_it_is_initialised(environment: dict[str, str], place: tuple[int, int] | str) -> None:
    assert links.place_in_mpi(environment) == place


def test_launcher_whose_connection_is_closed() -> None:
    """As torchrun closes it: MPICH would end the process."""
    inside, outside = os.pipe()
    environment = {"PMI_RANK": "0", "PMI_SIZE": "2", "PMI_FD": str(inside)}
    assert links.place_in_mpi(environment) == (0, 2)
    os.close(outside)
    os.close(inside)
    assert "has closed the launcher's connection" in str(links.place_in_mpi(environment))


def test_mpi_that_runs_already_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    world = SimpleNamespace(Get_rank=lambda: 2, Get_size=lambda: 3)
    module = SimpleNamespace(COMM_WORLD=world, Is_initialized=lambda: True, Is_finalized=lambda: False)
    monkeypatch.setitem(sys.modules, "mpi4py.MPI", module)
    assert links.place_in_mpi(RANK) == (2, 3)


def test_without_mpi4py(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links.importlib.util, "find_spec", lambda name: None)
    assert links.place_in_mpi(RANK) == "mpi4py is not installed"


def test_address_that_only_its_own_node_has_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where /etc/hosts gives a node's own name to 127.0.1.1."""
    monkeypatch.setattr(sockets, "_address_towards", lambda host: f"towards {host}")
    assert sockets.seen_by_others("127.0.1.1", ["127.0.1.1", "10.1.0.2"]) == "towards 10.1.0.2"
    assert sockets.seen_by_others("10.1.0.2", ["127.0.1.1", "10.1.0.2"]) == "10.1.0.2"
    assert sockets.seen_by_others("127.0.0.1", ["127.0.0.1"] * 2) == "127.0.0.1"
    assert sockets.seen_by_others("::1", ["::1", "127.0.0.1"]) == "::1"


def test_address_of_an_interface_or_towards_the_store_or_another_node() -> None:
    assert sockets.address_of({"GLOO_SOCKET_IFNAME": "lo", "MASTER_ADDR": "10.1.0.2"}, "10.1.0.2") == "127.0.0.1"
    assert sockets.address_of({"MASTER_ADDR": "127.0.0.1"}, "10.1.0.2") == "127.0.0.1"
    assert sockets.address_of({}, "localhost") in ("127.0.0.1", "::1")
    with pytest.raises(rr.SystemError, match=r"network of GLOO_SOCKET_IFNAME=eth99: .*look at firewalls"):
        sockets.address_of({"GLOO_SOCKET_IFNAME": "eth99", "MASTER_ADDR": "127.0.0.1"}, "localhost")


def test_fabric_is_a_device_and_not_a_class_without_one(tmp_path: Path) -> None:
    assert not links.has_fabric(tmp_path)
    (tmp_path / "infiniband").mkdir()
    assert not links.has_fabric(tmp_path)
    (tmp_path / "infiniband" / "mlx5_0").mkdir()
    assert links.has_fabric(tmp_path)


@pytest.mark.parametrize(
    ("layout", "fabrics", "over_tcp"),
    [([64, 64], [False], True), ([1, 65], [False], False), ([65, 1], [False], False), ([2, 2], [False, True], False)],
)
def test_tcp_for_ethernet_and_few_connections(layout: list[int], fabrics: list[bool], over_tcp: bool) -> None:
    nodes = Topology(tuple(node for node, ranks in enumerate(layout) for _ in range(ranks)))
    meeting = SimpleNamespace(size=sum(layout), allgather=lambda value: fabrics)
    assert links._on_ethernet(meeting, nodes) == over_tcp  # type: ignore[arg-type]


def test_remark_names_few_addresses() -> None:
    assert links._in_words(["a", "b", "a"]) == "a, b"
    assert links._in_words(list("abcdef")) == "a, b, c, d and 2 more"
