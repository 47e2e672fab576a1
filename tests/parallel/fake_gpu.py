"""A device for torch, "fake", that behaves as a GPU does where it matters to whoever copies from it and to it.

Its memory is main memory, but torch and ringred do not know: its tensors can only be copied out. Streams are threads:

- What only writes to tensors of the device (copy_, add_, _foreach_copy_, ...) is enqueued on the current stream and
  done after a random delay, and so is a copy with non_blocking=True in either direction.
- Everything else waits for the current stream, and for that one only.
- Fresh memory, on the device and pinned, holds garbage.

So whoever forgets to wait for an event, on the host or between streams, reads garbage or old values. What it cannot
show: memory that an allocator of torch gives to somebody else while a copy still reads it; and what a hook raises, for
which torch ends the process where a device is made in Python.
"""

from __future__ import annotations

import contextlib
import functools
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as tree
from torch.utils import backend_registration

from ringred.devices import of_torch, recognition

NAME = "fake"
LONGEST_DELAY = 1e-3
PATIENCE_SECONDS = 30.0
GARBAGE = 0x7B

aten = torch.ops.aten


class Event:
    """As torch.cuda.Event."""

    def __init__(self, **_: Any) -> None:
        self._passed = threading.Event()
        self._recorded = False

    def record(self, stream: Stream | None = None) -> None:
        self._passed, self._recorded = threading.Event(), True
        (current_stream() if stream is None else stream).enqueue(self._passed.set, delay=False)

    def query(self) -> bool:
        return not self._recorded or self._passed.is_set()

    def synchronize(self) -> None:
        assert not self._recorded or self._passed.wait(PATIENCE_SECONDS), "the stream does not come to the event"

    def wait(self, stream: Stream | None = None) -> None:
        (current_stream() if stream is None else stream).wait_event(self)


class Stream:
    """As torch.cuda.Stream: a thread that does one thing after the other."""

    def __init__(self, device: Any = None, **_: Any) -> None:
        self.device = torch.device(NAME, 0)
        self._random = random.Random(torch.initial_seed())
        self._work: queue.SimpleQueue[tuple[Callable[[], object], bool]] = queue.SimpleQueue()
        self._error: BaseException | None = None
        threading.Thread(target=self._run, daemon=True).start()

    def enqueue(self, action: Callable[[], object], delay: bool = True) -> None:
        self._work.put((action, delay))

    def wait_event(self, event: Event) -> None:
        passed = event._passed if event._recorded else None  # what it stands for now
        if passed is not None:
            self.enqueue(lambda: passed.wait(PATIENCE_SECONDS), delay=False)

    def wait_stream(self, stream: Stream) -> None:
        event = Event()
        event.record(stream)
        self.wait_event(event)

    def synchronize(self) -> None:
        event = Event()
        event.record(self)
        event.synchronize()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while True:
            action, delay = self._work.get()
            if delay and self._random.random() < 0.5:
                time.sleep(self._random.uniform(0, LONGEST_DELAY))
            try:
                action()
            except BaseException as error:
                self._error = error


_chosen = threading.local()


@functools.cache
def _default_stream() -> Stream:
    return Stream()


def current_stream(device: Any = None) -> Stream:
    found: Stream | None = getattr(_chosen, "stream", None)
    return _default_stream() if found is None else found


class Module:
    """What torch.fake is, as torch.cuda."""

    Event, Stream = Event, Stream
    current_stream = staticmethod(current_stream)

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        pass

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]

    def synchronize(self, device: Any = None) -> None:
        raise AssertionError("nobody may synchronise the whole device")

    @contextlib.contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before = current_stream()
        _chosen.stream = stream
        try:
            yield
        finally:
            _chosen.stream = before


class FakeTensor(torch.Tensor):
    """A tensor of the device; `raw` is its memory."""

    raw: torch.Tensor

    @staticmethod
    def __new__(cls, raw: torch.Tensor) -> FakeTensor:
        tensor: FakeTensor = torch.Tensor._make_wrapper_subclass(
            cls,
            raw.size(),
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            layout=raw.layout,
            device=torch.device(NAME, 0),
        )
        tensor.raw = raw
        return tensor

    @property
    def data(self) -> torch.Tensor:
        return self.detach()

    @data.setter
    def data(self, value: torch.Tensor) -> None:
        torch.Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        if isinstance(value, FakeTensor):
            self.raw = value.raw

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        copy = self.detach().clone().requires_grad_(self.requires_grad)
        memo[id(self)] = result = nn.Parameter(copy, self.requires_grad) if isinstance(self, nn.Parameter) else copy
        return result

    def data_ptr(self) -> int:
        return self.raw.data_ptr()

    def record_stream(self, stream: Stream) -> None:  # type: ignore[override]
        """Nothing: `raw` lives as long as the copy that uses it."""

    def untyped_storage(self) -> Any:
        return self.raw.untyped_storage()

    def tolist(self) -> Any:
        return self.cpu().tolist()  # torch's own refuses all classes but its own

    def __repr__(self) -> str:  # type: ignore[override]
        return f"FakeTensor({self.raw!r})"

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is aten.detach.default:
            return cls(function(args[0].raw))
        if function is aten._conj.default:  # not lazily: torch would not see it on the wrapper
            function = aten.conj_physical.default
        return run(function, args, dict(kwargs or {}))


def run(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Do what torch asks for, now or later."""
    if function is aten._copy_from.default:
        function, args = aten.copy_.default, (args[1], args[0], *args[2:])
    owners: dict[int, FakeTensor] = {}

    def opened(value: Any) -> Any:
        if not isinstance(value, FakeTensor):
            return value
        owners[id(value.raw)] = value
        return value.raw

    on_device = any(isinstance(one, FakeTensor) for one in tree.tree_leaves((args, kwargs)))
    if function is aten._to_copy.default and kwargs.get("device") is not None:
        return _copied(args[0], kwargs)
    if kwargs.get("device") is not None:
        on_device = torch.device(kwargs["device"]).type == NAME
        kwargs["device"] = torch.device("cpu")
    raws, options = tree.tree_map(opened, (args, kwargs))
    if _only_writes(function, args):
        current_stream().enqueue(lambda: _without_grad(function, raws, options))
        return args[0] if function._schema.returns else None
    current_stream().synchronize()
    results = _without_grad(function, raws, options)
    if function in _FRESH:
        spoil(results)

    def closed(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if id(value) in owners:
            return owners[id(value)]
        return FakeTensor(value) if on_device else value

    return tree.tree_map(closed, results)


_FRESH = (
    aten.empty.memory_format,
    aten.empty_strided.default,
    aten.empty_like.default,
    aten.new_empty.default,
    aten.new_empty_strided.default,
)
_AT_ONCE = (
    aten.resize_.default,
    aten.set_.source_Tensor,
    aten.detach_.default,
    aten.t_.default,
    aten._amp_foreach_non_finite_check_and_unscale_.default,
    aten._amp_update_scale_.default,
)


def spoil(tensor: torch.Tensor) -> torch.Tensor:
    """Fill with garbage."""
    if tensor.untyped_storage().nbytes():
        torch.empty(0, dtype=torch.uint8, device="cpu").set_(tensor.untyped_storage()).fill_(GARBAGE)
    return tensor


def _only_writes(function: Any, args: Any) -> bool:
    """Whether it returns nothing but what it writes to, so that it can be done later."""
    if function is aten.copy_.default:
        on_device = isinstance(args[0], FakeTensor) and isinstance(args[1], FakeTensor)
        return on_device or (len(args) > 2 and bool(args[2]))
    if not function._schema.name.endswith("_") or function in _AT_ONCE:
        return False
    if torch.Tag.nondeterministic_seeded in function.tags:  # random numbers are drawn in the caller's order
        return False
    tensors = [one for one in tree.tree_leaves(args) if isinstance(one, torch.Tensor)]
    return all(isinstance(one, FakeTensor) for one in tensors)


def _copied(source: torch.Tensor, kwargs: dict[str, Any]) -> torch.Tensor:
    """A copy on another device or of another dtype."""
    target = torch.device(kwargs["device"])
    raw = source.raw if isinstance(source, FakeTensor) else source
    like = torch.empty_like(raw, dtype=kwargs.get("dtype") or raw.dtype, device="cpu")
    spoil(like)
    current_stream().enqueue(lambda: _without_grad(aten.copy_.default, (like, raw), {}))
    if not kwargs.get("non_blocking"):
        current_stream().synchronize()
    return FakeTensor(like) if target.type == NAME else like


def _without_grad(function: Any, args: Any, kwargs: Any) -> Any:
    with torch.inference_mode(False), torch.no_grad(), torch.utils._python_dispatch._disable_current_modes():
        return function(*args, **kwargs)


def _host_memory(library: Any, like: torch.Tensor) -> torch.Tensor:
    return spoil(torch.empty(like.shape, dtype=like.dtype, device="cpu"))


_registered = torch.library.Library("aten", "IMPL")


@functools.cache
def install() -> bool:
    """Make the device known to torch and to ringred, once for the process. False: this torch does not take it."""
    set_up = getattr(backend_registration, "_setup_privateuseone_for_python_backend", None)
    if set_up is None:
        return False
    set_up(NAME, Module())
    # arange, since torch would make an empty tensor and have it resized, which a wrapper does not notice.
    aranges = aten.arange.default, aten.arange.start, aten.arange.start_step
    for operator in (aten.empty.memory_format, aten.empty_strided.default, aten._copy_from.default, *aranges):
        name = operator.name().removeprefix("aten::")
        _registered.impl(name, lambda *args, of=operator, **kwargs: run(of, args, kwargs), "PrivateUse1")
    recognition.TORCH_KINDS.append(NAME)
    cuda = of_torch.TorchLibrary.host_memory

    def host_memory(library: Any, like: torch.Tensor) -> torch.Tensor:
        return _host_memory(library, like) if isinstance(library.module, Module) else cuda(library, like)

    of_torch.TorchLibrary.host_memory = host_memory  # type: ignore[method-assign]
    return True
