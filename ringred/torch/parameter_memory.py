"""Where the parameters of a fused step lie: in every rank's arena, or once for all ranks of the node.

Invariant: what a rank's parameters are views of is at the places that `places` tells, which all ranks of its node know.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np

from ringred import _core
from ringred.torch.channel import EngineChannel

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


class OwnMemory:
    """A copy on every rank, in its arena. The places are exchanged when they are first asked for: a collective."""

    shared = False

    def __init__(self, channel: EngineChannel, size: int, name: str) -> None:
        self.block: Bytes = channel.allocate(size)
        self._channel = channel
        self._name = name
        self._places: list[tuple[int, int]] | None = None

    @property
    def places(self) -> list[tuple[int, int]]:
        """(rank of the world, offset in its segment), one for each rank of this node."""
        if self._places is None:
            offset = self._channel.engine.offset_of(self.block)
            offsets: list[int] = self._channel.share(offset, f"{self._name}.offset")
            ranks = self._channel.ranks
            self._places = [(ranks[member], offsets[member]) for member in self._channel.neighbours]
        return self._places

    def fill(self, values: Iterable[tuple[int, Bytes]]) -> None:
        """Store bytes at their offsets."""
        for begin, data in values:
            self.block[begin : begin + data.size] = data

    @contextmanager
    def writable(self) -> Iterator[None]:
        """It always is."""
        yield


class SharedMemory:
    """One copy on each node, in the arena of its first rank, which its ranks see read-only. To make it is a collective.

    The first rank never gives the memory back: it cannot know when the last rank's parameters are gone.
    """

    shared = True
    _kept: ClassVar[list[Bytes]] = []

    def __init__(self, channel: EngineChannel, size: int, name: str) -> None:
        self._channel = channel
        self._name = name
        self._own: Bytes | None = None
        offset = 0
        first = channel.neighbours[0]
        if channel.rank == first:
            self._own = channel.allocate(size)
            self._kept.append(self._own)
            offset = channel.engine.offset_of(self._own)
        offset = channel.share(offset, f"{name}.offset")[first]
        self.places = [(channel.ranks[first], offset)]
        self._view = _core.GuardedView(channel.engine, channel.ranks[first], offset, size)
        self.block: Bytes = np.frombuffer(memoryview(self._view), np.uint8)

    def name_ranges(self, ranges: Sequence[tuple[int, int, str]]) -> None:
        """Names for [begin, end) in bytes, for the report of a stray write."""
        self._view.name_ranges(ranges)

    def fill(self, values: Iterable[tuple[int, Bytes]]) -> None:
        """Store the bytes of each node's first rank at their offsets. A collective: they are there on return."""
        if self._own is not None:
            for begin, data in values:
                self._own[begin : begin + data.size] = data
        self._channel.share(None, f"{self._name}.filled")

    @contextmanager
    def writable(self) -> Iterator[None]:
        """Let this rank write to it; what it writes is there for all ranks of its node at once."""
        self._view.unprotect()
        try:
            yield
        finally:
            self._view.protect()
