"""Overlap: whether gradients travel during the backward pass or after it, measured where it is not set.

During the backward pass the engine's thread moves data while autograd computes. That wins where it has a core, or
where ranks wait for each other; where all cores compute, the same work is done with more interruptions.
"""

from __future__ import annotations

import statistics
import time

import torch

from ringred.errors import UsageError
from ringred.ops import Op
from ringred.torch.channel import Channel

CHOICES = ("auto", "on", "off")
SKIPPED = 3
"""Steps before the measurement, in which everything is set up."""
BLOCK, BLOCKS = 3, 4
"""Steps are tried in blocks that alternate between the two ways; the first step of a block does not count."""


class Overlap:
    """One optimizer's choice. All ranks make the same one, since they choose by the sum of their times.

    Args:
        choice: "on", "off", or "auto": measured over 12 steps at the start.

    Raises:
        UsageError: it is none of these.
    """

    def __init__(self, choice: str = "auto") -> None:
        if choice not in CHOICES:
            raise UsageError(f"overlap must be one of {', '.join(map(repr, CHOICES))}: it is {choice!r}.")
        self.choice = choice
        self.now = choice != "off"
        self._measures = choice == "auto"
        self._steps = 0
        self._times: dict[bool, list[float]] = {True: [], False: []}
        self._last = 0.0  # when the last round began

    def note_step(self, channel: Channel, began: float) -> None:
        """Tell that a step has ended. Collective, and equally often on all ranks.

        Args:
            channel: the ranks.
            began: when the first gradient of the last round came, in seconds of CLOCK_MONOTONIC. What happens between
                steps, such as the loading of data, does not count.
        """
        if not self._measures:
            return
        step = self._steps - SKIPPED
        if step >= 0 and step % BLOCK > 0 and began != self._last:
            self._times[self.now].append(time.monotonic() - began)
        self._last = began
        self._steps += 1
        step += 1
        if step >= BLOCK * BLOCKS:
            self._decide(channel)
        elif step >= 0:
            self.now = step // BLOCK % 2 == 0

    def settle(self) -> None:
        """Measure nothing: what is not switched off is on."""
        if self._measures:
            self._measures, self.now = False, True

    def _decide(self, channel: Channel) -> None:
        self._measures = False
        times = [self._times[way] for way in (True, False)]
        medians = [statistics.median(one) for one in times] if all(times) else [0.0, 0.0]  # no gradients on this rank
        message = torch.tensor(medians, dtype=torch.float64, device="cpu")
        channel.allreduce_([message], Op.Sum, "overlap").wait()
        during, after = message.tolist()
        self.now = during <= after
