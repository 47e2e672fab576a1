"""What TCP does between two hosts, without any library: raw_link.py serve PORT, and raw_link.py measure HOST PORT.

Prints one JSON line: the time of a byte one way (half of there and back), the bytes per second of one direction alone,
and those of each direction while both are busy, each the best of several. Standard library only.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time

REPETITIONS = 9
ROUND_TRIPS = 1000
PROBE_SECONDS = 0.15  # of each bandwidth measurement
FIRST_BYTES = 1 << 20
CHUNK = 1 << 20
HEADER = 9  # what to do, and how many bytes in 8
DEADLINE_SECONDS = 60.0


def serve(port: int) -> None:
    """Answer one client until it leaves: p, a byte for a byte; s, take bytes; b, take and send as many."""
    with socket.create_server(("", port)) as server:
        server.settimeout(DEADLINE_SECONDS)
        print("ready", flush=True)
        peer, _ = server.accept()
    with peer:
        prepare(peer)
        while header := receive(peer, HEADER):
            kind, count = header[:1], int.from_bytes(header[1:], "big")
            if kind == b"p":
                for _ in range(count):
                    await_byte(peer)
                    peer.sendall(b"p")
            else:
                move(peer, count if kind == b"b" else 0, count)
                peer.sendall(b"e")


def measure(host: str, port: int) -> None:
    """Measure, and print the figures."""
    with socket.create_connection((host, port), DEADLINE_SECONDS) as peer:
        prepare(peer)
        latency = min(round_trip(peer) / 2 for _ in range(REPETITIONS))
        one_way, both_ways = (bandwidth(peer, kind) for kind in (b"s", b"b"))
    print(json.dumps({"latency_us": latency * 1e6, "one_way": one_way, "both_ways": both_ways}))


def prepare(peer: socket.socket) -> None:
    """No waiting for fuller packets, no waiting for ever."""
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    peer.settimeout(DEADLINE_SECONDS)


def round_trip(peer: socket.socket) -> float:
    """The seconds of a byte there and back."""
    ask(peer, b"p", ROUND_TRIPS)
    start = time.perf_counter()
    for _ in range(ROUND_TRIPS):
        peer.sendall(b"p")
        await_byte(peer)
    return (time.perf_counter() - start) / ROUND_TRIPS


def await_byte(peer: socket.socket) -> None:
    """Take a byte as soon as it is there, by asking again and again, which spares the sleep and the waking."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline:
        try:
            if peer.recv(1, socket.MSG_DONTWAIT):
                return
            break
        except BlockingIOError:
            os.sched_yield()
    raise SystemExit(f"raw_link.py: the other host left, or did not answer within {DEADLINE_SECONDS:g} s")


def bandwidth(peer: socket.socket, kind: bytes) -> float:
    """Bytes per second and direction, with as many bytes as take long enough to be told from the start of TCP."""
    count = FIRST_BYTES
    rates: list[float] = []
    while len(rates) < REPETITIONS:
        ask(peer, kind, count)
        start = time.perf_counter()
        move(peer, count, count if kind == b"b" else 0)
        receive(peer, 1)
        seconds = time.perf_counter() - start
        if seconds >= PROBE_SECONDS / 2:
            rates.append(count / seconds)
        else:
            count = int(count * min(8.0, PROBE_SECONDS / seconds))
    return max(rates)


def ask(peer: socket.socket, kind: bytes, count: int) -> None:
    """Tell the server what comes."""
    peer.sendall(kind + count.to_bytes(HEADER - 1, "big"))


def move(peer: socket.socket, out: int, back: int) -> None:
    """Send ``out`` bytes and take ``back``, both at once."""
    sender = threading.Thread(target=send, args=(peer, out), daemon=True)
    sender.start()
    buffer = bytearray(CHUNK)
    while back > 0:
        count = peer.recv_into(buffer, min(back, CHUNK))
        if count == 0:
            raise SystemExit("raw_link.py: the other host left during a measurement")
        back -= count
    sender.join()


def send(peer: socket.socket, count: int) -> None:
    """Send so many bytes."""
    chunk = memoryview(bytes(CHUNK))
    while count > 0:
        peer.sendall(chunk[: min(count, CHUNK)])
        count -= min(count, CHUNK)


def receive(peer: socket.socket, count: int) -> bytes:
    """Exactly so many bytes; none where the peer has left."""
    data = b""
    while len(data) < count and (more := peer.recv(count - len(data))):
        data += more
    return data if len(data) == count else b""


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]))
    else:
        measure(sys.argv[2], int(sys.argv[3]))
