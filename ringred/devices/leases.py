"""Leases: which groups of devices an optimizer gets, which its ranks agree on when it makes buckets.

    1. Every rank tells whether it wants to, what is against it, and which groups it has that nobody uses any more.
    2. If all want to and nothing is against it, all take the first group that is free on all of them after equally many
       calls, or make one. If making one fails on a rank, it fails on all of them. If calls of one would wait on some
       rank's host, which must not be while other ranks still wait for that rank, all end it.
    3. A group is free again when its optimizer has been collected, which no other rank needs to know: see 1.

Kernels of several groups run beside each other: they take so few blocks (csrc/cuda/sizes.h) that MOST_GROUPS fit on a
device at the same time.

Invariant: all ranks of a process set lease the same groups, or none of them does and all know why.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ringred import environment
from ringred.devices import groups
from ringred.devices.groups import DeviceCommunicator, DeviceGroup, Place
from ringred.errors import RingredError
from ringred.process_sets import ProcessSet

MOST_GROUPS = 4
"""In use at the same time: with 32 blocks of 512 threads each they take 32 of the 108 multiprocessors of an A100."""

SETTING, STAGED, DIRECT = "RINGRED_GPU", "staged", "direct"


Maker = Callable[[ProcessSet, int], DeviceCommunicator]
"""Makes the communicator of a process set for the device of an ordinal. Collective; raises on all ranks or on none."""


class _Told(NamedTuple):
    """What a rank tells the others (1)."""

    wants: bool
    against: str  # "": nothing
    free: list[dict[int, int]]  # for each place: calls by the numbers of groups that are free


def _cuda_communicator(process_set: ProcessSet, ordinal: int) -> DeviceCommunicator:
    from ringred import cuda

    return cuda.Communicator(process_set, ordinal)


def _against_cuda(process_set: ProcessSet, ordinal: int) -> str:
    from ringred import cuda

    return cuda.reason_against(process_set, ordinal)


makers: dict[str, tuple[Maker, Callable[[ProcessSet, int], str]]] = {"cuda": (_cuda_communicator, _against_cuda)}
"""By kind of device: what makes a communicator, and what tells why this rank cannot ("": it can). Tests add one."""


def lease(
    process_set: ProcessSet, places: Sequence[Place], share: Callable[[Any, str], list[Any]]
) -> list[DeviceGroup] | str:
    """A group for each of these devices of this rank, or why there is none. Collective; all ranks have as many places.

    Args:
        process_set: the ranks.
        places: the devices, in the same order on all ranks.
        share: gathers a value of every rank, for a name.
    """
    settings = environment.read().settings
    wants = settings.get(SETTING, STAGED) == DIRECT
    against = _against(process_set, places) if wants else ""
    free = [{one.number: one.calls for one in _free_groups(process_set, place)} for place in places]
    told: list[_Told] = share(_Told(wants, against, free), "devices")
    refusal = _refusal(told, process_set)
    if refusal is not None:
        return refusal
    taken: list[DeviceGroup] = []
    try:
        for index, place in enumerate(places):
            taken.append(_take(process_set, place, [one.free[index] for one in told]))
            if taken[-1].communicator.waits_on_host:
                against = f"the host would have to wait in each call ({taken[-1].communicator.how})"
    except RingredError as error:
        against = str(error)
    failures: list[str] = [one for one in share(against, "device groups") if one]
    if not failures:
        return taken
    groups.drop(taken, "another rank cannot use it")
    return failures[0]


def _against(process_set: ProcessSet, places: Sequence[Place]) -> str:
    in_use = sum(not group.is_free for group in groups.existing)
    if in_use + len(places) > MOST_GROUPS:
        return (
            f"at most {MOST_GROUPS} optimizers and devices of a process are served at the same time: {in_use} are, and "
            f"{len(places)} would come to them"
        )
    for kind, ordinal in places:
        if kind not in makers:
            return f"ringred has no communicator for devices of the kind {kind}"
        if against := makers[kind][1](process_set, ordinal):
            return against
    return ""


def _refusal(told: Sequence[_Told], process_set: ProcessSet) -> str | None:
    """Why there are no groups; "" where nobody wants one, None where there may be."""
    if not any(one.wants for one in told):
        return ""
    without = [rank for rank, one in zip(process_set.ranks, told, strict=True) if not one.wants]
    if without:
        return f"{SETTING} is not {DIRECT} on ranks {without}; set it on all"
    pairs = zip(process_set.ranks, told, strict=True)
    return next((f"of rank {rank}, {one.against}" for rank, one in pairs if one.against), None)


def _free_groups(process_set: ProcessSet, place: Place) -> list[DeviceGroup]:
    return [
        group
        for group in groups.existing
        if group.process_set is process_set and group.place == place and group.is_free and not group.failed
    ]


def _take(process_set: ProcessSet, place: Place, free: Sequence[dict[int, int]]) -> DeviceGroup:
    """The first group that was free everywhere after equally many calls, or a new one (2)."""
    common = [number for number, calls in free[0].items() if all(one.get(number) == calls for one in free)]
    if not common:
        return groups.add(makers[place.kind][0](process_set, place.ordinal), process_set, place)
    mine = (one for one in groups.existing if one.process_set is process_set and one.number == min(common))
    group = next(mine)
    with group.used() as communicator:
        communicator.wait()  # what its last user left under way; others take its memory
    return group
