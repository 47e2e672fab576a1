"""Ownership: a parameter's gradients travel for one optimizer, the newest that was built on it.

Invariant: no two owners have one parameter, on any rank, whatever objects are still waiting to be collected there. The
older one has lost its hooks by then, and says so when it is used again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ringred.errors import UsageError

_newest: dict[int, Ownership] = {}
"""By id of a parameter, which its owner keeps alive."""


class Ownership:
    """One optimizer's hold on its parameters, until it is given up or a newer one takes one of them.

    It keeps no parameter alive: who has it does.

    Args:
        named: names and parameters.
        lose: called when a newer one has taken one.
    """

    def __init__(self, named: Sequence[tuple[str, torch.Tensor]], lose: Callable[[], object]) -> None:
        self._names = {id(parameter): name for name, parameter in named}
        self._lose = lose
        self._lost: str | None = None
        for key in self._names:
            older = _newest.get(key)
            if older is not None:
                older._end(key)
        _newest.update(dict.fromkeys(self._names, self))

    def check(self) -> None:
        """Raise a usage error if a newer optimizer has taken a parameter."""
        if self._lost is not None:
            raise UsageError(
                "A parameter belongs to one DistributedOptimizer at a time: another one has been built on "
                f"{self._lost!r} since. Use that one, or build this one anew."
            )

    def give_up(self) -> None:
        """Own nothing any more."""
        for key in self._names:
            if _newest.get(key) is self:
                del _newest[key]

    def _end(self, key: int) -> None:
        self._lost = self._names[key]
        self.give_up()
        self._lose()
