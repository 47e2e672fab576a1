"""Units: what travels together. First each gradient by itself or with its group, then buckets of them.

Invariant: units list every slot exactly once, and all ranks have the same units in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence

from ringred.torch.buckets import Bucket, BucketParcel, pack_into_buckets, travels_alone, travels_late
from ringred.torch.channel import ArenaChannel
from ringred.torch.parcels import DENSE, Parcel, Slot


class Unit:
    """Slots that travel together, their bucket if they have one, and their parcel of the current round.

    Those of a late unit travel after the backward pass.
    """

    def __init__(self, name: str, slots: list[Slot], bucket: Bucket | None = None, late: bool = False) -> None:
        self.name = name
        self.slots = slots
        self.bucket = bucket
        self.late = late
        self.parcel: Parcel | BucketParcel | None = None
        self.squares: float | None = None  # of the averages in this rank's parts, as the reduction found them


def first_units(slots: Sequence[Slot], groups: Sequence[Sequence[int]]) -> list[Unit]:
    """The units of the first round: the groups, then every other slot alone."""
    grouped = {index for group in groups for index in group}
    alone = [[slot.index] for slot in slots if slot.index not in grouped]
    units = []
    for number, indices in enumerate([*groups, *alone]):
        members = [slots[index] for index in indices]
        name = f"gradient.{members[0].name}" if len(members) == 1 else f"gradients.{number}.{members[0].name}"
        units.append(Unit(name, members))
    return units


def mark_late(units: Sequence[Unit]) -> None:
    """In a first round, those are late whose gradients will be, unless they turn out not to be dense."""
    for unit in units:
        unit.late = len(unit.slots) == 1 and unit.slots[0].parameter.is_cpu and travels_late(unit.slots[0])


def in_buckets(
    units: Sequence[Unit], order: Sequence[int], kinds: bytes, limit: int, channel: ArenaChannel
) -> list[Unit]:
    """The units of later rounds: single dense gradients side by side in buckets, dense groups in buckets of their own.

    Args:
        units: those of the first round.
        order: numbers of units in the order in which they should travel; those that it lacks come last.
        kinds: of the gradients, by slot. What is not dense keeps its unit.
        limit: of a bucket, in bytes.
        channel: where buckets get their memory. Those of large gradients are lazy if it lends memory to autograd.
    """
    lends = channel.lends_memory()
    result: list[Unit] = []
    loose: list[Slot] = []
    for number in dict.fromkeys([*order, *reversed(range(len(units)))]):
        unit = units[number]
        if not _is_dense(unit, kinds):
            unit.late = False
            result.append(unit)
        elif len(unit.slots) == 1:
            loose.append(unit.slots[0])
        else:
            result.append(_as_bucket(unit.slots, unit.name, channel))
    early, late = ([slot for slot in loose if travels_late(slot) == whether] for whether in (False, True))
    for slots in pack_into_buckets(early, limit):
        alone = travels_alone(slots[0])
        result.append(_as_bucket(slots, f"bucket.{len(result)}.{slots[0].name}", channel, alone, alone and lends))
    for slots in pack_into_buckets(late, limit, first=limit):
        result.append(_as_bucket(slots, f"bucket.{len(result)}.{slots[0].name}", channel, late=True))
    return result


def indices_of(units: Sequence[Unit]) -> list[list[int]]:
    """The numbers of the slots of each unit."""
    return [[slot.index for slot in unit.slots] for unit in units]


def late_of(units: Sequence[Unit]) -> list[int]:
    """The numbers of the late units."""
    return [number for number, unit in enumerate(units) if unit.late]


def _as_bucket(
    slots: list[Slot], name: str, channel: ArenaChannel, alone: bool = False, lazy: bool = False, late: bool = False
) -> Unit:
    return Unit(name, slots, Bucket([slot.parameter for slot in slots], channel, alone, lazy), late)


def _is_dense(unit: Unit, kinds: bytes) -> bool:
    alike = len({(slot.parameter.dtype, slot.parameter.device) for slot in unit.slots}) == 1
    return alike and unit.slots[0].parameter.is_cpu and all(kinds[slot.index] <= DENSE for slot in unit.slots)
