"""Agreement: ranks compare what they are about to exchange, before they exchange it.

Invariant: all ranks draw the same conclusion. If descriptions differ, all of them raise, with the first difference.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from ringred.errors import MismatchError

NamedTensor = tuple[str, torch.Tensor]

Share = Callable[[Any, str], list[Any]]
"""Returns the values of all ranks, in rank order, for this rank's value and a name for the message. Collective."""


def describe(named: Iterable[NamedTensor]) -> list[str]:
    """One line per tensor: its name, shape and dtype."""
    return [f"{name!r} of shape {tuple(tensor.shape)}, {tensor.dtype}" for name, tensor in named]


def check_agreement(share: Share, ranks: Sequence[int], what: str, lines: Sequence[str]) -> None:
    """Compare `lines` between `ranks`: a hash of them first, and the lines themselves if the hashes differ. Collective.

    Raises:
        MismatchError: they differ; on all ranks, with the first line that does and what it is where.
    """
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    if len(set(share(digest, f"{what}.digest"))) == 1:
        return
    lists: list[list[str]] = share(list(lines), f"{what}.lines")
    for index in range(max(map(len, lists))):
        rows = [one[index] if index < len(one) else "none" for one in lists]
        if len(set(rows)) > 1:
            raise MismatchError(f"{what} must be the same on all ranks: entry {index} is {_by_rank(ranks, rows)}.")
    raise MismatchError(f"{what} must be the same on all ranks.")


def _by_rank(ranks: Sequence[int], values: Sequence[str]) -> str:
    return "; ".join(
        f"{value} on " + ", ".join(f"rank {rank}" for rank, one in zip(ranks, values, strict=True) if one == value)
        for value in dict.fromkeys(values)
    )
