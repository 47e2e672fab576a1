"""Closures under data parallelism: whatever an optimizer learns from one must be the same on all ranks.

An optimizer may call its closure many times in a step (LBFGS), and decide from the losses where to go next. A rank that
decided from its own loss would leave the others; so each call ends with gradients exchanged and the loss reduced.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ringred.ops import Op
from ringred.torch.channel import Channel


class LossReduction:
    """Reduces the losses that closures return, with the op of the gradients."""

    def __init__(self, channel: Channel, op: Op) -> None:
        self._channel = channel
        self._op = op

    def wrap(self, closure: Callable[[], Any], synchronize: Callable[[], None]) -> Callable[[], Any]:
        """Return `closure` followed by `synchronize` and the reduction of its loss.

        A number and a one-element tensor are reduced in float64; the number comes back as a float, the tensor with its
        dtype and shape. Anything else, None included, comes back as it is. All ranks must return the same kind.
        """

        def wrapped() -> Any:
            loss = closure()
            synchronize()
            if isinstance(loss, torch.Tensor) and loss.numel() == 1:
                return torch.full_like(loss.detach(), self._over_ranks(loss.item()))
            return self._over_ranks(loss) if isinstance(loss, (int, float)) else loss

        return wrapped

    def _over_ranks(self, loss: float) -> float:
        message = torch.tensor([loss], dtype=torch.float64, device="cpu")
        self._channel.allreduce_([message], self._op, "loss of closure").wait()
        return message.item()
