"""Python objects between ranks: pickled, over one ragged allgather of bytes.

A message is a header and, from those who send an object, its pickle:

    call          what this rank calls
    outcome       whether it could pickle its object, and if not whether it has cloudpickle
    root          the world rank whose object this rank wants, -1 for everybody's
    payload       the pickle, or the text of the failure

Everybody gets every header. So ranks that call different things all notice, and a rank that cannot pickle its object
tells the others instead of leaving them to wait.
"""

from __future__ import annotations

import contextlib
import io
import pickle
import struct
from typing import Any, NamedTuple

from ringred import world
from ringred.arguments import check_name
from ringred.errors import MismatchError, RingredError, UsageError
from ringred.messages import by_rank, exchange
from ringred.process_sets import ProcessSet, checked_set, global_process_set

_HEADER = struct.Struct("<ccq")
_BROADCAST, _GATHER = b"B", b"G"
_GOOD, _FAILED, _FAILED_WITHOUT_CLOUDPICKLE = b"+", b"-", b"0"


class _Part(NamedTuple):
    """What one rank sent."""

    rank: int  # in the world
    call: str
    outcome: bytes
    payload: memoryview


def broadcast_object(
    obj: Any = None, root_rank: int = 0, name: str | None = None, process_set: ProcessSet = global_process_set
) -> Any:
    """Return the root's object on every rank: on the root the object itself, elsewhere a copy. Collective over the set.

    Args:
        obj: anything that pickle takes, or cloudpickle where it is installed, of any size. Only the root's counts.
        root_rank: the root's rank in the world, also where a process set is given.
        name: pairs the call with those of the other ranks; without a name they are paired in order.

    Raises:
        UsageError: the root's object cannot be pickled, raised on all ranks; root_rank or this rank is not in the set;
            or the object cannot be unpickled here.
        MismatchError: ranks disagree about the root, or call something else; raised on all ranks.
        PeerLostError, TimeoutError: a rank died, left or did not come.
    """
    check_name(name)
    root = checked_set(process_set).rank_of(root_rank, "root_rank")
    here = process_set.rank() == root
    message = _message(_BROADCAST, root_rank, obj) if here else (_header(_BROADCAST, _GOOD, root_rank), None)
    part = _exchange(*message, name, process_set)[root]
    return obj if here else _unpickled(part)


def allgather_object(obj: Any, name: str | None = None, process_set: ProcessSet = global_process_set) -> list[Any]:
    """Return copies of all ranks' objects, in the order of the set's ranks. Collective over the set.

    Arguments and errors are those of broadcast_object, where every rank is a root.
    """
    check_name(name)
    checked_set(process_set)
    return [_unpickled(part) for part in _exchange(*_message(_GATHER, -1, obj), name, process_set)]


def _header(call: bytes, outcome: bytes, root: int) -> bytes:
    return _HEADER.pack(call, outcome, root)


def _message(call: bytes, root: int, obj: Any) -> tuple[bytes | memoryview, BaseException | None]:
    """The message with this object, or with what was raised when it was pickled."""
    file = io.BytesIO()
    file.write(_header(call, _GOOD, root))
    try:
        _pickle(obj, file)
    except BaseException as error:  # SystemExit, KeyboardInterrupt: the peers must hear of these as well
        outcome = _FAILED if _cloudpickle() is not None else _FAILED_WITHOUT_CLOUDPICKLE
        return _header(call, outcome, root) + _text_of(error).encode(errors="replace"), error
    return file.getbuffer(), None


def _text_of(error: BaseException) -> str:
    """What is said of an error of the user's code, whose str() may raise itself."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return f"{type(error).__name__}, whose str() raises"


def _pickle(obj: Any, file: io.BytesIO) -> None:
    try:
        pickle.dump(obj, file, pickle.HIGHEST_PROTOCOL)
    except Exception:
        cloudpickle = _cloudpickle()
        if cloudpickle is None:
            raise
        file.truncate(_HEADER.size)
        file.seek(_HEADER.size)
        cloudpickle.dump(obj, file)


def _cloudpickle() -> Any:
    """The module, or None where it is not installed."""
    try:
        import cloudpickle  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        return None
    return cloudpickle


def _exchange(
    message: bytes | memoryview, error: BaseException | None, name: str | None, process_set: ProcessSet
) -> list[_Part]:
    if error is not None and not isinstance(error, Exception):
        with contextlib.suppress(RingredError):
            exchange(world.engine(), process_set.group(), name, message)
        raise error
    received = exchange(world.engine(), process_set.group(), name, message)
    parts = [_parsed(rank, part) for rank, part in zip(process_set.ranks, received, strict=True)]
    calls = [part.call for part in parts]
    if len(set(calls)) > 1:
        said = by_rank(calls, process_set.ranks)
        raise MismatchError(f"All ranks must call the same function with the same root_rank: it is {said}.")
    failures = [
        f"that of rank {part.rank} cannot ({str(part.payload, 'utf-8')})" for part in parts if part.outcome != _GOOD
    ]
    if failures:
        remedy = (
            "Install cloudpickle for functions and classes that are not at the top of a module."
            if any(part.outcome == _FAILED_WITHOUT_CLOUDPICKLE for part in parts)
            else "Send what can be pickled of it, or define __reduce__ for its class."
        )
        raise UsageError(
            f"An object must be one that can be pickled to be sent to other ranks: {', '.join(failures)}. {remedy}"
        ) from error
    return parts


def _parsed(rank: int, part: memoryview) -> _Part:
    kind, outcome, root = _HEADER.unpack_from(part)
    call = f"broadcast_object with root_rank={root}" if kind == _BROADCAST else "allgather_object"
    return _Part(rank, call, outcome, part[_HEADER.size :])


def _unpickled(part: _Part) -> Any:
    try:
        return pickle.loads(part.payload)
    except Exception as error:
        raise UsageError(
            f"What rank {part.rank} sent must be importable here: its object of {len(part.payload)} bytes cannot be "
            f"unpickled ({_text_of(error)}). Both ranks need the same modules."
        ) from error
