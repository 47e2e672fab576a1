"""Groups of devices: the communicators over which optimizers reduce gradients where they lie (RINGRED_GPU=direct).

An optimizer leases one for each of its devices (leases.py), and has it for itself until it is collected: the order of
calls of one does not depend on another's. shutdown(), and the end of the process, end all groups: where all ranks come
within GRACE_SECONDS their memory is freed; where not, calls in flight break off, and memory goes with the process.

Invariant: what happens to a group between lease and end is its owner's business alone, but for the watch's looks.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

from ringred import environment, world
from ringred.devices.watch import Watch
from ringred.errors import RingredError
from ringred.ops import Op
from ringred.process_sets import ProcessSet

GRACE_SECONDS = 5.0
"""For which a rank that ends waits for the others to end: what is in flight ends meanwhile."""


class DeviceCommunicator(Protocol):
    """What is needed of ringred.cuda.Communicator. Used by one thread at a time."""

    @property
    def how(self) -> str:
        """Which way arrays take, and why."""

    @property
    def is_direct(self) -> bool:
        """Whether all devices load and store each other's memory."""

    @property
    def waits_on_host(self) -> bool:
        """Whether calls wait for other ranks before they return."""

    def allreduce_(
        self, array: Any, op: Op, *, prescale_factor: float = 1.0, postscale_factor: float = 1.0, tag: str = ""
    ) -> Any:
        """Enqueue an allreduce in order with the current stream; all ranks give the same tag."""

    def empty(self, shape: int, dtype: Any) -> Any:
        """Memory that all ranks have at the same offset. Collective."""

    def wait(self) -> None:
        """Wait for the last call, or raise why it has no result."""

    def check(self) -> None:
        """Raise what is known already."""

    def end(self) -> None:
        """Free everything; collective."""

    def abandon(self, reason: str) -> None:
        """End without the other ranks."""


class Place(NamedTuple):
    """A device of this rank: torch's name of its kind, and its ordinal."""

    kind: str
    ordinal: int


class DeviceGroup:
    """A communicator, and who uses it."""

    def __init__(self, communicator: DeviceCommunicator, process_set: ProcessSet, number: int, place: Place) -> None:
        self.communicator = communicator
        self.process_set = process_set
        self.number = number  # of the process set's, the same on all ranks
        self.place = place
        self.calls = 0
        self.lock = threading.Lock()  # held by whoever calls the communicator
        self.failed = False  # a call has raised: it is leased to nobody again
        self.ended = False
        self._memory: Any = None
        self._user: Callable[[], object] = lambda: None

    @contextmanager
    def used(self) -> Iterator[DeviceCommunicator]:
        """The communicator, for this thread alone."""
        with self.lock:
            try:
                yield self.communicator
            except BaseException:
                self.failed = True
                raise

    def check(self) -> None:
        """For the watch, which has the lock."""
        self.communicator.check()

    def give_to(self, user: object) -> None:
        """Be in use for as long as `user` lives."""
        self._user = weakref.ref(user)

    def memory(self, count: int, dtype: Any) -> Any:
        """Memory that all ranks have at the same offset, for whoever has the group. Collective, with the same count.

        What an earlier user had is taken if it is as long; a communicator gives nothing back before its end.
        """
        if self._memory is None or len(self._memory) < count:
            with self.used() as communicator:
                self._memory = communicator.empty(count, dtype)
        return self._memory

    @property
    def is_free(self) -> bool:
        """Whether nobody uses it."""
        return self._user() is None


existing: list[DeviceGroup] = []
"""All groups of this process's world."""

_watches: list[Watch] = []
_made: weakref.WeakKeyDictionary[ProcessSet, int] = weakref.WeakKeyDictionary()


def add(communicator: DeviceCommunicator, process_set: ProcessSet, place: Place) -> DeviceGroup:
    """A group of a new communicator. All ranks of the process set call this equally often."""
    number = _made.get(process_set, 0)
    _made[process_set] = number + 1
    group = DeviceGroup(communicator, process_set, number, place)
    existing.append(group)
    if not _watches:
        _watches.append(Watch(existing))
    return group


def drop(groups: Sequence[DeviceGroup], reason: str) -> None:
    """End groups together with all of their ranks, which do the same."""
    for group in groups:
        existing.remove(group)
        _end(group, reason, together=True)


def in_use(process_set: ProcessSet) -> bool:
    """Whether an optimizer of this process set has a group."""
    return any(group.process_set is process_set and not group.is_free for group in existing)


def end(reason: str, grace_seconds: float = GRACE_SECONDS) -> None:
    """End all groups (4), before this rank leaves its world. Never raises: nobody is left to use a result."""
    deadline = time.monotonic() + grace_seconds
    groups, existing[:] = list(existing), []
    _made.clear()
    while _watches:
        _watches.pop().end()
    meetings = [_meeting(group) if grace_seconds > 0 else None for group in groups]
    for group, meeting in zip(groups, meetings, strict=True):
        _end(group, reason, together=meeting is not None and _have_come(meeting, deadline))


def _end(group: DeviceGroup, reason: str, together: bool) -> None:
    group.ended = True
    try:
        with group.lock:
            if together:
                group.communicator.end()
            else:
                group.communicator.abandon(reason)
    except RingredError as error:
        environment.say(f"a group of devices ended with an error: {error}", "info", environment.read().settings)


def _meeting(group: DeviceGroup) -> Any:
    """An operation that is done when all ranks end this group; None where the process set is gone."""
    try:
        name = f"device group {group.number} ends"
        return world.engine().submit(group.process_set.group(), "barrier", name, [])
    except RingredError:
        return None


def _have_come(meeting: Any, deadline: float) -> bool:
    while not meeting.done():
        if time.monotonic() > deadline:
            return False
        time.sleep(1e-3)
    try:
        meeting.wait()
    except RingredError:
        return False
    return True
