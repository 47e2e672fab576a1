"""Byte strings between the ranks of a group: one ragged allgather, of which every rank gets every part."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np

from ringred import _core
from ringred.ops import Op

Received: TypeAlias = "tuple[_core.Result, list[int]]"
"""What the engine received for one array: the memory, and the rows that came from each rank of the group."""


def exchange(engine: _core.Engine, group: int, name: str | None, message: bytes | memoryview) -> list[memoryview]:
    """Return the messages of all ranks of the group, in the order of its ranks, as views of one buffer. Collective.

    Messages differ in length as they like, and may be longer than 32 bits can say; each has a byte at least.
    """
    column = np.frombuffer(message, np.uint8)[:, None]
    # The op is a marker: a user's allgather of bytes has Sum, so neither is taken for the other where names agree.
    operation = engine.submit(group, "allgather", name, [column], None, Op.Product)
    operation.wait()
    return divided(operation.results()[0])


def divided(received: Received) -> list[memoryview]:
    """What came from each rank, where rows are bytes."""
    buffer, lengths = received
    whole = memoryview(buffer)
    ends = itertools.accumulate(lengths)
    return [whole[end - length : end] for end, length in zip(ends, lengths, strict=True)]


def by_rank(values: Sequence[str], ranks: Iterable[int]) -> str:
    """Which ranks have which of these values, in words."""
    pairs = list(zip(values, ranks, strict=True))
    return "; ".join(
        f"{value} on " + ", ".join(f"rank {rank}" for one, rank in pairs if one == value)
        for value in dict.fromkeys(values)
    )
