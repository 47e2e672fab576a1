"""Memory of the arena into which autograd computes gradients, so that nothing has to bring them there.

How torch's allocator is made to take it: csrc/memory/pool.h. Whether it does is tried out before it is relied on;
otherwise gradients are copied, as small ones are anyway.
"""

from __future__ import annotations

import os
from functools import cache

import torch

from ringred import _core
from ringred.errors import UsageError

SETTING = "RINGRED_GRADIENT_POOL"
TRIED_BYTES = (1 << 20) + 12345
"""A size that nobody else asks for; no smaller than those of gradients, or smaller requests would be looked at, too."""


def is_wanted() -> bool:
    """What the setting says.

    Raises:
        UsageError: it says neither on nor off.
    """
    choice = os.environ.get(SETTING, "on")
    if choice not in ("on", "off"):
        raise UsageError(f"{SETTING} must be on or off: it is {choice!r}.")
    return choice == "on"


def works(engine: _core.Engine) -> bool:
    """Whether torch takes memory from pools."""
    if not _is_replaced():
        return False
    pool = _core.Pool(engine, [TRIED_BYTES])
    pool.arm(True)
    tensor = torch.empty(TRIED_BYTES, dtype=torch.uint8, device="cpu")
    pool.arm(False)
    return pool.holds(tensor.data_ptr(), TRIED_BYTES)


@cache
def _is_replaced() -> bool:
    return _core.replace_allocator("libc10.so")
