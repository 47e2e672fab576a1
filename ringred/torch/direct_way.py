"""The way of a bucket that is reduced where it lies, by a communicator of devices (RINGRED_GPU=direct).

All ranks have to call a communicator in the same order, while gradients become ready in an order of each rank's own, on
some ranks not at all, and the host is not to wait for a device. So:

    1. The buckets of an optimizer on one device have numbers, in the order of its units, which all ranks share. They
       have a communicator and a stream for themselves (ringred/devices/groups.py).
    2. A bucket that is packed during the backward pass is reduced at once if all buckets with lower numbers of this
       round have been; else it waits for them. So a rank has started 0 to k, for some k of its own.
    3. When flags have been exchanged (exchange.py, phase 2), all ranks know which buckets travel in this round: those
       that any rank has packed, or has a gradient for. Each rank packs what it lacks, then starts what is left in
       ascending order (`Turns.complete`). What 2 has started on any rank is among them, and comes first on all: so
       each rank has called the communicator for the buckets of the round in ascending order.

A rank without a backward pass, one that drops the round or steps before some gradient is there, starts everything in
3. Every call has the bucket's name as its tag, so a rank that leaves the order gets MismatchError instead of a sum of
different gradients.

The stream of the group waits on the device for the packing, then reduces, and leaves a mark: whoever delivers, or packs
again, waits for that on the device. The host waits for nothing, also not for a round that was dropped. It looks for
errors, which devices report later, at every start, in every `complete` and, waiting for the last start, in `settle`; a
thread does so, too (ringred/devices/watch.py).

Invariant: between two rounds, all ranks have made the same calls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ringred.devices.groups import DeviceGroup
from ringred.devices.leases import DIRECT, SETTING
from ringred.devices.library import Mark
from ringred.devices.recognition import torch_library
from ringred.errors import UsageError
from ringred.torch.parcels import Carrier


class Turns:
    """In which order the buckets of one optimizer on one device are reduced (2 and 3).

    Args:
        group: what reduces them, which is in use as long as this lives.
        device: where they are.
    """

    def __init__(self, group: DeviceGroup, device: torch.device) -> None:
        group.give_to(self)
        self._group = group
        library: Any = torch_library(device.type)
        self._module = library.module
        self._stream = library.module.Stream(device=device)
        self._next = 0  # of this round; all before it have been started
        self._packed: dict[int, Callable[[], None]] = {}
        self._is_over = True  # the last round; the next one has not begun

    def check_open(self) -> None:
        """Raise a usage error if the group has ended, and its memory with it."""
        if self._group.ended:
            raise UsageError(
                f"An optimizer that reduces gradients where they lie ({SETTING}={DIRECT}) ends with shutdown(). Build "
                "a new one after init(), on all ranks."
            )

    def come(self, number: int, start: Callable[[], None]) -> None:
        """A bucket is packed: start it, and those that waited for it, if it is its turn (2)."""
        self._is_over = False
        self._packed[number] = start
        while self._next in self._packed:
            self._packed.pop(self._next)()
            self._next += 1

    def complete(self) -> None:
        """All buckets of the round are packed: start those that wait (3). The round is over, as far as hosts go."""
        if self._is_over:
            return
        for number in sorted(self._packed):
            self._packed.pop(number)()
        self._next, self._is_over = 0, True
        with self._group.used() as communicator:
            communicator.check()

    def settle(self) -> None:
        """Let the host wait until the last reduction is over; raise why there is no result."""
        if self._group.ended:
            return  # together with all ranks, or after a word to them
        with self._group.used() as communicator:
            communicator.wait()

    def reduce(self, flat: torch.Tensor, packed: Any, carrier: Carrier, name: str) -> Mark:
        """Reduce memory on the group's stream, behind a mark; return the mark behind that."""
        packed.precede_on(self._stream)
        flat.record_stream(self._stream)  # torch's allocator gives it to nobody else before the end
        library: Any = torch_library(flat.device.type)
        with self._module.stream(self._stream), self._group.used() as communicator:
            self._group.calls += 1
            carrier.reduce_on_device(communicator, flat, name)
            mark: Mark = library.mark(flat)
            return mark


class DirectWay:
    """The way of one bucket.

    Args:
        flat: its memory.
        carrier: how it travels.
        turns: of all buckets on the device.
        number: of this one among them.
    """

    def __init__(self, flat: torch.Tensor, carrier: Carrier, turns: Turns, number: int) -> None:
        self.returned: Mark | None = None
        self.turns = turns
        self._flat = flat
        self._carrier = carrier
        self._number = number

    def check_open(self) -> None:
        """Raise after shutdown()."""
        self.turns.check_open()

    def start(self, packed: Mark, name: str) -> DirectJourney:
        """Reduce it when it is its turn."""
        journey = DirectJourney(self.turns)

        def reduce() -> None:
            try:
                self.returned = self.turns.reduce(self._flat, packed, self._carrier, name)
            except Exception as error:  # of which a hook can tell nobody
                journey.error = error

        self.turns.come(self._number, reduce)
        return journey


class DirectJourney:
    """One of its reductions."""

    spans: list[tuple[float, float]] = []  # noqa: RUF012  # the host does not know when it moves

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self.error: Exception | None = None

    def wait(self) -> None:
        """Return when all buckets of the round have been started, which this is the last moment for; raise errors."""
        self._turns.complete()
        if self.error is not None:
            raise self.error
