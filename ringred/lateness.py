"""Who is late: agreement on an order knows which rank came last to each operation, and by how much."""

from __future__ import annotations

from dataclasses import dataclass

from ringred import world
from ringred.process_sets import ProcessSet, checked_set, global_process_set


@dataclass(frozen=True)
class Straggler:
    """How late one rank has been since init().

    Attributes:
        rank: its number in the world.
        times_last: in how many of the set's operations it was the last to submit.
        seconds: by how much, summed over these: what the others waited for it alone.
        waited_seconds: how long this rank has waited for it in synchronous calls (rr.allreduce_ and the like). Unlike
            the others, it is this rank's own view.
    """

    rank: int
    times_last: int
    seconds: float
    waited_seconds: float = 0.0


def stragglers(process_set: ProcessSet = global_process_set) -> list[Straggler]:
    """The ranks of a process set, the one that cost the others most time first. Not collective.

    Raises:
        UsageError: init() was not called, the set is not registered, or this rank is no member.
    """
    late = world.engine().stragglers(checked_set(process_set).group())
    waited = world.communicator().waited()
    rows = [Straggler(rank, *row, waited[rank][1]) for rank, row in zip(process_set.ranks, late, strict=True)]
    return sorted(rows, key=lambda row: (-row.seconds - row.waited_seconds, row.rank))
