"""Groups of devices: the communicators over which optimizers reduce gradients where they lie (RINGRED_GPU=direct).

An optimizer that makes buckets leases a group for each of its devices, together with all ranks of its process set:

    1. Every rank tells whether it wants to, what is against it, and which groups it has that nobody uses any more.
    2. If all want to and nothing is against it, all take the first group that is free on all of them after equally many
       calls, or make one. If making one fails on a rank, it fails on all of them. If calls of one would wait on some
       rank's host, which must not be while other ranks still wait for that rank, all end it.
    3. A group is free again when its optimizer has been collected, which no other rank needs to know: see 1.
    4. shutdown(), and the end of the process, end all groups: where all ranks come within GRACE_SECONDS their memory is
       freed; where not, calls in flight break off, and memory goes with the process.

Each optimizer has its own, so that the order of calls of one does not depend on another's. Kernels of several groups
run beside each other: they take so few blocks (csrc/cuda/sizes.h) that MOST_GROUPS fit on a device at the same time.

Invariant: all ranks of a process set lease the same groups, or none of them does and all know why.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from ringred import environment, world
from ringred.errors import RingredError
from ringred.ops import Op
from ringred.process_sets import ProcessSet

MOST_GROUPS = 4
"""In use at the same time: with 32 blocks of 512 threads each they take 32 of the 108 multiprocessors of an A100."""

GRACE_SECONDS = 5.0
"""For which a rank that ends waits for the others to end: what is in flight ends meanwhile."""

SETTING, STAGED, DIRECT = "RINGRED_GPU", "staged", "direct"


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


Maker = Callable[[ProcessSet, int], DeviceCommunicator]
"""Makes the communicator of a process set for the device of an ordinal. Collective; raises on all ranks or on none."""


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
        self.failed = False
        self.ended = False
        self._memory: Any = None
        self._user: Callable[[], object] = lambda: None

    def give_to(self, user: object) -> None:
        """Be in use for as long as `user` lives."""
        self._user = weakref.ref(user)

    def memory(self, count: int, dtype: Any) -> Any:
        """Memory that all ranks have at the same offset, for whoever has the group. Collective, with the same count.

        What an earlier user had is taken if it is as long; a communicator gives nothing back before its end.
        """
        if self._memory is None or len(self._memory) < count:
            self._memory = self.communicator.empty(count, dtype)
        return self._memory

    @property
    def is_free(self) -> bool:
        """Whether nobody uses it."""
        return self._user() is None


class _Told(NamedTuple):
    """What a rank tells the others (1)."""

    wants: bool
    against: str  # "": nothing
    free: list[dict[int, int]]  # for each place: calls by the numbers of groups that are free


def _cuda_communicator(process_set: ProcessSet, ordinal: int) -> DeviceCommunicator:
    from ringred import cuda

    return cuda.Communicator(process_set, ordinal)


def _against_cuda(process_set: ProcessSet, ordinal: int) -> str:
    from ringred import cuda

    return cuda.reason_against(process_set, ordinal)


makers: dict[str, tuple[Maker, Callable[[ProcessSet, int], str]]] = {"cuda": (_cuda_communicator, _against_cuda)}
"""By kind of device: what makes a communicator, and what tells why this rank cannot ("": it can). Tests add one."""

_groups: list[DeviceGroup] = []
_made: weakref.WeakKeyDictionary[ProcessSet, int] = weakref.WeakKeyDictionary()


def lease(
    process_set: ProcessSet, places: Sequence[Place], share: Callable[[Any, str], list[Any]]
) -> list[DeviceGroup] | str:
    """A group for each of these devices of this rank, or why there is none. Collective; all ranks have as many places.

    Args:
        process_set: the ranks.
        places: the devices, in the same order on all ranks.
        share: gathers a value of every rank, for a name.
    """
    settings = environment.read().settings
    wants = settings.get(SETTING, STAGED) == DIRECT
    against = _against(process_set, places) if wants else ""
    free = [{one.number: one.calls for one in _free_groups(process_set, place)} for place in places]
    told: list[_Told] = share(_Told(wants, against, free), "devices")
    refusal = _refusal(told, process_set)
    if refusal is not None:
        return refusal
    groups: list[DeviceGroup] = []
    try:
        for index, place in enumerate(places):
            groups.append(_take(process_set, place, [one.free[index] for one in told]))
            if groups[-1].communicator.waits_on_host:
                against = f"the host would have to wait in each call ({groups[-1].communicator.how})"
    except RingredError as error:
        against = str(error)
    failures: list[str] = [one for one in share(against, "device groups") if one]
    if not failures:
        return groups
    for group in groups:
        _groups.remove(group)
        _end(group, "another rank cannot use it", together=True)
    return failures[0]


def in_use(process_set: ProcessSet) -> bool:
    """Whether an optimizer of this process set has a group."""
    return any(group.process_set is process_set and not group.is_free for group in _groups)


def end(reason: str, grace_seconds: float = GRACE_SECONDS) -> None:
    """End all groups (4), before this rank leaves its world. Never raises: nobody is left to use a result."""
    deadline = time.monotonic() + grace_seconds
    groups, _groups[:] = list(_groups), []
    _made.clear()
    meetings = [_meeting(group) if grace_seconds > 0 else None for group in groups]
    for group, meeting in zip(groups, meetings, strict=True):
        _end(group, reason, together=meeting is not None and _have_come(meeting, deadline))


def _against(process_set: ProcessSet, places: Sequence[Place]) -> str:
    in_use = sum(not group.is_free for group in _groups)
    if in_use + len(places) > MOST_GROUPS:
        return (
            f"at most {MOST_GROUPS} optimizers and devices of a process are served at the same time: {in_use} are, and "
            f"{len(places)} would come to them"
        )
    for kind, ordinal in places:
        if kind not in makers:
            return f"ringred has no communicator for devices of the kind {kind}"
        if against := makers[kind][1](process_set, ordinal):
            return against
    return ""


def _refusal(told: Sequence[_Told], process_set: ProcessSet) -> str | None:
    """Why there are no groups; "" where nobody wants one, None where there may be."""
    if not any(one.wants for one in told):
        return ""
    without = [rank for rank, one in zip(process_set.ranks, told, strict=True) if not one.wants]
    if without:
        return f"{SETTING} is not {DIRECT} on ranks {without}; set it on all"
    pairs = zip(process_set.ranks, told, strict=True)
    return next((f"of rank {rank}, {one.against}" for rank, one in pairs if one.against), None)


def _free_groups(process_set: ProcessSet, place: Place) -> list[DeviceGroup]:
    return [
        group
        for group in _groups
        if group.process_set is process_set and group.place == place and group.is_free and not group.failed
    ]


def _take(process_set: ProcessSet, place: Place, free: Sequence[dict[int, int]]) -> DeviceGroup:
    """The first group that is free everywhere after equally many calls, or a new one (2)."""
    common = [number for number, calls in free[0].items() if all(one.get(number) == calls for one in free)]
    taken = {id(group): group for group in _free_groups(process_set, place) if group.number in common}
    if taken:
        group = min(taken.values(), key=lambda group: group.number)
        group.communicator.wait()  # what its last user left under way; others take its memory
        return group
    number = _made.get(process_set, 0)
    _made[process_set] = number + 1
    group = DeviceGroup(makers[place.kind][0](process_set, place.ordinal), process_set, number, place)
    _groups.append(group)
    return group


def _end(group: DeviceGroup, reason: str, together: bool) -> None:
    group.ended = True
    try:
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
