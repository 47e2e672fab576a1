"""step_report: where the time of the last training step went, at no cost.

Invariant: reports are made from what is measured anyway; nothing is sent for them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class StepReport:
    """One step of a DistributedOptimizer on this rank. Times are seconds of wall clock."""

    step: int
    """Its number, from 1."""
    seconds: float
    """From the end of the step before."""
    compute: float
    """All but `exposed`."""
    communication: float
    """In which gradients moved, in the background or not; one after the other, so overlaps are not counted twice."""
    exposed: float
    """In which training waited for the exchange, or did its work."""
    waiting: float
    """In which operations were ready on all ranks but one."""
    late_rank: int | None
    """For which rank most of that time; None: for nobody."""

    def __str__(self) -> str:
        def shown(seconds: float) -> str:
            return f"{1e3 * seconds:.1f} ms"

        text = (
            f"step {self.step}: {shown(self.seconds)}, compute {shown(self.compute)}, communication "
            f"{shown(self.communication)} of which exposed {shown(self.exposed)}"
        )
        return text if self.late_rank is None else f"{text}; waited {shown(self.waiting)} for rank {self.late_rank}"


class Channel(Protocol):
    """What tells who was late."""

    @property
    def ranks(self) -> Sequence[int]:
        """The ranks, in the order of `lateness`."""

    def lateness(self) -> list[float]:
        """For how long in all, in seconds, the others have waited for each rank."""


class StepClock:
    """Makes the reports of one optimizer."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._steps = 0
        self._ended = time.perf_counter()
        self._exposed = 0.0
        self._lateness = channel.lateness()
        self._spans: list[tuple[float, float]] = []

    def note_span(self, begin: float, end: float) -> None:
        """Data moved from `begin` to `end`, in seconds of any clock."""
        self._spans.append((begin, end))

    def end_step(self, exposed: float) -> None:
        """A step has ended; `exposed` is the sum over all steps."""
        global _last
        now = time.perf_counter()
        lateness = self._channel.lateness()
        grown = [after - before for before, after in zip(self._lateness, lateness, strict=True)]
        longest = max(grown, default=0.0)
        self._steps += 1
        seconds, spent = now - self._ended, exposed - self._exposed
        late_rank = self._channel.ranks[grown.index(longest)] if longest > 0 else None
        moved = _union(self._spans)
        _last = StepReport(self._steps, seconds, seconds - spent, moved, spent, longest, late_rank)
        self._ended, self._exposed, self._lateness = now, exposed, lateness
        self._spans.clear()


def step_report() -> StepReport | None:
    """Where the time of the last step went, on this rank: str() gives one line. None before the first step.

    With several optimizers, that of the one that stepped last. In a single process there is nothing to report.
    """
    return _last


_last: StepReport | None = None


def _union(spans: Sequence[tuple[float, float]]) -> float:
    """The length of what some intervals cover together."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total
