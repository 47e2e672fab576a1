"""Gradient exchange for the fused step: gradients stay this rank's own, and travel inside step().

Invariant: between a backward pass and step() a gradient is this rank's, in its place in the arena; the averages are
never stored, but for keep_gradients=True.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ringred.errors import UsageError
from ringred.ops import Op
from ringred.torch.agreement import NamedTensor
from ringred.torch.exchange import GradientExchange, Unit
from ringred.torch.fused import FusedStep
from ringred.torch.overlap import Overlap
from ringred.torch.parcels import CLAIM, Carrier


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
        self._factor = 1.0  # for the averages of this round
        self._finished = False  # flags have been exchanged, gradients are in their places
        self._unscaled = False  # a GradScaler may have written gradients
        self._arranged = True
        views: list[torch.Tensor | None] = [None] * len(parameters)
        for unit, group in zip(self._units, fused.groups, strict=True):
            unit.bucket = group.gradients
            for index, view in zip(group.indices, group.gradients.views, strict=True):
                setattr(view, CLAIM, True)
                views[index] = view
                self._views.append(view)
        self._gradients.arrange([group.indices for group in fused.groups], views, fused.groups[0].arena)

    def step(self, weight: float | None = None) -> None:
        """Update all parameters on all ranks. Collective."""
        self._prepare(weight)
        with self._timed():
            self.fused.step(self._kinds, self._factor)
        self.finish_step()

    def clip(self, max_norm: float, weight: float | None = None) -> float:
        """Have the averages scaled down to a 2-norm of at most `max_norm` in this round's step; returns their norm."""
        self._prepare(weight)
        with self._timed():
            norm = self.fused.measure(self._kinds)
        self._factor = min(1.0, max_norm / (norm + 1e-6))
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
        flag = torch.tensor([not finite], dtype=torch.uint8)
        with self._timed():
            self._channel.allreduce_([flag], Op.Max, "overflow").wait()
        if finite and flag.item():
            for slot in self._slots:
                if slot.parameter.grad is not None:
                    slot.parameter.grad.view(-1)[:1] = float("inf")
                    break
        self._unscaled = True  # from now on the scaler may write them

    def _prepare(self, weight: float | None) -> None:
        if self._finished:
            return
        self.fused.check_in_place()
        if not self._unscaled:
            self._check_unchanged()
        with self._timed():
            kinds = self._finish(*self._intent_of(weight))
        self._kinds = bytes(kinds.values())
        self._finished = True

    def _clear(self) -> None:
        super()._clear()
        self._factor, self._finished, self._unscaled = 1.0, False, False

    def _note_ready(self, number: int, through: bool) -> None:
        pass

    def _send(self, unit: Unit, kinds: Mapping[int, int], own: bool) -> None:
        self._gradients.fill(self._units.index(unit), own)


def _is_finite(values: torch.Tensor) -> bool:
    if values.numel() == 0:
        return True
    least, most = torch.aminmax(values)  # one pass, no memory; a nan makes both nan
    return bool(torch.isfinite(least)) and bool(torch.isfinite(most))
