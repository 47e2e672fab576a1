"""Gradient exchange: replaces every gradient by its average over ranks, and starts while backward still runs.

Invariant: after a round all ranks have the same gradients, or all of them have raised. A round exchanges the same
parcels on all ranks, whatever order autograd finishes gradients in and whichever parameters a rank did not use.

A unit is one parameter, or a group of them that travels together.

A round:
  1. A hook on each parameter counts its passes. When all gradients of a unit are there, it sends them off, under the
     unit's name: the engine pairs them with those of the other ranks in any order.
  2. `synchronize` sends flags, one byte a parameter, of which all ranks get the maximum: whether a rank has a gradient,
     and of which kind. Another byte for each rank tells whether it steps on the round or drops it.
  3. Units with a gradient on some rank that this rank has not sent yet it sends now, with zeros for what it lacks.
  4. When everything is back, gradients are replaced. One that is None on all ranks stays None, so that optimizers skip
     the parameter exactly as they do in a single process.

In the first round nothing is sent before phase 2, which then begins with a comparison of names, shapes and options: so
different models are an error and never a wrong sum, and no message waits for ever for its counterpart.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from ringred.errors import MismatchError, UsageError
from ringred.ops import Op
from ringred.torch.agreement import NamedTensor, check_agreement, describe
from ringred.torch.hooks import attach
from ringred.torch.parcels import DENSE, NONE, Carrier, Parcel, Slot, kind_of

STEPS, DROPS = 1, 2
"""What a rank does with a round."""


class Unit:
    """Slots that travel together, and their parcel of the current round."""

    def __init__(self, name: str, slots: list[Slot]) -> None:
        self.name = name
        self.slots = slots
        self.parcel: Parcel | None = None

    def is_ready(self, passes: int) -> bool:
        """Whether all gradients that can come in this round are there, and at least one is."""
        return all(slot.passes >= passes or not slot.parameter.requires_grad for slot in self.slots) and any(
            slot.parameter.grad is not None for slot in self.slots
        )


class GradientExchange:
    """Hooks, units and the state of the current round for one set of parameters.

    Args:
        parameters: names and parameters, in the same order on all ranks.
        groups: indices of parameters that travel together, each index once at most; the others travel alone.
        carrier: how they travel.
        passes: backward passes over which a gradient is accumulated before it is sent.
        sparse_as_dense: make sparse gradients dense when they arrive.
    """

    def __init__(
        self,
        parameters: Sequence[NamedTensor],
        groups: Sequence[Sequence[int]],
        carrier: Carrier,
        passes: int,
        sparse_as_dense: bool = False,
    ) -> None:
        self.communication_seconds = 0.0  # wall time in which this rank waited for the others
        self.passes = passes
        self._carrier = carrier
        self._channel = carrier.channel
        self._sparse_as_dense = sparse_as_dense
        self._units = _build_units(parameters, groups)
        self._slots = sorted((slot for unit in self._units for slot in unit.slots), key=lambda slot: slot.index)
        units = [f"{unit.name!r} with op {carrier.op.name}" for unit in self._units]
        self._layout = [*describe(parameters), *units, f"sparse_as_dense={sparse_as_dense}"]
        self._agreed = False  # whether all ranks have this layout
        self._synchronized = False  # the round is over: gradients are averages
        self._paused = False
        self.close = attach(self, [slot.parameter for slot in self._slots])

    @property
    def pending(self) -> bool:
        """Whether a round has begun: some gradient got all its passes, and is on its way (or was, in a first round)."""
        return any(slot.passes >= self.passes for slot in self._slots)

    def arrive(self, index: int) -> None:
        """Take note that backward has accumulated the gradient of slot `index` (phase 1)."""
        slot = self._slots[index]
        if self._synchronized:
            self._begin_after_synchronize(slot)
        if slot.passes >= self.passes:
            raise UsageError(
                f"Gradients are exchanged after {self.passes} backward pass(es) a step; parameter {slot.name!r} got "
                "one more. Raise backward_passes_per_step, or wrap the extra passes in optimizer.no_sync(), or call "
                "optimizer.zero_grad() (not model.zero_grad()) to drop a pass."
            )
        if self._paused:
            return
        slot.passes += 1
        if slot.passes >= self.passes:
            slot.mark_sent()
        unit = self._units[slot.unit]
        if self._agreed and unit.is_ready(self.passes):
            with self._timed():
                self._send(unit, {one.index: self._kind_of(one.parameter.grad) for one in unit.slots}, own=True)

    def synchronize(self) -> None:
        """Finish the round (phases 2 to 4); does nothing when it is over already."""
        if self._synchronized:
            return
        self._check_unchanged()
        with self._timed():
            kinds = self._finish(STEPS)
        with torch.no_grad():
            for unit in self._units:
                if unit.parcel is not None:
                    unit.parcel.deliver(kinds)
        self._clear()
        for slot in self._slots:
            slot.mark_sent()
        self._synchronized = True

    def finish_step(self) -> None:
        """Open the next round, after the gradients have been used."""
        self._clear()
        self._synchronized = False

    def discard(self) -> None:
        """Drop the round: send what other ranks expect, and wait until nothing is under way."""
        if self.pending:
            with self._timed():
                self._finish(DROPS)
        self.finish_step()

    def reset(self) -> None:
        """Forget the passes that were counted.

        Raises:
            UsageError: gradients are under way.
        """
        if self.pending:
            raise UsageError(
                "Gradients are on their way to the other ranks. Call optimizer.step() or optimizer.zero_grad() on all "
                "ranks first."
            )
        self.finish_step()

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Let backward passes inside the block accumulate on this rank only."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    @property
    def synchronized(self) -> bool:
        """Whether gradients are averages that no step has used yet."""
        return self._synchronized

    def _begin_after_synchronize(self, slot: Slot) -> None:
        # The average of (average + own) is average + average of own: right. The sum of (sum + own) counts the first n
        # times.
        if self._carrier.op != Op.Average and slot.parameter.grad is slot.sent:
            raise UsageError(
                "With op=Sum, gradients that synchronize() has summed may not be accumulated into; parameter "
                f"{slot.name!r} got another gradient before step(). Call optimizer.step() or zero_grad() first."
            )
        self.finish_step()

    def _check_unchanged(self) -> None:
        for slot in self._slots:
            if (slot.sent is not None or self._units[slot.unit].parcel is not None) and not slot.is_current():
                raise UsageError(
                    "A gradient may not change between backward() and the exchange, the change would be lost; that of "
                    f"parameter {slot.name!r} did. Call optimizer.synchronize() before you clip, unscale or edit them."
                )

    def _agree_on_layout(self) -> None:
        if not self._agreed:
            check_agreement(
                self._channel.share, self._channel.ranks, "The parameters of a DistributedOptimizer", self._layout
            )
            self._agreed = True

    def _kind_of(self, gradient: torch.Tensor | None) -> int:
        kind = kind_of(gradient)
        return min(kind, DENSE) if self._sparse_as_dense else kind

    def _send(self, unit: Unit, kinds: Mapping[int, int], own: bool) -> None:
        if own and self._sparse_as_dense:
            for slot in unit.slots:
                _make_dense(slot.parameter)
        unit.parcel = self._carrier.send(unit.slots, unit.name, kinds, own)

    def _finish(self, intent: int) -> dict[int, int]:
        """Complete what any rank has begun, and return the kinds of gradients by slot index (phases 2 and 3)."""
        self._agree_on_layout()
        kinds, intents = self._exchange_flags(intent)
        for unit in self._units:
            if unit.parcel is None and any(kinds[slot.index] != NONE for slot in unit.slots):
                self._send(unit, kinds, own=intent == STEPS)
        self._wait()
        if STEPS in intents and DROPS in intents:  # a rank that has joined does neither
            self._clear()
            raise MismatchError(
                "All ranks must step on a backward pass, or all drop it: "
                f"rank(s) {self._who(intents, STEPS)} called step() or synchronize(), "
                f"rank(s) {self._who(intents, DROPS)} called zero_grad(). Call the same on all ranks."
            )
        return kinds

    def _exchange_flags(self, intent: int) -> tuple[dict[int, int], list[int]]:
        own = []
        for slot in self._slots:
            sent = self._units[slot.unit].parcel is not None
            gradient = slot.sent if sent else slot.parameter.grad if intent == STEPS else None
            own.append(self._kind_of(gradient))
        intents = [intent if rank == self._channel.rank else 0 for rank in range(self._channel.size)]
        flags = torch.tensor([*own, *intents], dtype=torch.uint8)
        self._channel.allreduce_([flags], Op.Max, "flags").wait()
        values: list[int] = flags.tolist()
        return dict(enumerate(values[: len(own)])), values[len(own) :]

    def _who(self, intents: Sequence[int], wanted: int) -> str:
        pairs = zip(self._channel.ranks, intents, strict=True)
        return ", ".join(str(rank) for rank, intent in pairs if intent == wanted)

    def _wait(self) -> None:
        """Wait for all parcels; then raise the first error."""
        errors = []
        for unit in self._units:
            try:
                if unit.parcel is not None:
                    unit.parcel.wait()
            except Exception as error:
                errors.append(error)
        if errors:
            self._clear()
            raise errors[0]

    def _clear(self) -> None:
        for unit in self._units:
            if unit.parcel is not None:
                unit.parcel.release()
            unit.parcel = None
        for slot in self._slots:
            slot.clear()

    @contextmanager
    def _timed(self) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.communication_seconds += time.perf_counter() - start


def _build_units(parameters: Sequence[NamedTensor], groups: Sequence[Sequence[int]]) -> list[Unit]:
    grouped = {index for group in groups for index in group}
    alone = [[index] for index in range(len(parameters)) if index not in grouped]
    units = []
    for number, indices in enumerate([*groups, *alone]):
        slots = [Slot(index, *parameters[index], number) for index in indices]
        name = f"gradient.{slots[0].name}" if len(slots) == 1 else f"gradients.{number}.{slots[0].name}"
        units.append(Unit(name, slots))
    return units


def _make_dense(parameter: torch.Tensor) -> None:
    if parameter.grad is not None and parameter.grad.layout == torch.sparse_coo:
        parameter.grad = parameter.grad.to_dense()
