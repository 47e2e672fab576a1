"""The default world: init, shutdown, rank, size and what depends on them.

Invariant: the world is replaced as a whole, under a lock, by init() and shutdown() only.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
from dataclasses import dataclass

from ringred import _core, bootstrap, handover
from ringred.bootstrap import agree
from ringred.cores import cgroup_quota
from ringred.errors import MismatchError, UsageError
from ringred.version import __version__


@dataclass
class World:
    """One init()'s ranks: the communicator and the descriptors that its peers handed over."""

    communicator: _core.Communicator
    peers: dict[int, handover.Peer]
    process: int
    forked: bool = False

    def close(self, reason: str) -> None:
        if not self.communicator.leave(reason):
            return  # a thread is in a call, and looks at the descriptors
        for peer in self.peers.values():
            peer.close()


LONGEST_MEETING_SECONDS = 1800.0

FORKED = (
    "A forked child cannot take part in its parent's collectives: this process was forked from one that called "
    "ringred.init(). Start ranks with mpirun, and data loaders with multiprocessing_context='forkserver'."
)

_lock = threading.Lock()
_world: World | None = None
_generation = 0


def init() -> None:
    """Meet the other ranks of this job and share memory with them. Collective; idempotent; works after shutdown().

    The launcher decides how ranks meet: mpirun (through mpi4py), torchrun or its variables RANK, WORLD_SIZE,
    MASTER_ADDR and MASTER_PORT (through torch's TCPStore), or a plain process alone (size 1).

    Raises:
        UsageError: launcher and MPI do not belong together, or the ranks are on more than one node.
        MismatchError: ranks run different versions of ringred or different RINGRED_* settings.
        SystemError: memory or a package is missing; the text says what to do.
    """
    global _world, _generation
    with _lock:
        if is_initialized():
            return
        if _world is not None and _world.communicator.size > 1:
            raise UsageError(FORKED)  # it would meet its parent's peers in its parent's name
        _generation += 1
        _world = _connect(_generation)


def shutdown() -> None:
    """Leave the world. Peers that still wait for this rank raise PeerLostError; arrays made by empty() stay valid."""
    global _world
    with _lock:
        if _world is not None and not _world.forked:
            _world.close("it called shutdown()")
        _world = None


def is_initialized() -> bool:
    """Whether init() has been called in this process, and shutdown() not since."""
    return _world is not None and not _world.forked


def communicator() -> _core.Communicator:
    """The default world's communicator.

    Raises:
        UsageError: init() has not been called, or this process was forked from one that called it.
    """
    if _world is None:
        raise UsageError("ringred must be initialized before it is used: call ringred.init() first.")
    if _world.forked:
        raise UsageError(FORKED)
    return _world.communicator


def rank() -> int:
    """This process's number among all ranks, 0 to size() - 1."""
    return communicator().rank


def size() -> int:
    """The number of ranks."""
    return communicator().size


def local_rank() -> int:
    """This process's number among the ranks of its node."""
    return communicator().rank


def local_size() -> int:
    """The number of ranks on this node."""
    return communicator().size


def cross_rank() -> int:
    """The number of this node among the nodes that have a rank with this local rank. One node for now, so 0."""
    communicator()
    return 0


def cross_size() -> int:
    """The number of nodes that have a rank with this local rank. One node for now, so 1."""
    communicator()
    return 1


def _connect(generation: int) -> World:
    environment = bootstrap.environment()
    timeout_seconds = _meeting_seconds(environment.get("RINGRED_TIMEOUT_SECONDS", ""))
    meeting = bootstrap.start({**os.environ, **environment}, generation, timeout_seconds)
    settings = agree(meeting, "read its settings", lambda: _core.agreed_settings(environment))
    _check_agreement(meeting, [f"ringred version={__version__}", *settings])
    endpoint = agree(meeting, "make its shared segment", lambda: _core.Endpoint(meeting.size, environment))
    node = environment.get("RINGRED_NODE", "")
    peers = handover.exchange(meeting, endpoint.descriptor, node, timeout_seconds)
    try:
        cores_suffice = meeting.size <= _common_cores(meeting)
        communicator = agree(
            meeting,
            "map its peers' segments",
            lambda: endpoint.connect(
                rank=meeting.rank,
                descriptors=[peers[peer].segment if peer in peers else -1 for peer in range(meeting.size)],
                lifelines=[peers[peer].lifeline if peer in peers else -1 for peer in range(meeting.size)],
                cores_suffice=cores_suffice,
                reports=environment.get("RINGRED_LOG_LEVEL", "warning") != "error",
            ),
        )
    except BaseException:
        for peer in peers.values():
            peer.close()
        raise
    return World(communicator, peers, os.getpid())


def _meeting_seconds(setting: str) -> float:
    """How long to wait for the other ranks while they start: for ever is half an hour. The core checks the setting."""
    try:
        seconds = float(setting)
    except ValueError:
        return LONGEST_MEETING_SECONDS
    return seconds if 0 < seconds < LONGEST_MEETING_SECONDS else LONGEST_MEETING_SECONDS


def _check_agreement(meeting: bootstrap.Bootstrap, rows: list[str]) -> None:
    for values in zip(*meeting.allgather(rows), strict=True):
        if len(set(values)) == 1:
            continue
        name = values[0].partition("=")[0]
        said = "; ".join(
            f"{value.partition('=')[2] or 'empty'!r} on "
            + ", ".join(f"rank {peer}" for peer, one in enumerate(values) if one == value)
            for value in dict.fromkeys(values)
        )
        raise MismatchError(
            f"{name} must be the same on all ranks: it is {said}. Set it in the launcher's environment."
        )


def _common_cores(meeting: bootstrap.Bootstrap) -> float:
    """How many cores all ranks have together: the union of their affinity masks, or the container's quota."""
    masks: list[set[int]] = meeting.allgather(os.sched_getaffinity(0))
    quota = cgroup_quota()
    cores = len(set().union(*masks))
    lowest: float = min(meeting.allgather(cores if quota is None else min(cores, quota)))
    return lowest


def _leave_at_exit() -> None:
    if _world is not None and not _world.forked:
        error = getattr(sys, "last_value", None)  # what nobody caught
        reason = "its process came to its end" if error is None else f"its process ended with {error!r}"
        _world.communicator.leave(reason)


def _mark_forked() -> None:
    if _world is not None:
        _world.forked = True
        _world.communicator.abandon()
        for peer in _world.peers.values():
            peer.close()


atexit.register(_leave_at_exit)
os.register_at_fork(after_in_child=_mark_forked)
