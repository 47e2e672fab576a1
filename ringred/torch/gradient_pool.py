"""Memory of the arena into which autograd computes gradients, so that nothing has to bring them there.

How torch's allocator is made to take it: csrc/memory/pool.h. Whether it does is tried out before it is relied on;
otherwise gradients are copied, as small ones are anyway.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache

import torch

from ringred import _core
from ringred.errors import UsageError

SETTING = "RINGRED_GRADIENT_POOL"
TRIED_BYTES = 12345
"""A size that nobody else asks for."""


def works(engine: _core.Engine) -> bool:
    """Whether torch takes memory from pools; False where the setting is off."""
    choice = os.environ.get(SETTING, "on")
    if choice not in ("on", "off"):
        raise UsageError(f"{SETTING} must be on or off: it is {choice!r}.")
    return choice == "on" and _is_replaced() and _is_taken(engine)


def gradient_pool(engine: _core.Engine, sizes: Sequence[int]) -> _core.Pool:
    """A pool for one gradient of each of these sizes, in bytes."""
    return _core.Pool(engine, sizes)


@cache
def _is_replaced() -> bool:
    return _core.replace_allocator("libc10.so")


def _is_taken(engine: _core.Engine) -> bool:
    pool = _core.Pool(engine, [TRIED_BYTES])
    pool.arm(True)
    tensor = torch.empty(TRIED_BYTES, dtype=torch.uint8, device="cpu")
    pool.arm(False)
    return pool.holds(tensor.data_ptr(), TRIED_BYTES)
