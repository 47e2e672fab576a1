"""Hooks that are called when backward has finished a gradient.

Invariant: parameters own their hooks, and hooks own no parameter. A hook that did would close a cycle through torch's
C++ side, which Python cannot collect, and model and buffers would live for ever.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch

T = TypeVar("T")


class Hooks:
    """Hooks on some of the parameters, until `owner` is collected or `close` is called.

    A hook is called on the thread of backward(), once for each accumulation into the gradient of its parameter. Frozen
    parameters are hooked up as well; those of dtypes that have no gradients are left out.

    Args:
        owner: whose hooks they are.
        parameters: what they may be attached to.
        hook_of: makes the hook of a parameter, from its index.
    """

    def __init__(
        self,
        owner: object,
        parameters: Sequence[torch.Tensor],
        hook_of: Callable[[int], Callable[[torch.Tensor], None]],
    ) -> None:
        self._parameters = parameters
        self._hook_of = hook_of
        self._handles: dict[int, Any] = {}
        self.close = weakref.finalize(owner, _remove_all, self._handles)
        self.close.atexit = False

    def attach(self, indices: Iterable[int]) -> None:
        """Hook up these parameters, if they are not; nothing after `close`.

        There is no way back: torch takes as long for a parameter whose hooks have been removed.
        """
        for index in indices if self.close.alive else ():
            parameter = self._parameters[index]
            if index not in self._handles and (parameter.is_floating_point() or parameter.is_complex()):
                self._handles[index] = _register(parameter, self._hook_of(index))


def alive(receiver: weakref.ref[T]) -> T:
    """The object that a hook works for, which it may not own."""
    found = receiver()
    assert found is not None, "hooks go with what they work for"
    return found


def _register(parameter: Any, hook: Callable[[torch.Tensor], None]) -> Any:
    # Any, because torch declares no types for this method. It refuses a frozen parameter, but keeps the hook of one
    # that is frozen later: it may be thawed some day.
    frozen = not parameter.requires_grad
    if frozen:
        parameter.requires_grad_(True)
    try:
        return parameter.register_post_accumulate_grad_hook(hook)
    finally:
        if frozen:
            parameter.requires_grad_(False)


def _remove_all(handles: dict[int, Any]) -> None:
    for handle in handles.values():
        handle.remove()
    handles.clear()
