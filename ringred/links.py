"""What connects the nodes of a world: MPI where it knows the ranks and a faster network than Ethernet, TCP otherwise.

Invariant: which of them it is follows from what all ranks have told all, so it is the same on all.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ringred import _core, sockets
from ringred.bootstrap import Bootstrap, MpiBootstrap, agree, launched_size
from ringred.errors import UsageError
from ringred.topology import Topology

RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK")
"""By which MPI's launchers tell a process its rank."""

PMI_SOCKET_VARIABLE = "PMI_FD"
"""The descriptor by which MPICH's and Intel MPI's launchers speak with a process. It ends at a program in between that
closes what it does not know, as torchrun does, and MPI would end the process for that."""

FABRICS = ("infiniband", "cxi", "gni")
"""Linux's classes of devices that MPI drives past the kernel: InfiniBand, RoCE, EFA and Omni-Path; Slingshot; Aries."""

MOST_CONNECTIONS = 64
"""Of a rank, where MPI could be had instead: it connects as it sends, TCP here connects all at once."""

TRIAL_SECONDS = 5.0
"""For TCP to connect where there is MPI to fall back on."""


@dataclass
class Link:
    """What connects the nodes.

    Attributes:
        network: the core's side of it.
        remark: what there is to say of it, or "".
        level: of the remark: "info" where all is as it should be.
        sockets: what it holds, open as long as the core uses it. A forked child closes its copies, or it would keep its
            parent alive in the peers' eyes.
        mpi: what it holds of MPI.
    """

    network: _core.Network
    remark: str
    level: str = "warning"
    sockets: list[socket.socket] = field(default_factory=list)
    mpi: MpiBootstrap | None = None

    def close(self) -> None:
        for one in self.sockets:
            with contextlib.suppress(OSError):
                one.close()


def connect(meeting: Bootstrap, nodes: Topology, environment: Mapping[str, str], timeout_seconds: float) -> Link:
    """Connect the nodes of the ranks that have met. Collective."""
    asked = environment.get("RINGRED_LINK", "auto")
    if asked == "tcp":
        return _over_tcp(meeting, nodes, environment, timeout_seconds, "RINGRED_LINK=tcp says so")
    mpi, why = (
        (meeting, "") if isinstance(meeting, MpiBootstrap) else _meet_in_mpi(meeting, environment, timeout_seconds)
    )
    if mpi is None and asked == "mpi":
        raise UsageError(
            f"With RINGRED_LINK=mpi MPI must know these ranks, and cannot: {why}. Start them with mpirun or srun, or "
            "leave RINGRED_LINK at auto, for TCP."
        )
    if mpi is None:
        return _over_tcp(meeting, nodes, environment, timeout_seconds, why)
    remarks = []
    if asked == "auto" and _on_ethernet(meeting, nodes):
        try:
            return _over_ethernet(meeting, nodes, environment, timeout_seconds)
        except Exception as error:  # whatever it is: all ranks have one here
            remarks.append(f"Between nodes data goes through MPI, not over TCP, which was tried first: {error}")
    elif mpi is not meeting:
        remarks.append("Between nodes data goes through MPI, which numbers the ranks as they are.")
    link = _through_mpi(meeting, mpi)
    link.remark = " ".join(filter(None, [*remarks, link.remark]))
    return link


def _on_ethernet(meeting: Bootstrap, nodes: Topology) -> bool:
    """Whether TCP is the faster link: no node has a faster network than it, and few ranks are on other nodes."""
    farthest = max(meeting.size - nodes.nodes.count(node) for node in nodes.nodes)
    return not any(meeting.allgather(has_fabric())) and farthest <= MOST_CONNECTIONS


def _over_ethernet(meeting: Bootstrap, nodes: Topology, environment: Mapping[str, str], timeout_seconds: float) -> Link:
    """TCP where there is MPI, too."""
    why = "on Ethernet it is the faster of the two. RINGRED_LINK=mpi has MPI all the same"
    link = _over_tcp(meeting, nodes, environment, min(timeout_seconds, TRIAL_SECONDS), why)
    link.level = "info"
    return link


def has_fabric(classes: Path = Path("/sys/class")) -> bool:
    """Whether this node has a network that MPI drives past the kernel."""
    for name in FABRICS:
        with contextlib.suppress(OSError):
            if any((classes / name).iterdir()):
                return True
    return False


def _over_tcp(
    meeting: Bootstrap, nodes: Topology, environment: Mapping[str, str], timeout_seconds: float, why: str
) -> Link:
    connections, addresses = sockets.connect(meeting, nodes, environment, timeout_seconds)
    network = _core.socket_network([-1 if one is None else one.fileno() for one in connections])
    remark = f"Between nodes data goes over TCP ({_in_words(addresses)}), not through MPI: {why}."
    return Link(network, remark, sockets=[one for one in connections if one is not None])


def _through_mpi(meeting: Bootstrap, mpi: MpiBootstrap) -> Link:
    agree(meeting, "call MPI from its threads", mpi.check_thread_level)
    network, remark = agree(meeting, "connect the nodes", mpi.network)
    return Link(network, remark, mpi=mpi)


def _meet_in_mpi(
    meeting: Bootstrap, environment: Mapping[str, str], timeout_seconds: float
) -> tuple[MpiBootstrap | None, str]:
    """These ranks in MPI, or None and why they cannot be. MPI is initialised only where launchers' variables show that
    all ranks are its ranks: elsewhere every process would be alone, or wait for ever."""
    if isinstance(meeting, MpiBootstrap):
        return meeting, ""
    why = _common_reason(meeting, place_in_mpi(environment))
    if why:
        return None, why
    why = _common_reason(meeting, _place_after_start())
    if why:
        return None, why
    return agree(meeting, "meet the others in MPI", lambda: MpiBootstrap(environment, timeout_seconds)), ""


def _common_reason(meeting: Bootstrap, place: tuple[int, int] | str) -> str:
    """Why MPI does not have these ranks, or "". Collective."""
    places: list[tuple[int, int] | str] = meeting.allgather(place)
    for rank, one in enumerate(places):
        if isinstance(one, str):
            return one
        if one != (rank, meeting.size):
            return f"rank {rank} of {meeting.size} is {one[0]} of {one[1]} for MPI"
    return ""


def place_in_mpi(environment: Mapping[str, str]) -> tuple[int, int] | str:
    """This process's rank in MPI.COMM_WORLD and how many there are, as they are known without initialising MPI, or why
    there is none."""
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi is not None and mpi.Is_initialized() and not mpi.Is_finalized():
        return mpi.COMM_WORLD.Get_rank(), mpi.COMM_WORLD.Get_size()
    if importlib.util.find_spec("mpi4py") is None:
        return "mpi4py is not installed"
    ranks = [environment[name] for name in RANK_VARIABLES if environment.get(name, "").isdigit()]
    size = launched_size(environment)
    if not ranks or size is None:
        return "no launcher of MPI's started these ranks"
    descriptor = environment.get(PMI_SOCKET_VARIABLE, "")
    if descriptor.isdigit() and not _is_open(int(descriptor)):
        return f"a program between MPI's launcher and these ranks has closed the launcher's connection ({descriptor})"
    return int(ranks[0]), size


def _place_after_start() -> tuple[int, int] | str:
    """The same, after MPI was initialised."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # no library, or one that cannot be started
        return f"mpi4py cannot be imported ({error})"
    return MPI.COMM_WORLD.Get_rank(), MPI.COMM_WORLD.Get_size()


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _in_words(addresses: Iterable[str]) -> str:
    """The addresses, each once, and not more than fit a line."""
    distinct = list(dict.fromkeys(addresses))
    return ", ".join(distinct[:4]) + (f" and {len(distinct) - 4} more" if len(distinct) > 4 else "")
