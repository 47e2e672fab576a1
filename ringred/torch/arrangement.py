"""Arrangement: which gradients travel together, in what memory, and which parameters have hooks.

Invariant: all ranks have the same units. What travels during the backward pass has hooks on all of its parameters.

In the first round every gradient travels by itself or with its group, from where it lies. Then there are, by size:
large ones (from ALONE_BYTES on), which autograd computes into the arena, where they travel; others, which the hook
copies into a bucket, which then is where they lie; and small ones (up to LATE_BYTES), which are copied to a bucket and
back inside step() and need no hook. A few of these have one nevertheless, so that passes are counted.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ringred import _core
from ringred.torch.buckets import Bucket
from ringred.torch.device_buckets import DeviceBucket
from ringred.torch.device_ways import open_buckets
from ringred.torch.direct_way import Turns
from ringred.torch.hooks import Hooks, alive
from ringred.torch.ownership import Ownership
from ringred.torch.parcels import Carrier, Slot
from ringred.torch.units import first_units, in_buckets, indices_of, late_of, mark_late

WATCHED = 8
"""One in so many parameters with small gradients has a hook, which counts passes."""


class Arrangement:
    """The units of one exchange.

    Args:
        slots: its parameters.
        groups: indices of slots that travel together.
        gradients: what is done for each of them.
        carrier: how they travel.
        bucket_bytes: how large buckets may become; 0: there are none.
    """

    def __init__(
        self,
        slots: Sequence[Slot],
        groups: Sequence[Sequence[int]],
        gradients: _core.Gradients,
        carrier: Carrier,
        bucket_bytes: int,
    ) -> None:
        self.units = first_units(slots, groups)
        self.is_final = False  # buckets have been made, or there will be none
        self.turns: list[Turns] = []  # of buckets that are reduced where they lie, on GPUs
        self._slots = slots
        self._gradients = gradients
        self._channel: Any = carrier.channel
        self._bucket_bytes = bucket_bytes
        self._carrier = carrier
        self._may_have_buckets = bool(bucket_bytes) and carrier.packs and hasattr(carrier.channel, "reduce_in_place")
        self._lazy: dict[int, Bucket] = {}  # by slot: buckets of gradients that are to lie in the pool
        self._hooks = Hooks(self, [slot.parameter for slot in slots], gradients.hook)
        if self._may_have_buckets and carrier.is_plain:
            mark_late(self.units)
        late = late_of(self.units)
        gradients.arrange(indices_of(self.units), [None] * len(slots), late=late)
        unhooked = {late[place] for place in range(len(late)) if (len(late) - 1 - place) % WATCHED != 0}
        for number, unit in enumerate(self.units):
            if number not in unhooked:
                self._hooks.attach(slot.index for slot in unit.slots)
        receiver = weakref.ref(self)
        self._ownership = Ownership([(slot.name, slot.parameter) for slot in slots], lambda: _close(receiver))
        self._end = weakref.finalize(self, _end, self._hooks.close, self._ownership, gradients)
        self._end.atexit = False

    @property
    def lends_memory(self) -> bool:
        """Whether autograd computes gradients into the arena."""
        return bool(self._lazy)

    def make_final(self, order: Sequence[int], kinds: bytes) -> None:
        """Make buckets; what is not dense keeps its unit, and so do groups of the user's.

        Args:
            order: numbers of units, as this rank found them ready. All ranks take over the first one's.
            kinds: of the gradients of the first round, by slot.
        """
        self.is_final = True
        if not self._may_have_buckets:
            return
        told = self._channel.share((list(order), self._places()), "order of gradients")
        alike = all(places == told[0][1] for _, places in told)
        limit = self._bucket_bytes if alike else 0  # ranks whose models lie on different devices have no buckets
        self.units = units = in_buckets(self.units, told[0][0], kinds, limit, self._carrier)
        self.turns = open_buckets([one.bucket for one in units if isinstance(one.bucket, DeviceBucket)], self._carrier)
        views: list[Any] = [None] * len(self._slots)
        for unit in units:
            if isinstance(unit.bucket, Bucket) and unit.bucket.lazy:
                self._lazy[unit.slots[0].index] = unit.bucket
            for slot, view in zip(unit.slots, unit.bucket.views if unit.bucket else [], strict=False):
                views[slot.index] = view
        sizes = [self._slots[index].parameter.nbytes for index in self._lazy]
        pool = self._channel.pool(sizes) if sizes else None
        receiver = weakref.ref(self)
        self._gradients.arrange(
            indices_of(units), views, pool, [*self._lazy], lambda index: alive(receiver).make(index), late_of(units)
        )
        self._hooks.attach(slot.index for unit in units if not unit.late for slot in unit.slots)

    def _places(self) -> list[int]:
        """The device of each slot: -1 for the CPU, else devices are numbered as they appear."""
        numbers: dict[torch.device, int] = {torch.device("cpu"): -1}
        return [numbers.setdefault(slot.parameter.device, len(numbers) - 1) for slot in self._slots]

    def check_owned(self) -> None:
        """Raise a usage error if a newer optimizer has taken a parameter."""
        self._ownership.check()

    def hook_all(self) -> None:
        """Have hooks on all parameters from now on."""
        self._hooks.attach(range(len(self._slots)))

    def close(self) -> None:
        """Take all hooks off; views are ordinary gradients from now on."""
        self._end()

    def make(self, index: int) -> torch.Tensor:
        """The view of a slot whose gradient is not in the pool."""
        bucket = self._lazy[index]
        bucket.make()
        return bucket.views[0]


def _close(receiver: weakref.ref[Arrangement]) -> None:
    arrangement = receiver()
    if arrangement is not None:
        arrangement.close()


def _end(detach: Callable[[], object], ownership: Ownership, gradients: _core.Gradients) -> None:
    detach()
    ownership.give_up()
    gradients.clear()
