"""Process sets: groups of ranks with collectives of their own.

    evens = rr.add_process_set([0, 2])      # on all ranks
    if evens.included():
        rr.allreduce_async_(array, process_set=evens).wait()

Invariant: all ranks of a world, members or not, know the same sets by the same numbers. They are kept by the world's
Registrar (registrar.py), so a set that was registered in an earlier world is not registered in this one.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

from ringred import world
from ringred.arguments import shown
from ringred.errors import UsageError
from ringred.registrar import Registrar, reset
from ringred.registrar import current as _registrar

__all__ = [
    "ProcessSet",
    "add_process_set",
    "checked_set",
    "describe",
    "global_process_set",
    "process_set_ids",
    "register_static",
    "remove_process_set",
    "reset",
]


class ProcessSet:
    """A group of world ranks. It takes part in collectives after add_process_set or init(process_sets=[...]).

    Ranks within the set count its members in ascending order of their world ranks.

    Args:
        ranks: world ranks, each once, in any order; or an mpi4py communicator or group of such ranks. Before
            init() that means ranks of MPI.COMM_WORLD.

    Raises:
        UsageError: these are no ranks, there are none, or one comes twice.
    """

    def __init__(self, ranks: Iterable[int] | Any) -> None:
        self.mpi_comm: Any = ranks if hasattr(ranks, "Get_group") else None
        self._ranks = _checked_ranks(_translated(ranks) if _is_of_mpi(ranks) else ranks)
        self._registrar: Registrar | None = None
        self._number: int | None = None

    @property
    def ranks(self) -> list[int]:
        """The world ranks of the members, ascending."""
        return list(self._members())

    @property
    def process_set_id(self) -> int | None:
        """The number by which all ranks know this set in the current world, or None while it is not registered."""
        registrar = self._registrar
        return self._number if registrar is not None and registrar.is_current() else None

    def size(self) -> int:
        """The number of members."""
        return len(self._members())

    def rank(self) -> int:
        """This process's number among the members, 0 to size() - 1.

        Raises:
            UsageError: it is no member (ask included() first), or init() was not called.
        """
        return self.rank_of(world.rank(), "this process")

    def rank_of(self, world_rank: int, who: str) -> int:
        """The number of a world rank among the members. `who` says in the error what rank this is.

        Raises:
            UsageError: it is no member, or no integer.
        """
        if not isinstance(world_rank, Integral):
            raise UsageError(
                f"{who} must be a rank of the world, an int: it is {shown(world_rank)}. Convert it with int()."
            )
        try:
            return self._members().index(world_rank)
        except ValueError:
            raise UsageError(
                f"Only its members take part in a process set: {who} is rank {world_rank} of the world, the set is "
                f"{self.ranks}."
            ) from None

    def included(self) -> bool:
        """Whether this process is a member."""
        return world.rank() in self._members()

    def group(self) -> int:
        """The number under which the engine knows this set, for a member that is about to use it.

        Raises:
            UsageError: the set is not registered or was removed, or this process is no member.
        """
        number = self.process_set_id
        if number is None:
            world.engine()
            raise UsageError(
                f"A process set must be registered before it is used: {self.ranks} is not, or was removed. "
                "Call add_process_set on all ranks, or pass it to init(process_sets=[...])."
            )
        self.rank()
        return number

    def _members(self) -> Sequence[int]:
        return self._ranks

    def registered(self, registrar: Registrar, number: int | None) -> None:
        """Called by the registrar when all ranks have registered the set, and with None when all have removed it."""
        self._registrar, self._number = registrar, number

    def __copy__(self) -> ProcessSet:
        return self  # a copy of a module is in the same set

    def __deepcopy__(self, memo: dict[int, Any]) -> ProcessSet:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return ProcessSet, (self.ranks,)  # as a set that is still to be registered

    def __repr__(self) -> str:
        return f"ProcessSet(process_set_id={self.process_set_id}, ranks={self.ranks}, mpi_comm={self.mpi_comm})"


class GlobalProcessSet(ProcessSet):
    """All ranks of the world: always registered, never removed."""

    process_set_id = 0
    mpi_comm = None

    def __init__(self) -> None:
        pass

    def _members(self) -> Sequence[int]:
        return range(world.size())

    def group(self) -> int:
        return 0

    def __reduce__(self) -> str:  # type: ignore[override]  # what pickle looks up by name
        return "global_process_set"

    def __repr__(self) -> str:
        return f"ProcessSet(process_set_id=0, {f'{world.size()} ranks' if world.is_initialized() else 'all ranks'})"


global_process_set: ProcessSet = GlobalProcessSet()
"""All ranks of the world. What every function takes unless it is told otherwise."""


def checked_set(process_set: Any) -> ProcessSet:
    """The argument process_set of any function.

    Raises:
        UsageError: it is no ProcessSet.
    """
    if not isinstance(process_set, ProcessSet):
        raise UsageError(
            f"process_set must be a ProcessSet: it is {shown(process_set)}. Make one "
            "with add_process_set, or leave it out for all ranks."
        )
    return process_set


def add_process_set(process_set: ProcessSet | Iterable[int]) -> ProcessSet:
    """Register a process set with all ranks, and return it. Collective over the world, members or not.

    All ranks give the same ranks. Threads may add different sets at the same time: the sets are told apart by their
    ranks, as long as all ranks ask for them within half a second.

    Args:
        process_set: a ProcessSet, or what one is made of.

    Raises:
        UsageError: a set of these ranks is registered already, a rank is beyond the world, or there are 255 sets.
        MismatchError: ranks ask for different sets; raised on all ranks, naming them.
        SystemError: a rank has no memory for the set; raised on all ranks.
    """
    chosen = process_set if isinstance(process_set, ProcessSet) else ProcessSet(process_set)
    registrar = _registrar()
    registrar.add([chosen])
    return chosen


def remove_process_set(process_set: ProcessSet) -> bool:
    """Take a process set off all ranks, and return whether it was there. Collective over the world, members or not.

    Its operations in flight fail, and so does every later use. The same object may be added again.

    Raises:
        UsageError: it is no ProcessSet.
        MismatchError: ranks ask for different sets; raised on all ranks, naming them.
    """
    number = checked_set(process_set).process_set_id
    if not number:
        return False
    _registrar().remove(number)
    return True


def process_set_ids() -> list[int]:
    """The numbers of all registered sets, ascending; the first is 0, the world's."""
    return [0, *_registrar().numbers()]


def register_static(process_sets: Iterable[ProcessSet | Iterable[int]]) -> None:
    """Register the sets that init() was given, all at once, which must be the same list on all ranks.

    Raises:
        UsageError: a set comes twice, or has a rank beyond the world.
        MismatchError: ranks gave init() different sets; raised on all ranks, naming them.
    """
    chosen = [one if isinstance(one, ProcessSet) else ProcessSet(one) for one in process_sets]
    if chosen:
        _registrar().add(chosen)


def describe(process_sets: Iterable[ProcessSet | Iterable[int]]) -> str:
    """The sets that init() was given as text, for the comparison of settings between ranks."""
    return str([(one if isinstance(one, ProcessSet) else ProcessSet(one)).ranks for one in process_sets])


def _checked_ranks(ranks: Iterable[int]) -> tuple[int, ...]:
    """World ranks in ascending order."""
    try:
        numbers = sorted(operator.index(rank) for rank in ranks)
    except TypeError:
        raise UsageError(
            f"A process set is made of world ranks, or of an mpi4py communicator or group: this is {ranks!r}."
        ) from None
    if not numbers or numbers[0] < 0 or len(set(numbers)) < len(numbers):
        raise UsageError(f"A process set needs at least one rank, none negative and none twice: it is {numbers}.")
    return tuple(numbers)


def _is_of_mpi(ranks: Any) -> bool:
    return hasattr(ranks, "Get_group") or hasattr(ranks, "Translate_ranks")


def _translated(communicator: Any) -> list[int]:
    """The world ranks of an mpi4py communicator's or group's members."""
    from mpi4py import MPI

    if communicator in (MPI.COMM_NULL, MPI.GROUP_NULL):
        raise UsageError(
            "All ranks must name the same ranks, and COMM_NULL names none: give the ranks as a list where this process "
            "is no member of the communicator."
        )
    group = communicator.Get_group() if hasattr(communicator, "Get_group") else communicator
    everybody = (world.mpi_communicator() if world.is_initialized() else None) or MPI.COMM_WORLD
    everybody = everybody.Get_group()
    ranks: list[int] = MPI.Group.Translate_ranks(group, list(range(group.Get_size())), everybody)
    if MPI.UNDEFINED in ranks:
        raise UsageError(f"A process set must lie within the world: of {communicator!r} only {ranks} are in it.")
    return ranks
