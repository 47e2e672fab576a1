"""Units: what travels together. First each gradient by itself or with its group, then buckets of them.

Invariant: units list every slot exactly once, and all ranks have the same units in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from ringred.torch.buckets import (
    Bucket,
    BucketParcel,
    kind_of_memory,
    pack_into_buckets,
    travels_alone,
    travels_late,
)
from ringred.torch.device_buckets import DeviceBucket, DeviceParcel
from ringred.torch.parcels import DENSE, Carrier, Parcel, Slot


class Unit:
    """Slots that travel together, their bucket if they have one, and their parcel of the current round.

    Those of a late unit travel after the backward pass.
    """

    def __init__(
        self, name: str, slots: list[Slot], bucket: Bucket | DeviceBucket | None = None, late: bool = False
    ) -> None:
        self.name = name
        self.slots = slots
        self.bucket = bucket
        self.late = late
        self.parcel: Parcel | BucketParcel | DeviceParcel | None = None
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
        unit.late = len(unit.slots) == 1 and travels_late(unit.slots[0])


def in_buckets(units: Sequence[Unit], order: Sequence[int], kinds: bytes, limit: int, carrier: Carrier) -> list[Unit]:
    """The units of later rounds: single dense gradients side by side in buckets, dense groups in buckets of their own.

    Args:
        units: those of the first round.
        order: numbers of units in the order in which they should travel; those that it lacks come last.
        kinds: of the gradients, by slot. What is not dense keeps its unit.
        limit: of a bucket, in bytes. 0: there are none.
        carrier: how they travel, over an ArenaChannel. Buckets on the CPU get their memory from it; those of large
            gradients are lazy if it lends memory to autograd.
    """
    makers = Makers(carrier)
    result: list[Unit] = []
    loose: list[Slot] = []
    for number in dict.fromkeys([*order, *reversed(range(len(units)))]):
        unit = units[number]
        if not limit or not _is_dense(unit, kinds) or not makers.can_make(unit.slots):
            unit.late = False
            result.append(unit)
        elif len(unit.slots) == 1:
            loose.append(unit.slots[0])
        else:
            result.append(Unit(unit.name, unit.slots, makers.make(unit.slots)))
    early, late = ([slot for slot in loose if travels_late(slot) == whether] for whether in (False, True))
    packed = [(slots, False) for slots in pack_into_buckets(early, limit)]
    packed += [(slots, True) for slots in pack_into_buckets(late, limit, first=limit)]
    for slots, is_late in packed:
        name = f"bucket.{len(result)}.{slots[0].name}"
        result.append(Unit(name, slots, makers.make(slots, travels_alone(slots[0])), is_late))
    return result


class Makers:
    """Makes buckets where the gradients are."""

    def __init__(self, carrier: Carrier) -> None:
        self._carrier = carrier
        self._channel: Any = carrier.channel
        self._on_cpu = carrier.is_plain

    @cached_property
    def _lends(self) -> bool:
        """Asked for large gradients on the CPU only, since it replaces torch's allocator."""
        return bool(self._channel.lends_memory())

    def can_make(self, slots: Sequence[Slot]) -> bool:
        """Whether gradients like these, which are in one memory, can be in a bucket."""
        return self._on_cpu if slots[0].parameter.is_cpu else self._carrier.packs

    def make(self, slots: Sequence[Slot], alone: bool = False) -> Bucket | DeviceBucket:
        """A bucket for these."""
        parameters = [slot.parameter for slot in slots]
        if not parameters[0].is_cpu:
            return DeviceBucket(parameters, self._carrier)
        return Bucket(parameters, self._channel, alone, alone and self._lends)


def indices_of(units: Sequence[Unit]) -> list[list[int]]:
    """The numbers of the slots of each unit."""
    return [[slot.index for slot in unit.slots] for unit in units]


def late_of(units: Sequence[Unit]) -> list[int]:
    """The numbers of the late units."""
    return [number for number, unit in enumerate(units) if unit.late]


def _is_dense(unit: Unit, kinds: bytes) -> bool:
    one_memory = len({kind_of_memory(slot) for slot in unit.slots}) == 1
    return one_memory and all(kinds[slot.index] <= DENSE for slot in unit.slots)
