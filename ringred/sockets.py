"""How ranks of different nodes connect over TCP, one connection for each two.

1. Every rank listens on the network by which it reaches the store (MASTER_ADDR) or, where there is none, another node,
   or on that of GLOO_SOCKET_IFNAME; at a port that the system chooses. The bootstrap tells all addresses to all, each
   with a key.
2. Every rank connects to all lower ranks of other nodes and sends the key and its rank. Nobody has to accept yet.
3. Every rank accepts the connections of the higher ranks, and answers with the key. Strangers are sent away.
4. Every rank reads the answers of the lower ranks.
"""

from __future__ import annotations

import contextlib
import fcntl
import hmac
import ipaddress
import secrets
import socket
import struct
import time
from collections.abc import Mapping, Sequence

from ringred.bootstrap import Bootstrap, agree
from ringred.errors import SystemError
from ringred.topology import Topology

INTERFACE_VARIABLE = "GLOO_SOCKET_IFNAME"
"""torch's name for what carries data between nodes, which scripts for torchrun set already."""

CONNECT_SECONDS = 30.0
"""All listen before anybody connects, so what takes longer is a firewall that drops packets."""

HELLO_SECONDS = 2.0
"""A peer has sent its hello before anybody waits for it."""

ROOM_FOR_STRANGERS = 64
"""A connection for which the system has no room is tried again a second later, and so on."""

_KEY_BYTES = 16
_HELLO = struct.Struct(f"{_KEY_BYTES}si")  # the receiver's key, the sender's rank
_SIOCGIFADDR = 0x8915

_REMEDY = (
    "Ranks of different nodes must reach each other over TCP, on all ports: look at firewalls, or let "
    f"{INTERFACE_VARIABLE} name the interface of a network that connects them."
)


def connect(
    bootstrap: Bootstrap, nodes: Topology, environment: Mapping[str, str], timeout_seconds: float
) -> tuple[list[socket.socket | None], list[str]]:
    """Connect this rank with all ranks of other nodes. Collective: if it fails on one rank, it does on all.

    Returns:
        The connections, by rank, non-blocking, and the addresses of all ranks.

    Raises:
        SystemError: a rank is not reached, or has no address or descriptor; the text says which.
    """
    far = [peer for peer in range(bootstrap.size) if nodes.nodes[peer] != nodes.nodes[bootstrap.rank]]
    with contextlib.ExitStack() as opened:
        meeting = _Meeting(opened, bootstrap.rank, min(timeout_seconds, CONNECT_SECONDS))
        names: list[str] = bootstrap.allgather(socket.gethostname())
        found = agree(bootstrap, "find its address", lambda: address_of(environment, names[far[0]]))
        addresses: list[str] = bootstrap.allgather(found)
        agree(bootstrap, "listen for other nodes", lambda: meeting.listen(seen_by_others(found, addresses), len(far)))
        endpoints: list[tuple[str, int, bytes]] = bootstrap.allgather(meeting.endpoint)
        lower = {peer: endpoints[peer] for peer in far if peer < bootstrap.rank}
        agree(bootstrap, "connect to other nodes", lambda: meeting.connect(lower))
        agree(bootstrap, "be connected to other nodes", lambda: meeting.accept({*far} - {*lower}))
        agree(bootstrap, "get answers of other nodes", meeting.read_answers)
        opened.pop_all()
    meeting.listener.close()
    for connection in meeting.connections.values():
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setblocking(False)
    return [meeting.connections.get(peer) for peer in range(bootstrap.size)], [address for address, _, _ in endpoints]


def address_of(environment: Mapping[str, str], other: str) -> str:
    """The address of this node on the network that is to carry data, as digits. `other` is the name of another node."""
    interface = environment.get(INTERFACE_VARIABLE, "")
    host = environment.get("MASTER_ADDR") or other
    try:
        return _address_on(interface) if interface else _address_towards(host)
    except OSError as error:
        which = f"{INTERFACE_VARIABLE}={interface}" if interface else host
        raise SystemError(f"This node must have an address on the network of {which}: {error}. {_REMEDY}") from error


def seen_by_others(own: str, addresses: Sequence[str]) -> str:
    """This rank's address, from what all ranks have found. The node with the store may reach it by an address of its
    own alone, such as 127.0.1.1: then it is the one by which this node reaches others."""
    outside = [address for address in addresses if not ipaddress.ip_address(address).is_loopback]
    if not outside or not ipaddress.ip_address(own).is_loopback:
        return own
    return _address_towards(outside[0])


def _address_towards(host: str) -> str:
    """The address by which this node reaches a host. Nothing is sent."""
    error: OSError = OSError(f"{host} has no address")
    for family, kind, protocol, _, place in socket.getaddrinfo(host, 1, type=socket.SOCK_DGRAM):
        with socket.socket(family, kind, protocol) as probe:
            try:
                probe.connect(place)
            except OSError as refused:
                error = refused
                continue
            return str(probe.getsockname()[0])
    raise error


def _address_on(interface: str) -> str:
    """The IPv4 address of an interface."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        request = struct.pack("256s", interface.encode()[:15])  # struct ifreq: a name of 16 bytes, then the address
        return socket.inet_ntoa(fcntl.ioctl(probe, _SIOCGIFADDR, request)[20:24])


class _Meeting:
    """One rank's side; `opened` closes what it holds if it comes to nothing."""

    listener: socket.socket
    endpoint: tuple[str, int, bytes]

    def __init__(self, opened: contextlib.ExitStack, rank: int, seconds: float) -> None:
        self.connections: dict[int, socket.socket] = {}
        self._opened = opened
        self._rank = rank
        self._seconds = seconds
        self._key = secrets.token_bytes(_KEY_BYTES)
        self._keys: dict[int, bytes] = {}

    def listen(self, address: str, peers: int) -> None:  # 1
        try:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            self.listener = self._opened.enter_context(socket.socket(family, socket.SOCK_STREAM))
            self.listener.bind((address, 0))
            self.listener.listen(peers + ROOM_FOR_STRANGERS)
        except OSError as error:
            raise SystemError(f"rank {self._rank} could not listen at {address}: {error}. {_REMEDY}") from error
        self.endpoint = (address, self.listener.getsockname()[1], self._key)

    def connect(self, endpoints: Mapping[int, tuple[str, int, bytes]]) -> None:  # 2
        for peer, (address, port, key) in endpoints.items():
            try:
                connection = socket.create_connection((address, port), self._seconds)
                self.connections[peer] = self._opened.enter_context(connection)
                connection.sendall(_HELLO.pack(key, self._rank))
            except OSError as error:
                raise SystemError(
                    f"rank {self._rank} could not connect to rank {peer} at {address}, port {port}: {error}. {_REMEDY}"
                ) from error
            self._keys[peer] = key

    def accept(self, expected: set[int]) -> None:  # 3
        deadline = time.monotonic() + self._seconds
        while missing := expected - {*self.connections}:
            try:
                self.listener.settimeout(max(0.001, deadline - time.monotonic()))
                connection, _ = self.listener.accept()
            except OSError as error:
                text = ", ".join(f"rank {peer}" for peer in sorted(missing))
                raise SystemError(f"rank {self._rank} was not reached by {text}: {error}. {_REMEDY}") from error
            peer = self._caller(connection, missing)
            if peer is None:
                connection.close()
                continue
            self.connections[peer] = self._opened.enter_context(connection)

    def _caller(self, connection: socket.socket, expected: set[int]) -> int | None:
        with contextlib.suppress(OSError):
            connection.settimeout(HELLO_SECONDS)
            key, peer = _HELLO.unpack(_read(connection, _HELLO.size))
            if hmac.compare_digest(key, self._key) and peer in expected:
                connection.sendall(_HELLO.pack(key, self._rank))
                return int(peer)
        return None

    def read_answers(self) -> None:  # 4
        for peer, key in self._keys.items():
            try:
                answer = _read(self.connections[peer], _HELLO.size)
            except OSError as error:
                raise SystemError(f"rank {self._rank} got no answer of rank {peer}: {error}. {_REMEDY}") from error
            if answer != _HELLO.pack(key, peer):
                raise SystemError(
                    f"rank {self._rank} reached something else than rank {peer} at its address. {_REMEDY}"
                )


def _read(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = connection.recv(size - len(data))
        if not more:
            raise ConnectionResetError("the connection was closed")
        data += more
    return data
