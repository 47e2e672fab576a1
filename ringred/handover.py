"""How local ranks hand each other their memory: file descriptors over abstract Unix sockets.

Two ranks are local exactly when this works; a hostname proves nothing. The sockets have random names that only the
bootstrap tells, and both ends check that the other belongs to the same user.

    1. Every rank listens under a random abstract name, and the bootstrap tells all names to all.
    2. Every rank connects to all lower ranks and sends them its rank and its descriptor. Nobody has to accept yet.
    3. The bootstrap tells who reached whom, so nobody waits for a connection that cannot come.
    4. Every rank accepts the connections of the higher ranks that reached it, and answers with its own descriptor.
    5. Every rank reads the answers of the lower ranks.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import struct
from dataclasses import dataclass

from ringred.bootstrap import Bootstrap
from ringred.errors import SystemError, UsageError

_CREDENTIALS = struct.Struct("iII")  # struct ucred: pid, uid, gid
_HELLO = struct.Struct("i")  # the sender's rank


@dataclass
class Peer:
    """What a rank holds of a local peer: its segment, the connection to it, and what is readable when it ends.

    The connection stays open as long as this rank lives, for a peer that has no other way to notice its end. A forked
    child closes it, or it would keep its parent alive in the peer's eyes.
    """

    segment: int
    connection: int
    lifeline: int

    def close(self) -> None:
        for descriptor in {self.segment, self.connection, self.lifeline}:
            with contextlib.suppress(OSError):
                os.close(descriptor)


def exchange(bootstrap: Bootstrap, descriptor: int, node: str, timeout_seconds: float) -> dict[int, Peer]:
    """Hand `descriptor` to all other ranks and receive theirs. Collective.

    Args:
        node: the name that RINGRED_NODE gives this rank's node, or "" to let the sockets tell.

    Raises:
        UsageError: the ranks are on more than one node.
        SystemError: a rank of another user answered, or a peer stopped in the middle.
    """
    rank, size = bootstrap.rank, bootstrap.size
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        name = "ringred-" + secrets.token_hex(16)
        listener.bind("\0" + name)
        listener.listen(size)
        endpoints: list[tuple[str, str]] = bootstrap.allgather((name, node))
        sockets: dict[int, socket.socket] = {}
        try:
            for peer in range(rank):
                if endpoints[peer][1] == node:
                    _connect(sockets, peer, endpoints[peer][0], rank, descriptor, timeout_seconds)
            reached: list[list[int]] = bootstrap.allgather(sorted(sockets))
            _check_one_node(reached, endpoints)
            received: dict[int, int] = {}
            listener.settimeout(timeout_seconds)
            for _ in range(rank + 1, size):
                _accept(listener, sockets, received, rank, descriptor, timeout_seconds)
            for peer in range(rank):
                received[peer] = _receive(sockets[peer])[1]
        except (OSError, UsageError) as error:
            for connection in sockets.values():
                connection.close()
            if isinstance(error, (SystemError, UsageError)):
                raise
            raise SystemError(f"rank {rank} could not exchange memory with a local peer: {error}.") from error
    return {peer: _peer(connection, received[peer]) for peer, connection in sockets.items()}


def _connect(
    sockets: dict[int, socket.socket], peer: int, name: str, rank: int, descriptor: int, timeout_seconds: float
) -> None:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(timeout_seconds)
    try:
        connection.connect("\0" + name)
    except ConnectionRefusedError:  # another network namespace: another node
        connection.close()
        return
    sockets[peer] = connection
    _check_user(connection, peer)
    socket.send_fds(connection, [_HELLO.pack(rank)], [descriptor])


def _accept(
    listener: socket.socket,
    sockets: dict[int, socket.socket],
    received: dict[int, int],
    rank: int,
    descriptor: int,
    timeout_seconds: float,
) -> None:
    connection, _ = listener.accept()
    connection.settimeout(timeout_seconds)
    _check_user(connection, None)
    peer, segment = _receive(connection)
    sockets[peer] = connection
    received[peer] = segment
    socket.send_fds(connection, [_HELLO.pack(rank)], [descriptor])


def _receive(connection: socket.socket) -> tuple[int, int]:
    data, descriptors, _, _ = socket.recv_fds(connection, _HELLO.size, 1)
    if len(data) != _HELLO.size or len(descriptors) != 1:
        raise OSError("the peer closed the connection before it sent its descriptor")
    os.set_inheritable(descriptors[0], False)
    return _HELLO.unpack(data)[0], descriptors[0]


def _credentials(connection: socket.socket) -> tuple[int, int]:
    pid, uid, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return pid, uid


def _check_user(connection: socket.socket, peer: int | None) -> None:
    _, uid = _credentials(connection)
    if uid != os.geteuid():
        who = "a process" if peer is None else f"rank {peer}"
        raise SystemError(
            f"All ranks of a node must belong to one user: this rank runs as user {os.geteuid()}, {who} as {uid}. "
            "Start all ranks as the same user."
        )


def _peer(connection: socket.socket, segment: int) -> Peer:
    """Its lifeline is a pidfd; where the kernel has none or hides the peer's number, the connection itself."""
    pid, _ = _credentials(connection)
    descriptor = connection.detach()
    os.set_blocking(descriptor, False)
    with contextlib.suppress(OSError):
        if pid > 0:
            return Peer(segment, descriptor, os.pidfd_open(pid))
    return Peer(segment, descriptor, descriptor)


def _check_one_node(reached: list[list[int]], endpoints: list[tuple[str, str]]) -> None:
    nodes: dict[int, list[int]] = {}
    for rank, lower in enumerate(reached):
        nodes.setdefault(min([rank, *lower]), []).append(rank)
    if len(nodes) == 1 and all(len(lower) == rank for rank, lower in enumerate(reached)):
        return
    groups = "; ".join(
        f"node {index}{f' ({endpoints[ranks[0]][1]})' if endpoints[ranks[0]][1] else ''}: ranks "
        + ", ".join(map(str, ranks))
        for index, ranks in enumerate(nodes.values())
    )
    raise UsageError(
        "All ranks must be on one node, since this version of ringred reduces through shared memory only: "
        f"they are on {len(nodes)} ({groups}). Start them on one machine and in one network namespace, and set "
        "RINGRED_NODE to the same value or not at all."
    )
