"""Claims: a gradient travels for one optimizer at a time.

Invariant: what is claimed is given up when its owner is closed or collected. Gradients that travel from where they
lie, and the places of those that are copied, bear a mark. Small gradients are copied to and fro inside step(); so
claimed are their parameters, in a set of ids, since a mark on a parameter would be saved with the model.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from ringred.errors import UsageError

CLAIM = "_ringred_travels"
"""An attribute of gradients that belong to an optimizer at the moment."""

_parameters: set[int] = set()
"""Ids of the parameters whose small gradients belong to an optimizer, which keeps the parameters alive."""


def check_unclaimed(gradient: torch.Tensor, name: str) -> None:
    """Raise a usage error if the gradient belongs to another optimizer."""
    if hasattr(gradient, CLAIM):
        raise _twice(name)


def check_unclaimed_parameters(named: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Raise a usage error if the small gradients of a parameter belong to another optimizer."""
    for name, parameter in named:
        if id(parameter) in _parameters:
            raise _twice(name)


class Claims:
    """What one optimizer has claimed. It owns no parameter."""

    def __init__(self) -> None:
        self._views: list[Any] = []
        self._ids: set[int] = set()

    def claim_view(self, view: torch.Tensor) -> torch.Tensor:
        """Mark the place of a gradient, and return it."""
        setattr(view, CLAIM, True)
        self._views.append(view)
        return view

    def claim_parameter(self, parameter: torch.Tensor) -> None:
        """Claim the small gradients of a parameter."""
        self._ids.add(id(parameter))
        _parameters.add(id(parameter))

    def give_up(self) -> None:
        """Claim nothing any more."""
        for view in self._views:
            delattr(view, CLAIM)
        _parameters.difference_update(self._ids)
        self._views.clear()
        self._ids.clear()


def _twice(name: str) -> UsageError:
    return UsageError(
        f"A parameter belongs to one DistributedOptimizer at a time: the gradient of {name!r} is on its way for "
        "another one already. Call close() on the one that is no longer used."
    )
