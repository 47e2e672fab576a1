"""Adasum training: each rank steps by itself, and the steps are combined.

Invariant: after a step all ranks have the same parameters.

    1. Remember the parameters.
    2. Step the wrapped optimizer with this rank's gradients.
    3. Combine the ranks' changes of each parameter with Adasum, and apply the result to the remembered parameters.

This is how the method's authors use it with optimizers that have a state (arXiv:2006.02924), and what Horovod does.
For plain SGD it is the same as combining gradients. The wrapped optimizer's state is that of this rank's own gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ringred.ops import Op
from ringred.torch.agreement import NamedTensor, check_agreement, describe
from ringred.torch.channel import Channel
from ringred.torch.stopwatch import Stopwatch


class DeltaExchange:
    """Combines what the wrapped optimizer did to `parameters` on each rank."""

    def __init__(self, parameters: Sequence[NamedTensor], channel: Channel, compression: Any) -> None:
        self.stopwatch = Stopwatch()  # of this rank's waits for the others
        floats = [(name, parameter) for name, parameter in parameters if parameter.is_floating_point()]
        self._originals = [parameter for _, parameter in floats]
        self._parameters = [parameter.detach() for parameter in self._originals]
        self._channel = channel
        self._compression = compression
        self._layout = [*describe(floats), "op Adasum"]
        self._agreed = False

    def step(self, inner_step: Callable[[], Any]) -> Any:
        """Step with this rank's gradients, then combine the changes. Returns what `inner_step` returns."""
        if not self._agreed:
            check_agreement(
                self._channel.share, self._channel.ranks, "The parameters of a DistributedOptimizer", self._layout
            )
            self._agreed = True
        before = [parameter.clone() for parameter in self._parameters]
        result = inner_step()
        pairs = zip(self._parameters, before, strict=True)
        packed = [self._compression.compress((parameter - old).contiguous()) for parameter, old in pairs]
        messages = [message.contiguous() for message, _ in packed]
        with self.stopwatch.running():
            self._channel.allreduce_(messages, Op.Adasum, "deltas").wait()
        for index, parameter in enumerate(self._parameters):
            delta = self._compression.decompress(messages[index], packed[index][1])
            torch.add(before[index], delta, out=parameter)
        return result

    def agree_on_overflow(self) -> None:
        """Give this rank an infinite gradient if another rank has one, so that a GradScaler skips on all or none."""
        gradients = [parameter.grad for parameter in self._originals if parameter.grad is not None]
        finite = all(bool(torch.isfinite(_values_of(gradient)).all()) for gradient in gradients)
        flag = torch.tensor([not finite], dtype=torch.uint8, device="cpu")
        with self.stopwatch.running():
            self._channel.allreduce_([flag], Op.Max, "overflow").wait()
        if finite and gradients and flag.item():
            _values_of(gradients[0]).view(-1)[:1] = float("inf")


def _values_of(gradient: torch.Tensor) -> torch.Tensor:
    return gradient._values() if gradient.layout == torch.sparse_coo else gradient
