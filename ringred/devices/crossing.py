"""A crossing: arrays on GPUs go to pinned host memory, a collective works there, and its results go back.

    1. Each input is copied out, on the current stream of its device, with a mark behind the copy.
    2. The host waits for these marks; then the collective may read.
    3. After its end each output is copied in, on the current stream of the thread that asked for the result. Everybody
       who asks lets his current stream wait for the marks behind these copies.

Invariant: what the caller enqueued before the call is in what the others get; what he enqueues after he has the result
sees it. Arrays in main memory pass as they are, so a call, and a group of ranks, may have both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple, TypeVar

from ringred import environment
from ringred.devices.library import Mark, wait_for
from ringred.devices.recognition import Native, is_on_device, native
from ringred.errors import UsageError
from ringred.handles import Handle, JoinedHandle

Result = TypeVar("Result")

WHAT = "the copy of a collective's arrays to host memory"


class _Output(NamedTuple):
    """Where a result lies after the collective, and where it is to be."""

    host: Any
    target: Native


class Crossing:
    """The host's side of one call, while it lasts.

    Args:
        inputs: what the collective reads.
        outputs: what it writes, as many as inputs, or the same list. None: it makes new ones.
        reads: whether it reads the inputs on this rank.
        wire: "float16" or "bfloat16": the type in which floats are to cross.
    """

    def __init__(
        self, inputs: Sequence[Any], outputs: Sequence[Any] | None, reads: bool = True, wire: str = ""
    ) -> None:
        _say_once()
        sources = [native(array) for array in inputs]
        targets = sources if outputs is inputs else [None if one is None else native(one) for one in outputs or inputs]
        for target, output in zip(targets, outputs or (), strict=False):
            if target is not None:
                _check_writable(target, output)
        self.inputs: list[Any] = []
        self.outputs: list[Any] | None = None if outputs is None else []
        self._results: list[_Output] = []
        self._marks: list[Mark] = []  # behind what was copied last
        for index, source in enumerate(sources):
            host = inputs[index] if source is None else self._copied_out(source, reads, wire)
            self.inputs.append(host)
            if outputs is not None:
                self._place(host, source, outputs[index], targets[index])
        if outputs is inputs:
            self.outputs = self.inputs  # by which the core knows that it works in place

    def depart(self) -> None:
        """Return when the inputs are there (2)."""
        wait_for(self._marks, WHAT)
        self._marks = []

    def arrive(self) -> None:
        """Bring the outputs back (3)."""
        for host, target in self._results:
            target.library.copy_in(host, target.array)
            mark = target.library.mark(target.array)
            self._marks.append(mark)
            if target.follow is not None:
                target.follow(mark)
        self.inputs, self.outputs, self._results = [], None, []

    def precede(self) -> None:
        """Let what the calling thread enqueues from now on see the results."""
        for mark in self._marks:
            mark.precede()

    def _copied_out(self, source: Native, reads: bool, wire: str) -> Any:
        library, array = source.library, source.array
        if wire:
            narrow = library.narrowed(array, wire)
            array = array if narrow is None else narrow
        host = library.host_memory(array)
        if reads:
            library.copy_out(array, host)
            self._marks.append(library.mark(array))
        return host

    def _place(self, host: Any, source: Native | None, output: Any, target: Native | None) -> None:
        """Find the host memory for one output: that of its input, if it fits."""
        assert self.outputs is not None
        if target is None:
            self.outputs.append(output)
            return
        shared = source is not None and _are_alike(source, target)
        place = host if shared else target.library.host_memory(target.array)
        self.outputs.append(place)
        self._results.append(_Output(place, target))


def crossing_of(
    inputs: Sequence[Any], outputs: Sequence[Any] | None = None, reads: bool = True, wire: str = ""
) -> Crossing | None:
    """The crossing that a call needs, with its inputs on the host; None where they are in main memory already.

    Outputs are where the inputs are.
    """
    if not any(map(is_on_device, inputs)):
        return None
    crossing = Crossing(inputs, outputs, reads, wire)
    crossing.depart()
    return crossing


def crossed(
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    collective: Callable[[Sequence[Any], Sequence[Any]], object],
    reads: bool = True,
) -> None:
    """Call a collective with what stands for the arrays on the host, and bring its results back."""
    crossing = Crossing(inputs, outputs, reads)
    crossing.depart()
    assert crossing.outputs is not None, "there are outputs"
    collective(crossing.inputs, crossing.outputs)
    crossing.arrive()


class CrossingHandle(JoinedHandle[Result]):
    """The handle of a call whose results are brought back to a GPU by whoever asks first."""

    def __init__(self, inner: Handle[Any], crossing: Crossing, result: Result) -> None:
        self._crossing = crossing

        def arrive(_: list[Any]) -> Result:
            crossing.arrive()
            return result

        super().__init__(inner.name, [inner], arrive)

    def wait(self) -> Result:
        """Wait for the result; what the calling thread enqueues on its current stream from now on sees it."""
        result = super().wait()
        self._crossing.precede()
        return result

    __call__ = wait


class CrossingPlan:
    """A bound allreduce of an array on a GPU: the plan of its host memory, and the way there and back."""

    def __init__(self, array: Any, bind: Callable[[Any], Callable[[], Any]]) -> None:
        _say_once()
        found = native(array)
        assert found is not None, "crossing plans are for arrays on GPUs"
        self._array = array
        _check_writable(found, array)
        self._host = found.library.host_memory(found.array)
        self._plan = bind(self._host)

    def __call__(self) -> Any:
        """Reduce what the array holds, and return it."""
        found = native(self._array)
        assert found is not None, "an array stays where it is"
        found.library.copy_out(found.array, self._host)
        wait_for([found.library.mark(found.array)], WHAT)
        self._plan()
        found.library.copy_in(self._host, found.array)
        mark = found.library.mark(found.array)
        if found.follow is not None:
            found.follow(mark)
        wait_for([mark], "the copy of a plan's result to the device")  # the host memory is the next call's
        return self._array


def _are_alike(one: Native, other: Native) -> bool:
    same = one.library is other.library and one.array.dtype == other.array.dtype
    return same and tuple(one.array.shape) == tuple(other.array.shape)


def _check_writable(target: Native, output: Any) -> None:
    target.library.check_writable(target.array)
    told = getattr(output, "__cuda_array_interface__", None) if target.array is not output else None
    if target.array is not output and (told is None or told["data"][1]):
        raise UsageError(
            "An array that is reduced in place must be writable: this "
            f"{type(output).__module__}.{type(output).__qualname__} is read-only, or does not tell that it is not. "
            "Call the form without underscore, or copy it."
        )


@cache
def _say_once() -> None:
    environment.say(
        "arrays on GPUs go through host memory: one copy there and one back for each call (docs/gpu.md).",
        "info",
        environment.read().settings,
    )
