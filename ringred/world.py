"""The default world: init, shutdown, rank, size and what depends on them.

Invariant: the world is replaced as a whole, under a lock, by init() and shutdown() only.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ringred import _core, bootstrap, environment, handover, links, stacks, tuning
from ringred.bootstrap import agree
from ringred.cores import cgroup_quota
from ringred.errors import MismatchError, UsageError
from ringred.topology import Topology
from ringred.version import __version__


@dataclass
class World:
    """One init()'s ranks: communicator, engine and the descriptors that its peers handed over."""

    communicator: _core.Communicator | _core.SpanningCommunicator
    engine: _core.Engine
    topology: Topology
    peers: dict[int, handover.Peer]
    link: links.Link | None
    meeting: bootstrap.Bootstrap
    process: int
    forked: bool = False

    def close(self, reason: str) -> None:
        self.engine.leave(reason)
        if self.link is not None:
            self.link.close()  # the engine alone uses it
        if not self.communicator.leave(reason):
            return  # a thread is in a call, and looks at the descriptors
        for peer in self.peers.values():
            peer.close()


LONGEST_MEETING_SECONDS = 1800.0

FORKED = (
    "A forked child cannot take part in its parent's collectives: this process was forked from one that called "
    "ringred.init(). Let only the ranks call it; workers of data loaders may ask for rank() and size()."
)

CALLERS_SERIAL = 1
"""What tells the messages of the synchronous calls from others: process sets count on from here, the world has 0."""

RANK_MARK = "_RINGRED_RANK"
"""The environment variable by which the children of a rank know that they are: the rank's process, and its launch."""

_lock = threading.Lock()
_world: World | None = None
_generation = 0


def init(comm: Any = None, process_sets: Any = None) -> None:
    """Meet the other ranks of this job: share memory with those of this node, and connect to other nodes through MPI
    or, where MPI does not know these ranks, over TCP.

    Collective; idempotent; works after shutdown().

    The launcher decides how ranks meet: mpirun (through mpi4py), torchrun or its variables RANK, WORLD_SIZE,
    MASTER_ADDR and MASTER_PORT (through torch's TCPStore), or a plain process alone (size 1).

    Args:
        comm: whom to meet: None for all ranks of the job, an mpi4py communicator, or a list of ranks of
            MPI.COMM_WORLD. Only these ranks call, and they are numbered anew.
        process_sets: process sets (or lists of ranks) to register at once, the same on all ranks. "dynamic", which
            Horovod needs for add_process_set(), is accepted and changes nothing: sets can always be added.

    Raises:
        UsageError: launcher and MPI do not belong together, MPI was initialised for one thread and connects nodes, or
            an argument is none of these.
        MismatchError: ranks run different versions of ringred, different RINGRED_* settings or other process sets.
        SystemError: memory or a package is missing, or a node is not reached; the text says what to do.
    """
    global _world, _generation
    with _lock:
        if is_initialized():
            return
        if _world is not None and _world.communicator.size > 1:
            raise UsageError(FORKED)  # it would meet its parent's peers in its parent's name
        _check_is_rank()
        _generation += 1
        sets = _checked_sets(process_sets)
        _world = _connect(_generation, comm, sets)
        try:
            _complete(_world, sets)
        except BaseException:
            _end(_world, "its init() failed")
            _world = None
            raise
        if _world.engine.size > 1:
            os.environ[RANK_MARK] = f"{os.getpid()} {_launched_as()}"


def shutdown() -> None:
    """Leave the world. Operations in flight fail by name, peers that still wait for this rank raise PeerLostError, and
    arrays made by empty() stay valid."""
    global _world
    with _lock:
        left = _world
        if left is not None and left.forked:
            return  # a forked child stays one: it may not meet its parent's peers
        if left is not None:
            _end_device_groups("it called shutdown()", wait=True)
        _world = None
        if left is not None:
            os.environ.pop(RANK_MARK, None)
            _end(left, "it called shutdown()")
    _let_helpers_end()


def is_initialized() -> bool:
    """Whether init() has been called in this process, and shutdown() not since."""
    return _world is not None and not _world.forked


def communicator() -> _core.Communicator | _core.SpanningCommunicator:
    """The default world's communicator.

    Raises:
        UsageError: init() has not been called, or this process was forked from one that called it.
    """
    if _world is None:
        raise UsageError("ringred must be initialized before it is used: call ringred.init() first.")
    if _world.forked:
        raise UsageError(FORKED)
    return _world.communicator


def engine() -> _core.Engine:
    """The default world's engine. Raises as communicator() does."""
    communicator()
    assert _world is not None
    return _world.engine


def mpi_communicator() -> Any:
    """The mpi4py communicator of the default world's ranks, or None where they did not meet through MPI."""
    communicator()
    assert _world is not None
    return getattr(_world.meeting, "communicator", None)


def rank() -> int:
    """This process's number among all ranks, 0 to size() - 1. In a forked child, its parent's."""
    return _known().communicator.rank


def size() -> int:
    """The number of ranks."""
    return _known().communicator.size


def local_rank() -> int:
    """This process's number among the ranks of its node. In a forked child, its parent's."""
    known = _known()
    return known.topology.neighbours(known.engine.rank).index(known.engine.rank)


def local_size() -> int:
    """The number of ranks on this node."""
    known = _known()
    return len(known.topology.neighbours(known.engine.rank))


def cross_rank() -> int:
    """The number of this node among the nodes that have a rank with this local rank."""
    communicator()
    nodes = topology()
    return nodes.columns(rank()).index(nodes.nodes[rank()])


def cross_size() -> int:
    """The number of nodes that have a rank with this local rank."""
    communicator()
    return len(topology().columns(rank()))


def peer(rank: int) -> handover.Peer:
    """What this process holds of another rank of its node."""
    return _known().peers[rank]


def topology() -> Topology:
    """Which ranks share a node. Raises as communicator() does."""
    communicator()
    return _known().topology


def _known() -> World:
    """The world, also in a forked child, whose data loaders want to know which rank they work for."""
    if _world is None:
        communicator()
    assert _world is not None
    return _world


def _launched_as() -> str:
    """What tells one launch of a rank from another."""
    names = ("PMIX_NAMESPACE", "PMIX_RANK", "PMI_RANK", "PMI_FD", "PMI_PORT", "RANK", "MASTER_PORT")
    return "/".join(os.environ.get(name, "") for name in names)


def _check_is_rank() -> None:
    """Raise in a process that a rank has started, as data loaders do, with the rank's launch in its environment."""
    process, _, launched = os.environ.get(RANK_MARK, "").partition(" ")
    if process and int(process) != os.getpid() and launched == _launched_as():
        raise UsageError(
            f"Only ranks call init(): this process ({os.getpid()}) was started by a rank (process {process}), as "
            "workers of data loaders and of multiprocessing are, which import the script anew. Put what only ranks do, "
            "init() first of all, under if __name__ == '__main__'."
        )


def _checked_sets(process_sets: Any) -> list[Any]:
    if process_sets is None or (isinstance(process_sets, str) and process_sets == "dynamic"):
        return []
    if isinstance(process_sets, str) or not isinstance(process_sets, Iterable):
        raise UsageError(
            f'process_sets must be a list of process sets, "dynamic" or None: it is {process_sets!r}. Put a single '
            "set into a list."
        )
    return list(process_sets)


def _complete(world: World, sets: list[Any]) -> None:
    """What needs a world that works already."""
    from ringred import diagnosis, process_sets

    if world.engine.rank == 0:
        environment.announce()
    stacks.offer(world.engine)
    process_sets.register_static(sets)
    agree(world.meeting, "begin its records", lambda: diagnosis.begin(world.engine, bootstrap.environment()))


def _end(world: World, reason: str) -> None:
    from ringred import diagnosis

    diagnosis.end()
    world.close(reason)


def _end_device_groups(reason: str, wait: bool) -> None:
    """While the engine still connects the ranks. Nothing is imported for it."""
    groups = sys.modules.get("ringred.devices.groups")
    if groups is not None:
        groups.end(reason, groups.GRACE_SECONDS if wait else 0.0)


def _let_helpers_end() -> None:
    """Join the threads that served the world. Without the lock: what they run may call anything."""
    from ringred import callbacks, registrar

    callbacks.reset()
    registrar.reset()


def _connect(generation: int, comm: Any, sets: list[Any]) -> World:
    from ringred import process_sets

    settings = bootstrap.environment()
    timeout_seconds = _meeting_seconds(settings.get("RINGRED_TIMEOUT_SECONDS", ""))
    described = process_sets.describe(sets)
    meeting = bootstrap.start({**os.environ, **settings}, generation, timeout_seconds, comm)
    rows = agree(meeting, "read its settings", lambda: _read_settings(settings))
    tuned = agree(meeting, "read its tuning file", lambda: tuning.load(settings.get("RINGRED_TUNING", "")))
    _check_agreement(meeting, [f"ringred version={__version__}", f"process_sets={described}", *rows])
    endpoint = agree(meeting, "make its shared segment", lambda: _core.Endpoint(meeting.size, settings))
    node = settings.get("RINGRED_NODE", "")
    peers, nodes = handover.exchange(meeting, endpoint.descriptor, node, timeout_seconds)
    with contextlib.ExitStack() as undo:
        for peer in peers.values():
            undo.callback(peer.close)
        _check_tuning(meeting, nodes, tuned)
        link = _link(meeting, nodes, settings, timeout_seconds)
        if link is not None:
            undo.callback(link.close)
        neighbours = nodes.neighbours(meeting.rank)
        cores_suffice = len(neighbours) <= _common_cores(meeting, neighbours)
        place = agree(meeting, "make its part of the world", lambda: endpoint.settle(meeting.rank, nodes.nodes))
        places = meeting.allgather(place)
        communicator, engine = agree(
            meeting,
            "map its peers' segments",
            lambda: endpoint.connect(
                rank=meeting.rank,
                descriptors=[peers[peer].segment if peer in peers else -1 for peer in range(meeting.size)],
                lifelines=[peers[peer].lifeline if peer in peers else -1 for peer in range(meeting.size)],
                places=places,
                cores_suffice=cores_suffice,
                reports=settings.get("RINGRED_LOG_LEVEL", "warning") != "error",
                network=None if link is None else link.network,
                costs=tuned.costs if tuned else None,
            ),
        )
        undo.callback(engine.leave, "its init() failed")
        calls = communicator or _spanning(meeting, engine, settings, nodes, tuned)
        undo.pop_all()
    return World(calls, engine, nodes, peers, link, meeting, os.getpid())


def _link(
    meeting: bootstrap.Bootstrap, nodes: Topology, settings: dict[str, str], timeout_seconds: float
) -> links.Link | None:
    """What connects the nodes, or None where there is one."""
    if nodes.count == 1:
        return None
    link = links.connect(meeting, nodes, {**os.environ, **settings}, timeout_seconds)
    if link.remark and meeting.rank == 0:
        environment.say(link.remark, link.level, settings)
    return link


def _spanning(
    meeting: bootstrap.Bootstrap,
    engine: _core.Engine,
    settings: dict[str, str],
    nodes: Topology,
    tuned: tuning.Tuning | None,
) -> _core.SpanningCommunicator:
    """The synchronous calls' own group in the engine."""
    ranks, number = list(range(meeting.size)), _core.CALLERS_GROUP
    offset = agree(meeting, "prepare its synchronous calls", lambda: engine.prepare_group(ranks))
    offsets = meeting.allgather(offset)
    agree(
        meeting, "connect its synchronous calls", lambda: engine.connect_group(number, ranks, offsets, CALLERS_SERIAL)
    )
    costs = tuned.costs if tuned else None
    return _core.SpanningCommunicator(engine, number, settings, list(nodes.nodes), costs)


def _check_tuning(meeting: bootstrap.Bootstrap, nodes: Topology, tuned: tuning.Tuning | None) -> None:
    """Ranks that chose by different costs would wait for each other."""
    if tuned is None:
        return
    digests = meeting.allgather(tuned.digest)
    other = next((rank for rank, digest in enumerate(digests) if digest != digests[0]), None)
    if other is not None:
        raise MismatchError(
            f"The file that RINGRED_TUNING names must be the same on all ranks: {tuned.path} of rank {other} is not "
            "that of rank 0. Copy one to all nodes."
        )
    tuned.check_fits(nodes)


def _read_settings(settings: dict[str, str]) -> list[str]:
    environment.check()
    return _core.agreed_settings(settings)


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


def _common_cores(meeting: bootstrap.Bootstrap, ranks: list[int]) -> float:
    """How many cores these ranks of one node have together: the union of their affinity masks, or the container's
    quota. Collective over all ranks."""
    rows: list[tuple[set[int], float | None]] = meeting.allgather((os.sched_getaffinity(0), cgroup_quota()))
    here = [rows[rank] for rank in ranks]
    cores = len(set().union(*(mask for mask, _ in here)))
    return min([cores, *(quota for _, quota in here if quota is not None)])


def _leave_at_exit() -> None:
    if _world is None or _world.forked:
        return
    from ringred import diagnosis

    error = getattr(sys, "last_value", None)  # what nobody caught
    reason = "its process came to its end" if error is None else f"its process ended with {error!r}"
    diagnosis.end()
    _end_device_groups(reason, wait=error is None)
    _world.engine.leave(reason)
    _world.communicator.leave(reason)
    _let_helpers_end()


def _mark_forked() -> None:
    if _world is not None:
        _world.forked = True
        _world.communicator.abandon()
        _world.engine.abandon()
        if _world.link is not None:
            _world.link.close()
        for peer in _world.peers.values():
            peer.close()


atexit.register(_leave_at_exit)
os.register_at_fork(after_in_child=_mark_forked)
