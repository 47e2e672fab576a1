"""Hooks that tell a receiver which gradients backward has finished.

Invariant: parameters own their hooks, hooks know the receiver only weakly. A hook that owned it would close a cycle
through torch's C++ side, which Python cannot collect, and model and buffers would live for ever.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch


class Receiver(Protocol):
    """Who wants to know."""

    def arrive(self, index: int) -> None:
        """Called on the thread of backward(), once for each accumulation into the gradient of parameter `index`."""


def attach(receiver: Receiver, parameters: Sequence[torch.Tensor]) -> Callable[[], object]:
    """Hook `parameters` up to `receiver`, until it is collected or the returned call is made (twice does no harm).

    Frozen parameters are hooked up as well; those of dtypes that have no gradients are left out.
    """
    weak_receiver = weakref.ref(receiver)
    handles = [
        _register(parameter, _hook(weak_receiver, index))
        for index, parameter in enumerate(parameters)
        if parameter.is_floating_point() or parameter.is_complex()
    ]
    detach = weakref.finalize(receiver, _remove_all, handles)
    detach.atexit = False
    return detach


def _hook(weak_receiver: weakref.ref[Receiver], index: int) -> Callable[[torch.Tensor], None]:
    def tell(_: torch.Tensor) -> None:
        receiver = weak_receiver()
        if receiver is not None:
            receiver.arrive(index)

    return tell


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


def _remove_all(handles: Sequence[Any]) -> None:
    for handle in handles:
        handle.remove()
