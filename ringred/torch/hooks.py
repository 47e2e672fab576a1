"""Hooks that are called when backward has finished a gradient.

Invariant: parameters own their hooks, and hooks own no parameter. A hook that did would close a cycle through torch's
C++ side, which Python cannot collect, and model and buffers would live for ever.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch


def attach(
    owner: object, parameters: Sequence[torch.Tensor], hook_of: Callable[[int], Callable[[torch.Tensor], None]]
) -> Callable[[], object]:
    """Hook up parameters with `hook_of(index)`, until `owner` is collected or the returned call is made.

    A hook is called on the thread of backward(), once for each accumulation into the gradient of its parameter. Frozen
    parameters are hooked up as well; those of dtypes that have no gradients are left out.
    """
    handles = [
        _register(parameter, hook_of(index))
        for index, parameter in enumerate(parameters)
        if parameter.is_floating_point() or parameter.is_complex()
    ]
    detach = weakref.finalize(owner, _remove_all, handles)
    detach.atexit = False
    return detach


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
