"""How local ranks hand each other their memory: file descriptors over abstract Unix sockets.

Two ranks share a node exactly when this works; a hostname proves nothing. The sockets have random names that only the
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
from collections.abc import Iterator
from dataclasses import dataclass

from ringred.bootstrap import Bootstrap, agree
from ringred.errors import SystemError, UsageError
from ringred.topology import Topology

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


def exchange(
    bootstrap: Bootstrap, descriptor: int, node: str, timeout_seconds: float
) -> tuple[dict[int, Peer], Topology]:
    """Hand `descriptor` to the other ranks of this node and receive theirs.

    Collective: if it fails on one rank, it does on all.

    Args:
        node: the name that RINGRED_NODE gives this rank's node, or "" to let the sockets tell.

    Returns:
        The peers that share this rank's node, and who shares which.

    Raises:
        UsageError: a rank reaches some ranks of another's node and not all.
        SystemError: a rank of another user answered, or a rank could not have a socket or descriptor.
    """
    name = "ringred-" + secrets.token_hex(16)
    with contextlib.ExitStack() as opened:
        trade = _Trade(opened, bootstrap.rank, descriptor, timeout_seconds)
        agree(bootstrap, "listen for its peers", lambda: trade.listen(name, bootstrap.size))
        endpoints: list[tuple[str, str]] = bootstrap.allgather((name, node))
        near = {peer: endpoints[peer][0] for peer in range(bootstrap.rank) if endpoints[peer][1] == node}
        agree(bootstrap, "reach its peers", lambda: trade.connect(near))
        reached: list[list[int]] = bootstrap.allgather(sorted(trade.connections))
        nodes = _nodes(reached)
        higher = sum(bootstrap.rank in lower for lower in reached)
        agree(bootstrap, "share memory with its peers", lambda: trade.answer(higher))
        opened.pop_all()
    trade.listener.close()
    return {peer: _peer(connection, trade.received[peer]) for peer, connection in trade.connections.items()}, nodes


class _Trade:
    """One rank's side of the exchange; `opened` closes what it holds if it comes to nothing."""

    def __init__(self, opened: contextlib.ExitStack, rank: int, descriptor: int, timeout_seconds: float) -> None:
        self.connections: dict[int, socket.socket] = {}
        self.received: dict[int, int] = {}
        self._opened = opened
        self._rank = rank
        self._descriptor = descriptor
        self._timeout_seconds = timeout_seconds

    def listen(self, name: str, size: int) -> None:  # 1
        with self._told():
            self.listener = self._socket()
            self.listener.bind("\0" + name)
            self.listener.listen(size)

    def connect(self, names: dict[int, str]) -> None:  # 2
        with self._told():
            for peer, name in names.items():
                connection = self._socket()
                try:
                    connection.connect("\0" + name)
                except ConnectionRefusedError:  # another network namespace: another node
                    connection.close()
                    continue
                _check_user(connection, peer)
                self._send(connection)
                self.connections[peer] = connection

    def answer(self, higher: int) -> None:  # 4, 5
        lower = list(self.connections)
        try:
            with self._told():
                for _ in range(higher):
                    connection = self._opened.enter_context(self.listener.accept()[0])
                    connection.settimeout(self._timeout_seconds)
                    _check_user(connection, None)
                    self.connections[self._take(connection, "a peer")] = connection
                    self._send(connection)
                for peer in lower:
                    self._take(self.connections[peer], f"rank {peer}")
        except Exception:
            self._opened.close()  # at once: peers wait for an answer
            raise

    def _socket(self) -> socket.socket:
        opened = self._opened.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        opened.settimeout(self._timeout_seconds)
        return opened

    def _send(self, connection: socket.socket) -> None:
        socket.send_fds(connection, [_HELLO.pack(self._rank)], [self._descriptor])

    def _take(self, connection: socket.socket, who: str) -> int:
        peer, segment = _receive(connection, who)
        self._opened.callback(os.close, segment)
        self.received[peer] = segment
        return peer

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except SystemError:
            raise
        except OSError as error:
            raise SystemError(
                f"rank {self._rank} could not exchange memory with a local peer: {error}. Each local rank takes three "
                "descriptors; 'ulimit -n' says how many there may be."
            ) from error


def _receive(connection: socket.socket, who: str) -> tuple[int, int]:
    data, descriptors, flags = b"", list[int](), 0
    with contextlib.suppress(ConnectionResetError):
        data, descriptors, flags, _ = socket.recv_fds(connection, _HELLO.size, 1)
    if flags & socket.MSG_CTRUNC:
        raise OSError("there was no room for one more descriptor")
    if len(data) != _HELLO.size or len(descriptors) != 1:
        raise OSError(f"{who} closed the connection before it sent its descriptor")
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


def _nodes(reached: list[list[int]]) -> Topology:
    """Who shares a node, from the lower ranks that each has reached."""
    first = [min([rank, *lower]) for rank, lower in enumerate(reached)]
    for rank, lower in enumerate(reached):
        expected = [peer for peer in range(rank) if first[peer] == first[rank]]
        if lower != expected:
            raise UsageError(
                "Ranks of one node must all reach each other: rank "
                f"{rank} reaches the ranks {lower}, and rank {first[rank]} is on one node with {expected}. Start them "
                "in one network namespace, or tell their nodes apart with RINGRED_NODE."
            )
    numbers = {rank: number for number, rank in enumerate(sorted(set(first)))}
    return Topology(tuple(numbers[rank] for rank in first))
