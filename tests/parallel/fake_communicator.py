"""A communicator for the device of fake_gpu.py, in place of ringred.cuda.Communicator.

A call is enqueued on the current stream, whose thread does it later: it compares with all ranks what they have called,
then reduces the memory as it is by then, through the engine. So a reduction that does not wait for the packing finds
garbage or old values, and whoever does not wait for its mark reads what is not reduced yet. Ranks that differ in a call
get MismatchError from check() and wait(), and nan in their memory.
"""

from __future__ import annotations

import itertools
import threading
import time
from typing import Any

import fake_gpu
import torch

import ringred as rr
from ringred.devices import leases
from ringred.errors import MismatchError, RingredError

_numbers = itertools.count()
LONGEST_CALL = 5e-3


class FakeCommunicator:
    """See ringred.cuda.Communicator."""

    is_direct = True
    waits_on_host = False
    how = "Tensors go from one made-up device to the other."

    def __init__(self, process_set: rr.ProcessSet, device: int) -> None:
        assert device == 0
        made = rr.allgather_object(next(_numbers), name="fake communicator", process_set=process_set)
        self._name = "fake communicator " + "-".join(map(str, made))
        self._process_set = process_set
        self._last = threading.Event()
        self._last.set()
        self._error: RingredError | None = None
        self._calls = itertools.count()
        self.ended = ""

    def allreduce_(self, array: Any, op: rr.Op, **options: Any) -> Any:
        assert not self.ended
        self.check()
        call, over = next(self._calls), threading.Event()
        self._last = over
        raw = array.raw
        said = f"{tuple(raw.shape)}, {raw.dtype}, {op.name}, {options}"
        fake_gpu.current_stream().enqueue(lambda: self._run(call, raw, op, options, said, over))
        return array

    def empty(self, shape: int, dtype: torch.dtype) -> torch.Tensor:
        shapes = rr.allgather_object(shape, name=f"{self._name}, memory", process_set=self._process_set)
        assert set(shapes) == {shape}
        return torch.empty(shape, dtype=dtype, device=fake_gpu.NAME)

    def check(self) -> None:
        if self._error is not None:
            raise self._error

    def wait(self) -> None:
        assert self._last.wait(fake_gpu.PATIENCE_SECONDS), "a call does not end"
        self.check()

    def end(self) -> None:
        if self._error is None:  # else other ranks may have called less often
            self._last.wait(fake_gpu.PATIENCE_SECONDS)
        self.ended = "together"

    def abandon(self, reason: str) -> None:
        self.ended = reason

    def _run(
        self, call: int, raw: torch.Tensor, op: rr.Op, options: dict[str, Any], said: str, over: threading.Event
    ) -> None:
        try:
            name = f"{self._name}, call {call}"
            everybody = rr.allgather_object(said, name=f"{name}, said", process_set=self._process_set)
            if len(set(everybody)) > 1:
                raise MismatchError(f"call {call} differs: {everybody}")
            time.sleep(LONGEST_CALL * (call % 3) / 2)
            factors = {key: options[key] for key in ("prescale_factor", "postscale_factor")}
            with torch.no_grad():
                rr.allreduce_async_(raw.detach(), op, name=name, process_set=self._process_set, **factors).wait()
        except RingredError as error:
            self._error = self._error or error
            raw.fill_(float("nan"))
        finally:
            over.set()


def install() -> None:
    """Let optimizers make these for the fake device."""
    leases.makers[fake_gpu.NAME] = (FakeCommunicator, lambda process_set, ordinal: "")
