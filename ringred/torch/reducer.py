"""How the optimizer reaches the other ranks: two calls, so that tests can put anything in their place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

import ringred as rr
from ringred.torch.arena import empty


class Reducer(Protocol):
    """What gradient exchange needs of a group of ranks."""

    @property
    def size(self) -> int:
        """Number of ranks that take part, at least 1."""

    def empty(self, length: int, dtype: torch.dtype) -> torch.Tensor:
        """Return a zeroed 1-d tensor that a plan of this reducer can work on, at best without a copy."""

    def plan(self, tensor: torch.Tensor, op: rr.Op, tag: str) -> Callable[[], object]:
        """Return a call that reduces `tensor` in place over all ranks; ranks whose tags differ all get an error."""


class WorldReducer:
    """All ranks of this job, through plans on arena memory."""

    @property
    def size(self) -> int:
        """Number of ranks of the job."""
        return rr.size()

    def empty(self, length: int, dtype: torch.dtype) -> torch.Tensor:
        """Return a zeroed 1-d tensor in the shared arena."""
        return empty(length, dtype=dtype)

    def plan(self, tensor: torch.Tensor, op: rr.Op, tag: str) -> Callable[[], object]:
        """Bind `tensor` to an allreduce over the world."""
        plan: Callable[[], object] = rr.plan_allreduce(tensor, op=op, tag=tag)
        return plan
