"""This process's Python stacks for the reports of stalls, without the GIL: faulthandler writes them on a signal.

The engine sends the signal to a thread of its own, so no other thread notices, and reads the stacks from a file in
memory. A process whose main thread hangs in C code or in MPI can still be looked into that way.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal

from ringred import _core

_SIGNALS = range(signal.SIGRTMAX - 3, signal.SIGRTMIN + 3, -1)
"""Real-time signals that nobody uses as a rule; those at the ends of the range are popular."""

_signal = 0
_descriptor = -1


def offer(engine: _core.Engine) -> None:
    """Let `engine` read this process's stacks. Does nothing where no signal is free."""
    global _signal, _descriptor
    if _descriptor < 0:
        _signal, _descriptor = _register()
    if _signal:
        engine.set_stack_source(_signal, _descriptor)


def _register() -> tuple[int, int]:
    for number in _SIGNALS:
        if signal.getsignal(number) is signal.SIG_DFL:
            descriptor = os.memfd_create("ringred-stacks")
            with contextlib.suppress(OSError, RuntimeError):
                faulthandler.register(number, file=descriptor, all_threads=True, chain=False)
                return number, descriptor
            os.close(descriptor)
    return 0, -1
