"""Gradient exchange: replaces every gradient by its average over ranks, and starts while backward still runs.

Invariant: after a round all ranks have the same gradients, or all of them have raised. A round exchanges the same
units on all ranks, whatever order autograd finishes gradients in and whichever parameters a rank did not use.

A unit is what travels together: one parameter or a group of them; after the first round a bucket of them (buckets.py),
where ranks see each other's arenas and nothing is to be done to the numbers.

A round:
  1. A hook on each parameter but small ones counts its passes. When all gradients of a unit are there, it sends them
     off, under the unit's name: the engine pairs them with those of the other ranks in any order.
  2. `average` sends the buckets that are complete, and those of small gradients; then flags, one byte a parameter, of
     which all ranks get the maximum: whether a rank has a gradient, and of which kind. Another byte for each rank tells
     whether it steps on the round or drops it.
  3. Units with a gradient on some rank that this rank has not sent yet it sends now, with zeros for what it lacks.
  4. When everything is back, gradients are replaced. One that is None on all ranks stays None, so that optimizers skip
     the parameter exactly as they do in a single process.

In the first round nothing is sent before phase 2, which then begins with a comparison of names, shapes and options: so
different models are an error and never a wrong sum, and no message waits for ever for its counterpart. At its end the
ranks take over the first one's order of finished gradients, by which buckets are filled.

What lies where is told in arrangement.py. Hooks and all that is done for each gradient are in C++
(csrc/python/gradient_slots.h).
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from ringred import _core
from ringred.errors import MismatchError, UsageError
from ringred.ops import Op
from ringred.step_report import StepClock
from ringred.torch.agreement import NamedTensor, check_agreement, describe
from ringred.torch.arrangement import Arrangement
from ringred.torch.buckets import Departure
from ringred.torch.hooks import alive
from ringred.torch.overlap import Overlap
from ringred.torch.parcels import DENSE, NONE, Carrier, Kinds, Slot, kind_of, separate
from ringred.torch.scaling import scale, sum_of_squares
from ringred.torch.stopwatch import Stopwatch
from ringred.torch.units import Unit

STEPS, DROPS, WEIGHS = 1, 2, 3
"""What a rank does with a round: WEIGHS is a step whose gradients have weights."""

_CALLS = {
    STEPS: "step() or synchronize()",
    DROPS: "zero_grad()",
    WEIGHS: "step() or clip_grad_norm_() with a weight",
}

BUCKET_BYTES = 16 << 20


class GradientExchange:
    """Hooks, units and the state of the current round for one set of parameters.

    Args:
        parameters: names and parameters, in the same order on all ranks.
        groups: indices of parameters that travel together, each index once at most.
        carrier: how they travel.
        passes: backward passes over which a gradient is accumulated before it is sent.
        sparse_as_dense: make sparse gradients dense when they arrive.
        overlap: whether units are sent during the backward pass.
        bucket_bytes: how large buckets may become; 0: there are none.
    """

    def __init__(
        self,
        parameters: Sequence[NamedTensor],
        groups: Sequence[Sequence[int]],
        carrier: Carrier,
        passes: int,
        sparse_as_dense: bool = False,
        overlap: Overlap | None = None,
        bucket_bytes: int = BUCKET_BYTES,
    ) -> None:
        self.stopwatch = Stopwatch()  # of this rank's waits for the others
        self._carrier = carrier
        self._channel = carrier.channel
        self._sparse_as_dense = sparse_as_dense
        self._overlap = Overlap("on") if overlap is None else overlap
        self._slots = [Slot(index, *named) for index, named in enumerate(parameters)]
        options = [
            f"sparse_as_dense={sparse_as_dense}",
            f"bucket_bytes={bucket_bytes}",
            f'overlap="{self._overlap.choice}"',
        ]
        self._agreed = False  # whether all ranks have this layout
        self._settled = False  # whether memory from before has been given back
        self._order: list[int] = []  # units in the order in which the first round found them ready
        self._kinds: bytes = b""  # of the gradients of the last round, by slot, over all ranks
        self._synchronized = False  # the round is over: gradients are averages
        self._clock = StepClock(self._channel)
        self._measures = False  # averages are measured on the way, since they are clipped
        receiver = weakref.ref(self)
        self._gradients = _core.Gradients(
            [slot.parameter for slot in self._slots],
            lambda index: alive(receiver)._count_once_more(index),
            lambda number, through: alive(receiver)._note_ready(number, through),
            lambda index, gradient, place: alive(receiver)._move(index, gradient, place),
        )
        self._gradients.passes = passes
        self._gradients.sums = carrier.op != Op.Average
        self._arrangement = Arrangement(self._slots, groups, self._gradients, carrier, bucket_bytes)
        units = [f"{unit.name!r} with op {carrier.op.name}" for unit in self._units]
        self._layout = [*describe(parameters), *units, *options]

    def close(self) -> None:
        """Take all hooks off; the views are ordinary gradients from now on."""
        self._arrangement.close()

    @property
    def _units(self) -> list[Unit]:
        return self._arrangement.units

    @property
    def passes(self) -> int:
        """Backward passes over which a gradient is accumulated before it is sent."""
        return self._gradients.passes

    @passes.setter
    def passes(self, passes: int) -> None:
        self._gradients.passes = passes

    @property
    def pending(self) -> bool:
        """Whether a round has begun: some gradient got all its passes, and is on its way (or was, in a first round)."""
        return self._gradients.pending()

    def arrive(self, index: int) -> None:
        """Take note that backward has accumulated the gradient of slot `index` (phase 1); hooks do the same."""
        self._gradients.arrive(index)

    def synchronize(self, weight: float | None = None) -> None:
        """Finish the round, for a caller who may run backward again before the step."""
        self.watch_all()
        self.average(weight)

    def watch_all(self) -> None:
        """See backward passes on any parameter from now on, those with small gradients included."""
        self._arrangement.hook_all()

    def average(self, weight: float | None = None) -> None:
        """Finish the round (phases 2 to 4); does nothing when it is over already.

        Args:
            weight: of this rank's gradients in the average, such as the number of samples that they are the mean of.
        """
        if self._synchronized:
            return
        self._arrangement.check_owned()
        self._check_unchanged()
        with self.stopwatch.running():
            kinds = self._finish(*self._intent_of(weight))
        with torch.no_grad():
            for unit in self._units:
                if unit.parcel is not None:
                    unit.parcel.deliver(kinds)
        squares = [None if unit.parcel is None else unit.parcel.squares for unit in self._units]
        self._clear()
        for unit, one in zip(self._units, squares, strict=True):
            unit.squares = one
        if self._carrier.op != Op.Average:
            self._gradients.complete_all()  # see _begin_after_synchronize
        self._kinds = kinds
        self._set_synchronized(True)

    def settle(self) -> None:
        """Return when averages that are still computed on GPUs are there; raise what went wrong with them."""
        for turns in self._arrangement.turns:
            turns.settle()

    def clip(self, max_norm: float, weight: float | None = None) -> float:
        """Scale the averages down to a 2-norm of at most `max_norm`; returns the norm that they had. Collective."""
        measured = not self._synchronized  # otherwise somebody may have changed the averages since
        self.synchronize(weight)
        with self.stopwatch.running(), torch.no_grad():
            norm = self._norm(measured)
            if norm + 1e-6 > max_norm:
                self._scale(max_norm / (norm + 1e-6))
        return norm

    def _norm(self, measured: bool) -> float:
        """The 2-norm of the averages; of buckets in later rounds as the reduction found it, if `measured` allows."""
        parts = 0.0
        loose: list[torch.Tensor | None] = []
        for unit in self._units:
            if measured and unit.squares is not None:
                parts += unit.squares
            else:
                loose += [slot.parameter.grad for slot in unit.slots]
        message = torch.tensor([parts, sum_of_squares(loose), 1.0], dtype=torch.float64, device="cpu")
        self._channel.allreduce_([message], Op.Sum, "norm").wait()
        self._measures = True
        parts, whole, ranks = message.tolist()
        if measured and ranks < self._channel.size:  # one that has joined does not tell what it found
            return self._norm(measured=False)
        return math.sqrt(parts + whole / ranks)

    def finish_step(self) -> None:
        """Open the next round, after the gradients have been used."""
        if self._synchronized:
            self._settle_in()
        self._clock.end_step(self.stopwatch.seconds)
        self._overlap.note_step(self._channel, self._gradients.began)
        self._clear()
        self._set_synchronized(False)

    def discard(self) -> None:
        """Drop the round: send what other ranks expect, and wait until nothing is under way."""
        if self.pending:
            with self.stopwatch.running():
                self._finish(DROPS)
        self._clear()
        self._set_synchronized(False)
        self._gradients.expect()

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
        self._clear()
        self._set_synchronized(False)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Let backward passes inside the block accumulate on this rank only."""
        before, self._gradients.paused = self._gradients.paused, True
        try:
            yield
        finally:
            self._gradients.paused = before

    @property
    def synchronized(self) -> bool:
        """Whether gradients are averages that no step has used yet."""
        return self._synchronized

    def _set_synchronized(self, synchronized: bool) -> None:
        self._synchronized = self._gradients.closed = synchronized

    def _count_once_more(self, index: int) -> None:
        """A backward pass has reached a slot that has got all its passes, or whose gradient is an average."""
        slot = self._slots[index]
        if self._synchronized:
            self._begin_after_synchronize(slot)
        elif self._gradients.passes_of(index) >= self.passes:
            raise UsageError(
                f"Gradients are exchanged after {self.passes} backward pass(es) a step; parameter {slot.name!r} got "
                "one more. Raise backward_passes_per_step, or wrap the extra passes in optimizer.no_sync(), or call "
                "optimizer.zero_grad() (not model.zero_grad()) to drop a pass."
            )
        else:
            raise UsageError(
                f"Parameter {slot.name!r} got a gradient after its bucket had been sent without one, since it was "
                "frozen then. Unfreeze parameters before the first backward pass of a step, or build the optimizer "
                'with overlap="off".'
            )

    def _begin_after_synchronize(self, slot: Slot) -> None:
        # The average of (average + own) is average + average of own: right. The sum of (sum + own) counts the first n
        # times.
        if self._carrier.op != Op.Average and slot.parameter.grad is self._gradients.sent(slot.index):
            raise UsageError(
                "With op=Sum, gradients that synchronize() has summed may not be accumulated into; parameter "
                f"{slot.name!r} got another gradient before step(). Call optimizer.step() or zero_grad() first."
            )
        self._clear()
        self._set_synchronized(False)

    def _note_ready(self, number: int, through: bool) -> None:
        """All slots of a unit that were to be trained have got their passes; `through`: all slots have."""
        if not self._agreed:
            self._order.append(number)
            return
        unit = self._units[number]
        if self._overlap.now and (through or all(self._gradients.is_through(slot.index) for slot in unit.slots)):
            slots = unit.slots if unit.bucket is None else ()
            with self.stopwatch.running():
                self._send(unit, {slot.index: self._kind_of(slot.parameter.grad) for slot in slots}, own=True)

    def _send_complete(self) -> None:
        """Send the buckets that travel in this round whatever the flags of other ranks say."""
        for number in self._gradients.ready_units():
            unit = self._units[number]
            if unit.bucket is not None and unit.parcel is None:
                self._send(unit, {}, own=True)  # a bucket has places for gradients of any kind

    def _move(self, index: int, gradient: torch.Tensor, place: torch.Tensor) -> None:
        """Bring a gradient to its place that cannot be copied as plain bytes."""
        slot = self._slots[index]
        if slot.parameter.shape != place.shape or slot.parameter.dtype != place.dtype:
            raise UsageError(
                f"Parameters keep their shape and dtype: {slot.name!r} had {tuple(place.shape)}, {place.dtype} when "
                f"the optimizer was built, and has {tuple(slot.parameter.shape)}, {slot.parameter.dtype} now. Build "
                "another one."
            )
        with torch.no_grad():
            place.copy_(gradient.to_dense() if gradient.layout == torch.sparse_coo else gradient)

    def _check_unchanged(self) -> None:
        index = self._gradients.first_changed()
        if index >= 0:
            raise UsageError(
                "A gradient may not change between backward() and the exchange, the change would be lost; that of "
                f"parameter {self._slots[index].name!r} did. Call optimizer.synchronize() before you clip, unscale or "
                "edit them."
            )

    def _agree_on_layout(self) -> None:
        if not self._agreed:
            check_agreement(
                self._channel.share, self._channel.ranks, "The parameters of a DistributedOptimizer", self._layout
            )
            self._channel.check_replicas([(slot.name, slot.parameter.detach()) for slot in self._slots])
            self._agreed = True

    def _settle_in(self) -> None:
        """After the first round, make buckets; after the next, give back what gradients took before there were any."""
        if not self._arrangement.is_final:
            self._arrangement.make_final(self._order, self._kinds)
            if self._arrangement.turns:
                self._overlap.settle()  # the host's clock tells nothing of what devices do
        elif not self._settled:
            self._settled = True
            _core.release_free_memory()

    def _kind_of(self, gradient: torch.Tensor | None) -> int:
        kind = kind_of(gradient)
        return min(kind, DENSE) if self._sparse_as_dense else kind

    def _send(self, unit: Unit, kinds: Kinds, own: bool) -> None:
        if unit.bucket is not None:
            number = self._units.index(unit)
            unit.parcel = unit.bucket.send(
                Departure(self._gradients, number, unit.slots, unit.name, self._carrier, own, self._measures)
            )
            return
        if own and self._sparse_as_dense:
            for slot in unit.slots:
                _make_dense(slot.parameter)
        unit.parcel = self._carrier.send(unit.slots, unit.name, kinds, own)
        for slot in unit.slots:
            self._gradients.complete(slot.index)

    def _intent_of(self, weight: float | None) -> tuple[int, float]:
        if weight is None:
            return STEPS, 1.0
        if self._carrier.op != Op.Average or self._overlap.choice != "off":
            raise UsageError(
                "Gradients have weights in an average that is taken inside step(): build the optimizer with op=Average "
                'and overlap="off" (or fused=True) to use step(weight=...).'
            )
        if weight == 0:  # of no samples: their mean may well be nan
            for slot in self._slots:
                slot.parameter.grad = None
            self._gradients.complete_all()
        return WEIGHS, weight

    def _weigh(self, weight: float) -> None:
        """Scale this rank's gradients so that the plain average of all ranks is the weighted one."""
        total = torch.tensor([weight], dtype=torch.float64, device="cpu")
        self._channel.allreduce_([total], Op.Sum, "weight").wait()
        if total.item() <= 0:
            raise UsageError(f"Weights must add up to more than 0: they add up to {total.item():g}.")
        factor = weight * self._channel.size / total.item()
        if factor != 1:
            with torch.no_grad():
                for unit in self._units:  # or what is shared would be scaled twice
                    for slot in unit.slots:
                        held = unit.bucket is not None and unit.bucket.holds_gradients
                        if not held or self._gradients.sent(slot.index) is None:
                            separate(slot)
                self._scale(factor)

    def _scale(self, factor: float) -> None:
        scale([slot.parameter.grad for slot in self._slots if slot.parameter.grad is not None], factor)

    def _finish(self, intent: int, weight: float = 1.0) -> bytes:
        """Complete what any rank has begun, and return the kinds of gradients by slot index (phases 2 and 3)."""
        self._agree_on_layout()
        if intent == STEPS:
            self._send_complete()
        kinds, intents = self._exchange_flags(intent)
        if set(intents) - {0} == {WEIGHS}:
            self._weigh(weight)
        for unit in self._units:
            if unit.parcel is None and any(kinds[slot.index] != NONE for slot in unit.slots):
                self._send(unit, kinds, own=intent != DROPS)
        self._wait()
        if len(set(intents) - {0}) > 1:  # 0: a rank that has joined
            self._clear()
            raise MismatchError(
                "All ranks must step on a backward pass, or all drop it, and weights are for all or none: "
                + ", ".join(
                    f"rank(s) {self._who(intents, what)} called {call}"
                    for what, call in _CALLS.items()
                    if what in intents
                )
                + ". Call the same on all ranks."
            )
        return kinds

    def _exchange_flags(self, intent: int) -> tuple[bytes, bytes]:
        started = [unit.parcel is not None for unit in self._units]
        own = bytearray(self._gradients.kinds(started, intent != DROPS))
        for index, kind in enumerate(own) if max(own, default=NONE) > DENSE else ():
            if kind > DENSE:  # of another layout: which one?
                own[index] = self._kind_of(self._slots[index].parameter.grad)
        intents = bytearray(self._channel.size)
        intents[self._channel.rank] = intent
        flags = own + intents
        self._channel.allreduce_([torch.frombuffer(flags, dtype=torch.uint8)], Op.Max, "flags").wait()
        return bytes(flags[: len(own)]), bytes(flags[len(own) :])

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
                    for span in unit.parcel.spans:
                        self._clock.note_span(*span)
            except Exception as error:
                errors.append(error)
        if errors:
            self._clear()
            raise errors[0]

    def _clear(self) -> None:
        for unit in self._units:
            unit.parcel = None
            unit.squares = None
        if self._arrangement.lends_memory:
            channel: Any = self._channel
            channel.let_go()  # so that gradients go back to the pool when the user drops them
        self._gradients.clear()


def _make_dense(parameter: torch.Tensor) -> None:
    if parameter.grad is not None and parameter.grad.layout == torch.sparse_coo:
        parameter.grad = parameter.grad.to_dense()
