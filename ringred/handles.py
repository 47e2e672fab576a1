"""Handles: what an asynchronous call returns, and what its result is had from.

Invariant: a handle's result is built at most once, by whoever asks first; its error is raised to everybody who asks.

An `OperationHandle` is one operation of the engine; a `JoinedHandle` is done when several handles are; the later
operations of a `ChainedHandle` depend on the results of its earlier ones.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

from ringred import _core, world
from ringred.arguments import shown
from ringred.callbacks import CallbackThread, run_action, thread_of
from ringred.errors import UsageError

Result = TypeVar("Result")
Other = TypeVar("Other")

Steps = Generator["Handle[Any]", Any, Result]
"""Yields handles, is sent their results (or has their errors thrown into it), and returns the result of all."""


class Handle(ABC, Generic[Result]):
    """What all kinds of handles have in common. Safe to use from several threads."""

    def __init__(self, finish: Callable[[], Result] | None, result: Result | None = None) -> None:
        self._lock = threading.Lock()
        self._finish = finish  # None once the result is there
        self._result = result
        self._error: Exception | None = None

    @property
    @abstractmethod
    def name(self) -> str:
        """The operation's name: the one it was given, or "unnamed.<n>"."""

    @abstractmethod
    def poll(self) -> bool:
        """Whether the operation has ended, well or not. Never waits and never raises."""

    def wait(self) -> Result:
        """Wait for the end of the operation, without the GIL, and return its result: the same object on every call.

        An interrupt (Ctrl-C) ends the wait, not the operation: wait may be called again.

        Raises:
            MismatchError: ranks disagree about the operation; raised on all of them, and the next operation works.
            PeerLostError, TimeoutError: a rank died, left or did not come.
        """
        self._await()
        if self._finish is None and self._error is None:
            return self._result  # type: ignore[return-value]  # None only where that is the result
        with self._lock:
            if self._finish is not None:
                self._build(self._finish)
            if self._error is not None:
                raise self._error.with_traceback(None)  # a traceback grows with each raise, and keeps its frames
            return self._result  # type: ignore[return-value]  # None only where that is the result

    __call__ = wait  # what Horovod's sparse_allreduce_async returns is called

    @abstractmethod
    def add_done_callback(self, callback: Callable[[Handle[Result]], object]) -> None:
        """Have `callback(handle)` called once when the operation has ended, also if it ended already.

        Callbacks run on ringred's callback thread, one after the other, so they should be short; one that waits for
        another operation holds up all others. After shutdown() they run at once, on the caller's thread. What a
        callback raises is printed to stderr.

        Raises:
            UsageError: it cannot be called.
        """

    def then(self, function: Callable[[Result], Other]) -> Handle[Other]:
        """A handle of the same operation whose result is `function(result)`, called once, by whoever waits first."""
        return JoinedHandle(self.name, [self], lambda results: function(results[0]))

    def __reduce_ex__(self, protocol: object) -> Any:
        raise UsageError(
            f"A handle belongs to an operation of this process: {self!r} cannot be pickled or copied. Send or copy the "
            "result, which wait() returns."
        )

    @abstractmethod
    def _await(self) -> None:
        """Wait for the end of all operations; raise the first error, on every call."""

    def _build(self, finish: Callable[[], Result]) -> None:
        try:
            self._result = finish()
        except Exception as error:
            self._error = error
        self._finish = None  # last, since wait() looks at it first; and with it goes what it holds: inputs, buffers

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.name!r}, {'done' if self.poll() else 'in flight'}>"


class OperationHandle(Handle[Result]):
    """One operation of the engine, and the function that builds the result after its good end; or, without one, the
    result itself, which the operation fills."""

    def __init__(
        self,
        operation: _core.Operation,
        finish: Callable[[], Result] | None,
        engine: _core.Engine,
        result: Result | None = None,
    ) -> None:
        super().__init__(finish, result)
        self._operation = operation
        self._engine = engine

    @property
    def name(self) -> str:
        return self._operation.name

    @property
    def span(self) -> tuple[float, float]:
        """After the end: when its data moved, from and to, in seconds of a monotonic clock."""
        return self._operation.span

    def poll(self) -> bool:
        return self._operation.done()

    def add_done_callback(self, callback: Callable[[Handle[Result]], object]) -> None:
        _check_callback(callback)
        thread_of(self._engine).when_done(self._operation, partial(callback, self))

    def _await(self) -> None:
        self._operation.wait()


class JoinedHandle(Handle[Result]):
    """Several handles as one, at least one. `combine` gets their results, in order, and returns the result of all.

    If some fail, wait() raises the error of the first of them, after the end of all.
    """

    def __init__(self, name: str, parts: Sequence[Handle[Any]], combine: Callable[[list[Any]], Result]) -> None:
        self._parts = list(parts)
        self._name = name
        super().__init__(lambda: combine([part.wait() for part in self._parts]))

    @property
    def name(self) -> str:
        return self._name

    def poll(self) -> bool:
        return all(part.poll() for part in self._parts)

    def add_done_callback(self, callback: Callable[[Handle[Result]], object]) -> None:
        _check_callback(callback)
        lock, left = threading.Lock(), len(self._parts)

        def part_done(_: Handle[Any]) -> None:
            nonlocal left
            with lock:
                left -= 1
                last = left == 0
            if last:
                callback(self)

        for part in self._parts:
            part.add_done_callback(part_done)

    def _await(self) -> None:
        errors = []
        for part in self._parts:
            try:
                part.wait()
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]


class ChainedHandle(Handle[Result]):
    """A generator that yields handles, driven forward whenever the one it waits for is done.

    The steps run on the callback thread, so every rank makes progress whatever its other threads wait for. Only the
    first step runs at once, on the caller's thread: what it raises, the constructor raises.
    """

    def __init__(self, steps: Steps[Result], engine: _core.Engine | None = None) -> None:
        self._steps = steps
        self._thread: CallbackThread = thread_of(world.engine() if engine is None else engine)
        self._ended = threading.Event()
        self._callbacks: list[Callable[[Handle[Result]], object]] = []
        self._first = next(steps)
        self._pending: Handle[Any] | None = self._first  # None once the last step is done
        super().__init__(self._outcome)
        self._value: Result | None = None
        self._failure: BaseException | None = None
        self._first.add_done_callback(self._step)

    @property
    def name(self) -> str:
        return self._first.name

    def poll(self) -> bool:
        return self._ended.is_set()

    def add_done_callback(self, callback: Callable[[Handle[Result]], object]) -> None:
        _check_callback(callback)
        with self._lock:
            if not self._ended.is_set():
                self._callbacks.append(callback)
                return
        self._first.add_done_callback(lambda _: callback(self))  # done long ago: this leads to the callback thread

    def _step(self, done: Handle[Any]) -> None:
        """Run the steps that can run, on the callback thread. Called once for each handle that the steps yield."""
        if done is not self._pending:
            return  # somebody waited on this very thread, and has driven the steps
        try:
            try:
                value = done.wait()
            except Exception as error:
                self._pending = self._steps.throw(error)
            else:
                self._pending = self._steps.send(value)
        except StopIteration as end:
            self._end(end.value, None)
        except BaseException as error:  # whatever it is: those who wait must hear of it
            self._end(None, error)
        else:
            self._pending.add_done_callback(self._step)

    def _end(self, value: Result | None, failure: BaseException | None) -> None:
        self._value, self._failure, self._pending = value, failure, None
        with self._lock:
            self._ended.set()
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            run_action(partial(callback, self), self.name)

    def _await(self) -> None:
        while self._thread.is_current() and (pending := self._pending) is not None:
            self._step(pending)  # a callback waits: nobody else would run the steps
        self._ended.wait()

    def _outcome(self) -> Result:
        if self._failure is not None:
            raise self._failure
        return self._value  # type: ignore[return-value]  # None only where that is the result


def _check_callback(callback: Any) -> None:
    if not callable(callback):
        raise UsageError(f"add_done_callback takes a function of the handle: this is {shown(callback)}.")


def poll(handle: Handle[Any]) -> bool:
    """Whether the operation of this handle has ended, well or not.

    Raises:
        UsageError: this is no handle of ringred.
    """
    return _checked(handle).poll()


def synchronize(handle: Handle[Result]) -> Result:
    """Wait for the operation of this handle and return its result; may be called again. See Handle.wait.

    Raises:
        UsageError: this is no handle of ringred. MismatchError, PeerLostError, TimeoutError: the operation failed.
    """
    return _checked(handle).wait()


def _checked(handle: Handle[Result]) -> Handle[Result]:
    if isinstance(handle, Handle):
        return handle
    raise UsageError(
        "poll and synchronize take what an asynchronous call of ringred returned: this is a "
        f"{type(handle).__module__}.{type(handle).__qualname__}: {handle!r}."
    )
