"""How all ranks of a world agree on their process sets.

Threads of a rank hand in requests (add a set, remove one). While there are any, one worker thread takes part in rounds:

1. Every rank tells the others what its threads ask for at this moment.
2. What all ranks ask for is carried out, in an order that all ranks know; so all have the same table of numbers.
3. If there is nothing of the kind, other threads may still come: the ranks wait a little and meet again. After
   PATIENCE_ROUNDS they give up, all in the same round, and all requests in it fail.

The worker is a thread of its own so that an interrupted caller does not leave the rounds, which would hang the others.
A number that was removed is free for the next round: by then all ranks have removed it.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ringred import _core, world
from ringred.errors import MismatchError, SystemError, UsageError
from ringred.messages import by_rank, exchange

PATIENCE_ROUNDS = 25
ROUND_SECONDS = 0.02  # together half a second, so that all ranks know of a mismatch within one
LARGEST_NUMBER = 255

Key = tuple[str, tuple[Any, ...]]
"""("add", the ranks of each set) or ("remove", (its number,)): comparable, and equal on ranks that ask for the same."""


class RankSet(Protocol):
    """What is registered: a ProcessSet."""

    @property
    def ranks(self) -> list[int]: ...

    @property
    def process_set_id(self) -> int | None: ...

    def registered(self, registrar: Registrar, number: int | None) -> None: ...


class Request:
    """What a thread waits for."""

    def __init__(self, sets: Sequence[RankSet]) -> None:
        self.sets = sets
        self.rounds = 0  # in which not all ranks asked for it
        self.error: Exception | None = None
        self._done = threading.Event()

    def end(self, error: Exception | None) -> None:
        self.error = error
        self._done.set()

    def wait(self) -> None:
        self._done.wait()
        if self.error is not None:
            raise self.error


class Registrar:
    """The process sets of one world."""

    def __init__(self, engine: _core.Engine) -> None:
        self.engine = engine
        self._lock = threading.Lock()
        self._sets: dict[int, RankSet] = {}  # by number; written by the worker only
        self._requests: dict[Key, Request] = {}
        self._worker: threading.Thread | None = None
        self._serial = world.CALLERS_SERIAL  # of the set that was connected last; the same on all ranks

    def is_current(self) -> bool:
        return world.is_initialized() and world.engine() is self.engine

    def numbers(self) -> list[int]:
        with self._lock:
            return sorted(self._sets)

    def add(self, sets: Sequence[RankSet]) -> None:
        """Register these sets, all or none. Collective over the world."""
        self._check_new(sets)
        self._ask(("add", tuple(tuple(one.ranks) for one in sets)), sets)

    def remove(self, number: int) -> None:
        """Remove the set of this number. Collective over the world."""
        self._ask(("remove", (number,)), ())

    def _check_new(self, sets: Sequence[RankSet]) -> None:
        known = [one.ranks for one in self._known()]
        for index, one in enumerate(sets):
            if one.process_set_id is not None or one.ranks in known or one.ranks in [two.ranks for two in sets[:index]]:
                raise UsageError(f"A process set is registered once: there is one of the ranks {one.ranks} already.")
            if one.ranks[-1] >= self.engine.size:
                raise UsageError(
                    f"A process set must lie within the world of {self.engine.size} ranks: it is {one.ranks}."
                )

    def _known(self) -> list[RankSet]:
        with self._lock:
            return list(self._sets.values())

    def _ask(self, key: Key, sets: Sequence[RankSet]) -> None:
        request = Request(sets)
        with self._lock:
            if key in self._requests:
                raise UsageError(f"One thread of a rank is enough: another calls {_described(key)} at this moment.")
            self._requests[key] = request
            if self._worker is None:
                self._worker = threading.Thread(target=self._work, name="ringred process sets", daemon=True)
                self._worker.start()
        request.wait()

    def _work(self) -> None:
        while True:
            with self._lock:
                asked = {key: request.rounds for key, request in self._requests.items()}
                if not asked:
                    self._worker = None
                    return
            try:
                self._round(asked)
            except Exception as error:  # of the engine: a peer is lost, the world has ended
                self._end(list(asked), error)

    def _round(self, asked: dict[Key, int]) -> None:
        all_asked: list[dict[Key, int]] = self._tell(asked)  # 1
        common = sorted(set.intersection(*(set(keys) for keys in all_asked)))
        for key in common:  # 2
            error: Exception | None = None
            try:
                self._carry_out(key, self._requests[key])
            except (UsageError, SystemError) as refused:
                error = refused
            self._end([key], error)
        if common:
            return
        if max(rounds for keys in all_asked for rounds in keys.values()) >= PATIENCE_ROUNDS:
            self._end(list(asked), _mismatch(all_asked))
            return
        for key in asked:  # 3
            self._requests[key].rounds += 1
        time.sleep(ROUND_SECONDS)

    def _carry_out(self, key: Key, request: Request) -> None:
        kind, values = key
        if kind == "remove":
            self._drop(values[0], self._sets[values[0]])
            return
        free = [number for number in range(1, LARGEST_NUMBER + 1) if number not in self._sets]
        if len(free) < len(values):
            raise UsageError(
                f"There are at most {LARGEST_NUMBER} process sets, and {len(self._sets)} are registered: "
                f"{_described(key)} is beyond that. Remove some with remove_process_set."
            )
        numbers = free[: len(values)]
        try:
            for number, one in zip(numbers, request.sets, strict=True):
                self._connect(number, one)
        except SystemError:
            for number, one in zip(numbers, request.sets, strict=True):
                with contextlib.suppress(Exception):  # of those that were not connected here
                    self._drop(number, one)
            raise

    def _connect(self, number: int, one: RankSet) -> None:
        ranks = one.ranks
        member = self.engine.rank in ranks
        offsets = self._together("prepare", ranks, lambda: self.engine.prepare_group(ranks) if member else 0)
        chosen = [offsets[rank] for rank in ranks]
        self._serial = serial = self._serial + 1
        self._together(
            "connect", ranks, lambda: self.engine.connect_group(number, ranks, chosen, serial) if member else None
        )
        with self._lock:
            self._sets[number] = one
        one.registered(self, number)

    def _drop(self, number: int, one: RankSet) -> None:
        with self._lock:
            self._sets.pop(number, None)
        one.registered(self, None)
        if self.engine.rank in one.ranks:
            self.engine.remove_group(number)

    def _together(self, what: str, ranks: list[int], action: Callable[[], Any]) -> list[Any]:
        """Do something on every rank and return all results; if it fails on one, raise on all."""
        mine: tuple[str | None, Any]
        try:
            mine = (None, action())
        except Exception as error:
            mine = (str(error), None)
        outcomes = self._tell(mine)
        for rank, (text, _) in enumerate(outcomes):
            if text is not None:
                raise SystemError(f"rank {rank} could not {what} the process set {ranks}, so no rank has it: {text}")
        return [result for _, result in outcomes]

    def _tell(self, value: Any) -> list[Any]:
        """The values of all ranks."""
        return [pickle.loads(part) for part in exchange(self.engine, 0, "process sets", pickle.dumps(value))]

    def _end(self, keys: Sequence[Key], error: Exception | None) -> None:
        with self._lock:
            requests = [self._requests.pop(key) for key in keys if key in self._requests]
        for request in requests:
            request.end(error)


_lock = threading.Lock()
_current: Registrar | None = None


def current() -> Registrar:
    """The registrar of the current world.

    Raises:
        UsageError: init() was not called.
    """
    global _current
    engine = world.engine()
    with _lock:
        if _current is None or _current.engine is not engine:
            _current = Registrar(engine)
        return _current


def reset() -> None:
    """Forget the sets of a world that has ended."""
    global _current
    with _lock:
        _current = None


def _mismatch(asked: list[dict[Key, int]]) -> MismatchError:
    wishes = [" and ".join(_described(key) for key in sorted(keys)) for keys in asked]
    said = by_rank(wishes, range(len(wishes)))
    return MismatchError(f"All ranks must add and remove the same process sets: it is {said}.")


def _described(key: Key) -> str:
    kind, values = key
    if kind == "remove":
        return f"remove_process_set of number {values[0]}"
    return "add_process_set of " + ", ".join(str(list(ranks)) for ranks in values)


def _forget_parents_registrar() -> None:
    global _lock, _current
    _lock, _current = threading.Lock(), None


os.register_at_fork(after_in_child=_forget_parents_registrar)
