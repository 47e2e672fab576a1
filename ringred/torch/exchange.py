"""Gradient exchange: replaces every gradient by its average over ranks, and starts while backward still runs.

Invariant: in every round all ranks reduce the same messages in the same order, bucket 0, 1, ..., flags, whatever order
autograd finishes gradients in and whichever parameters a rank did not use.

A round:
  1. A hook on each parameter copies its fresh gradient into its place. When the next bucket in order is full, the hook
     reduces it on the spot.
  2. `synchronize` fills the places that no hook has filled: with the gradient that is there, or with zeros where it is
     None. It reduces the remaining buckets in order.
  3. Then the flags travel: one byte a parameter, maximum over ranks, that says who had a gradient at all.
  4. Buckets are copied back. A gradient that is None on every rank stays None, so that optimizers skip the parameter
     exactly as they do in a single process; otherwise None becomes the average, where this rank counted as zero.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

import ringred as rr
from ringred.torch.buckets import Slot, build_buckets, fingerprint
from ringred.torch.hooks import attach
from ringred.torch.names import NamedTensor
from ringred.torch.reducer import Reducer


class GradientExchange:
    """Hooks, buckets and the state of the current round for one set of parameters."""

    def __init__(self, parameters: Sequence[NamedTensor], reducer: Reducer, op: rr.Op, passes_per_round: int) -> None:
        self.communication_seconds = 0.0  # wall time inside reductions, waiting for other ranks included
        self._passes_per_round = passes_per_round
        self._op = op
        self._frozen = [(name, parameter) for name, parameter in parameters if not parameter.requires_grad]
        trained = [(name, parameter) for name, parameter in parameters if parameter.requires_grad]
        self._buckets = build_buckets(trained, reducer, op)
        self._slots = [slot for bucket in self._buckets for slot in bucket.slots]
        self._flags = reducer.empty(len(self._slots), torch.uint8)
        # Two names for one message: a rank that drops a round must not pair with ranks that step on it.
        self._reduce_flags = reducer.plan(self._flags, rr.Max, f"gradient flags, step (layout {fingerprint(trained)})")
        self._drop_flags = reducer.plan(self._flags, rr.Max, f"gradient flags, dropped (layout {fingerprint(trained)})")
        self._next_bucket = 0  # buckets before this one are reduced in this round
        self._synchronized = False  # the round is over: gradients are averages
        self._paused = False
        self.close = attach(self, [slot.parameter for slot in self._slots])

    @property
    def pending(self) -> bool:
        """Whether a round has begun on this rank and is not over."""
        return any(slot.sent is not None for slot in self._slots)

    def arrive(self, index: int) -> None:
        """Take note that backward has accumulated the gradient of slot `index` (phase 1)."""
        slot = self._slots[index]
        if self._synchronized:
            self._begin_after_synchronize(slot)
        if slot.sent is not None:
            raise rr.UsageError(
                f"Gradients are exchanged after {self._passes_per_round} backward pass(es) a step; parameter "
                f"{slot.name!r} got one more. Raise backward_passes_per_step, or wrap the extra passes in "
                "optimizer.no_sync(), or call optimizer.zero_grad() (not model.zero_grad()) to drop a pass."
            )
        if self._paused:
            return
        slot.passes += 1
        if slot.passes < self._passes_per_round or slot.parameter.grad is None:
            return
        slot.send(slot.parameter.grad)
        self._buckets[slot.bucket].missing -= 1
        while self._next_bucket < len(self._buckets) and self._buckets[self._next_bucket].missing == 0:
            self._reduce_next()

    def synchronize(self) -> None:
        """Finish the round (phases 2 to 4); does nothing when it is over already."""
        if self._synchronized:
            return
        self._check_unchanged()
        used = []
        for slot in self._slots:
            gradient = slot.parameter.grad
            used.append(gradient is not None)
            if gradient is None:
                slot.place.zero_()
            elif slot.sent is None:
                slot.send(gradient)
        self._flags.copy_(torch.tensor(used, dtype=torch.uint8))
        self._reduce_rest(self._reduce_flags)
        self._copy_back()
        self._clear()
        self._synchronized = True

    def finish_step(self) -> None:
        """Open the next round, after the gradients have been used."""
        self._synchronized = False

    def discard(self) -> None:
        """Drop the round: reduce what other ranks expect, and leave all gradients alone."""
        if self.pending:
            self._reduce_rest(self._drop_flags)
        self._clear()
        self._synchronized = False

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Let backward passes inside the block accumulate on this rank only."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def _begin_after_synchronize(self, slot: Slot) -> None:
        # The average of (average + own) is average + average of own: right. The sum of (sum + own) counts the first n
        # times.
        if self._op != rr.Average:
            raise rr.UsageError(
                "With op=Sum, gradients that synchronize() has summed may not be accumulated into; parameter "
                f"{slot.name!r} got another gradient before step(). Call optimizer.step() or zero_grad() first."
            )
        self._synchronized = False

    def _check_unchanged(self) -> None:
        for slot in self._slots:
            if slot.sent is not None and not slot.sent_gradient_is_current():
                raise rr.UsageError(
                    "A gradient may not change between backward() and the exchange, the change would be lost; that of "
                    f"parameter {slot.name!r} did. Call optimizer.synchronize() before you clip, unscale (GradScaler) "
                    "or edit them."
                )
        for name, parameter in self._frozen:
            if parameter.requires_grad and parameter.grad is not None:
                raise rr.UsageError(
                    "Parameters take part in the exchange if they require gradients when the optimizer is built; "
                    f"{name!r} did not, and has a gradient now. Build the DistributedOptimizer after unfreezing."
                )

    def _reduce_next(self) -> None:
        # Counted before the call: a mismatch is raised on all ranks, and the call counts as done on all of them.
        bucket = self._buckets[self._next_bucket]
        self._next_bucket += 1
        self._timed(bucket.reduce)

    def _reduce_rest(self, reduce_flags: Callable[[], object]) -> None:
        while self._next_bucket < len(self._buckets):
            self._reduce_next()
        self._timed(reduce_flags)

    def _timed(self, reduce: Callable[[], object]) -> None:
        start = time.perf_counter()
        try:
            reduce()
        finally:
            self.communication_seconds += time.perf_counter() - start

    def _copy_back(self) -> None:
        with torch.no_grad():
            for slot, used in zip(self._slots, self._flags.tolist(), strict=True):
                if slot.parameter.grad is not None:
                    slot.parameter.grad.copy_(slot.place)
                elif used:
                    slot.parameter.grad = slot.place.clone()

    def _clear(self) -> None:
        self._next_bucket = 0
        for bucket in self._buckets:
            bucket.clear()
