"""Gradient exchange for the fused step: gradients stay this rank's own, and travel inside step().

Invariant: between a backward pass and step() a gradient is this rank's, in its place in the arena; the averages are
never stored, but for keep_gradients=True.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ringred import _core
from ringred.errors import UsageError
from ringred.ops import Op
from ringred.torch.agreement import NamedTensor
from ringred.torch.buckets import travels_alone
from ringred.torch.exchange import GradientExchange
from ringred.torch.fused import FusedStep
from ringred.torch.overlap import Overlap
from ringred.torch.parcels import Carrier, Kinds
from ringred.torch.units import Unit


class FusedExchange(GradientExchange):
    """Hooks, and the state of the current round, for parameters that a fused step updates.

    Args:
        parameters: names and parameters.
        carrier: the ranks and the op.
        passes: backward passes over which a gradient is accumulated.
        fused: the step.
    """

    def __init__(self, parameters: Sequence[NamedTensor], carrier: Carrier, passes: int, fused: FusedStep) -> None:
        indices = [group.indices for group in fused.groups]
        super().__init__(parameters, indices, carrier, passes, True, Overlap("off"), bucket_bytes=0)
        self.fused = fused
        fused.note_span = self._clock.note_span
        self._factor = 1.0  # for the averages of this round
        self._finished = False  # flags have been exchanged, gradients are in their places
        self._unscaled = False  # a GradScaler may have written gradients
        self._arrangement.make_final([], b"")
        views: list[torch.Tensor | None] = [None] * len(parameters)
        for unit, group in zip(self._units, fused.groups, strict=True):
            unit.bucket = group.gradients
            for index, view in zip(group.indices, group.gradients.views, strict=True):
                views[index] = view
        self._places = views  # by slot
        channel: Any = self._channel
        large = [slot.parameter.nbytes for slot in self._slots if travels_alone(slot)]
        pool = channel.pool(scratch_of(large)) if large and channel.lends_memory() else None
        self._gradients.arrange([group.indices for group in fused.groups], views, pool)

    @property
    def pending(self) -> bool:
        """Whether a round has begun; on ranks that have no gradient too, after calls that all ranks make."""
        return super().pending or self._finished or self._unscaled

    def step(self, weight: float | None = None) -> None:
        """Update all parameters on all ranks. Collective."""
        self._prepare(weight)
        with self.stopwatch.running():
            self.fused.step(self._kinds, self._factor)
        if not self._settled:
            self._settled = True
            _core.release_free_memory()  # such as where the parameters were before
        if self.fused.keeps_gradients:
            for number in range(len(self._units)):
                self._gradients.deliver(number, self._kinds)
        self.finish_step()

    def clip(self, max_norm: float, weight: float | None = None) -> float:
        """Have the averages scaled down to a 2-norm of at most `max_norm` in this round's step; returns their norm."""
        self._prepare(weight)
        with self.stopwatch.running():
            norm = self.fused.measure(self._kinds) * self._factor
        self._factor *= min(1.0, max_norm / (norm + 1e-6))
        return norm

    def synchronize(self, weight: float | None = None) -> None:
        """Refuse: there is no moment between averaging and the step."""
        raise UsageError(
            "With fused=True gradients are averaged inside step(), which leaves each rank its own. Clip with "
            "optimizer.clip_grad_norm_(max_norm) before step(), or use fused=False."
        )

    def agree_on_overflow(self) -> None:
        """Give this rank an infinite gradient if another rank has one, so that a GradScaler skips on all or none."""
        for number in range(len(self._units)):
            self._gradients.fill(number, True)
        finite = all(_is_finite(group.gradients.flat) for group in self.fused.groups)
        own = [slot.parameter.grad is not None and slot.parameter.numel() > 0 for slot in self._slots]
        flags = torch.tensor([*own, not finite], dtype=torch.uint8, device="cpu")
        with self.stopwatch.running():
            self._channel.allreduce_([flags], Op.Max, "overflow").wait()
        *anywhere, overflows = flags.tolist()
        if any(anywhere) and not any(own):  # a scaler refuses to step without gradients: zeros add nothing
            index = anywhere.index(1)
            self._slots[index].parameter.grad = self._places[index]
            self._gradients.complete(index)
            own[index] = True
        if finite and overflows:
            gradient = self._slots[own.index(True)].parameter.grad
            assert gradient is not None
            gradient[(0,) * gradient.dim()] = float("inf")
        self._unscaled = True  # from now on the scaler may write them

    def _prepare(self, weight: float | None) -> None:
        if self._finished:
            return
        self._arrangement.check_owned()
        self.fused.check_in_place()
        if self._unscaled:
            self._settle_again()
        else:
            self._check_unchanged()
        try:
            with self.stopwatch.running():
                kinds = self._finish(*self._intent_of(weight))
        except UsageError:  # on all ranks: weights that add up to 0
            self._clear()
            raise
        self._kinds = kinds
        self._finished = True

    @property
    def synchronized(self) -> bool:
        """Whether ranks have agreed on this round already, in clip_grad_norm_()."""
        return self._finished

    def _settle_again(self) -> None:
        """Bring gradients to their places that were replaced since a GradScaler has looked at them."""
        with torch.no_grad():
            for slot, place in zip(self._slots, self._places, strict=True):
                gradient = slot.parameter.grad
                if gradient is place:
                    continue
                assert place is not None
                if gradient is None:
                    place.zero_()
                else:
                    place.copy_(gradient)
                    slot.parameter.grad = place
                self._gradients.complete(slot.index)

    def _clear(self) -> None:
        super()._clear()
        self._factor, self._finished, self._unscaled = 1.0, False, False

    def _note_ready(self, number: int, through: bool) -> None:
        pass

    def _send_complete(self) -> None:
        pass

    def _move(self, index: int, gradient: torch.Tensor, place: torch.Tensor) -> None:
        if gradient.dtype != place.dtype:  # that of a parameter that was cast
            self.fused.check_in_place()
        super()._move(index, gradient, place)

    def _send(self, unit: Unit, kinds: Kinds, own: bool) -> None:
        self._gradients.fill(self._units.index(unit), own)


def scratch_of(sizes: Sequence[int]) -> list[int]:
    """Blocks in which autograd may compute large gradients, which are copied from there at once.

    One for each size, from the largest on, and together at most twice that one. In the C library's memory gradients
    that come and go leave gaps, which take up more.
    """
    found: list[int] = []
    for size in sorted(set(sizes), reverse=True):
        if sum(found) + size <= 2 * max(sizes):
            found.append(size)
    return found


def _is_finite(values: torch.Tensor) -> bool:
    if values.numel() == 0:
        return True
    least, most = torch.aminmax(values)  # one pass, no memory; a nan makes both nan
    return bool(torch.isfinite(least)) and bool(torch.isfinite(most))
