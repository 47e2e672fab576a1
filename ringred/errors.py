"""The exceptions of ringred: one family, a class for each thing that a caller can do about it."""

from __future__ import annotations

import builtins


class RingredError(Exception):
    """The base of all errors that ringred raises."""


class UsageError(RingredError, ValueError):
    """A wrong argument or a call at the wrong time. Nothing was started; correct the call."""


class MismatchError(RingredError, RuntimeError):
    """Ranks disagree about a call. Raised on every rank with all their values; the next call works."""


class ReplicaError(MismatchError):
    """check_replicas() found a tensor that ranks hold in different versions. Raised on every rank; nothing changed."""


class PeerLostError(RingredError, RuntimeError):
    """A peer died or left while this rank needed it. The communicator is broken until shutdown() and init()."""


class TimeoutError(RingredError, builtins.TimeoutError):
    """A wait took longer than RINGRED_TIMEOUT_SECONDS. The communicator is broken until shutdown() and init()."""


class InterruptedError(RingredError, builtins.InterruptedError):
    """A signal ended a wait. The communicator is broken until shutdown() and init()."""


class SystemError(RingredError, OSError):
    """The system refused something: memory, permissions, a limit. The text says need, have and remedy."""


HorovodInternalError = RingredError
"""The name that scripts written for Horovod catch."""
