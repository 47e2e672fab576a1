"""The way of a bucket through host memory.

    1. A stream of its own copies the bucket to pinned memory; it waits for the packing only.
    2. A thread waits for the copy and hands the memory to the engine.
    3. `wait` has another stream copy the result to the device; both directions go on at the same time.

Invariant: pinned memory is written by one of 1, 2 and 3 at a time, and 1 of a round comes after 3 of the one before,
since the packing between them waits for that.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import Any

import torch

from ringred.devices.library import Mark, wait_for
from ringred.devices.of_torch import TorchLibrary
from ringred.devices.recognition import torch_library
from ringred.handles import OperationHandle
from ringred.torch.channel import Waitable
from ringred.torch.parcels import Carrier

WHAT = "the copy of a bucket of gradients to host memory"


class StagedWay:
    """The way of one bucket.

    Args:
        flat: its memory.
        carrier: how it travels.
    """

    def __init__(self, flat: torch.Tensor, carrier: Carrier) -> None:
        self.returned: Mark | None = None
        self._carrier = carrier
        self._flat = flat
        self._library: Any = torch_library(flat.device.type)
        self._host = self._library.host_memory(flat)

    def check_open(self) -> None:
        """It is torch's, and stays."""

    def start(self, packed: Any, name: str) -> StagedJourney:
        """Start 1 and 2."""
        arrived = self._copied(_streams(self._flat.device)[0], packed, out=True)
        return StagedJourney(self, _messenger().submit(_reduced, arrived, self._carrier, self._host, name))

    def bring_back(self) -> None:
        """Start 3, on its stream."""
        self.returned = self._copied(_streams(self._flat.device)[1], None, out=False)

    def _copied(self, stream: Any, after: Any, out: bool) -> Mark:
        """Copy the whole bucket on a stream; the mark is behind the copy."""
        library: TorchLibrary = self._library
        if after is not None:
            after.precede_on(stream)
        self._flat.record_stream(stream)  # torch's allocator gives it to nobody else before the copy has ended
        with library.module.stream(stream):
            if out:
                library.copy_out(self._flat, self._host)
            else:
                library.copy_in(self._host, self._flat)
            return library.mark(self._flat)


class StagedJourney:
    """One of its reductions."""

    def __init__(self, way: StagedWay, future: Future[Waitable]) -> None:
        self._way = way
        self._future = future

    def wait(self) -> None:
        """Return when the averages are on their way back; raise the error."""
        self._future.result().wait()
        self._way.bring_back()

    @property
    def spans(self) -> list[tuple[float, float]]:
        """After the end, when its operation began to move and when it ended, in seconds."""
        handle = self._future.result()
        return [handle.span] if isinstance(handle, OperationHandle) else []


def _reduced(arrived: Mark, carrier: Carrier, host: torch.Tensor, name: str) -> Waitable:
    wait_for([arrived], WHAT)
    return carrier.reduce([host], name)


@cache
def _streams(device: torch.device) -> tuple[Any, Any]:
    """The two streams of copies of a device: to the host, and back."""
    library: Any = torch_library(device.type)
    return library.module.Stream(device=device), library.module.Stream(device=device)


@cache
def _messenger() -> ThreadPoolExecutor:
    """One thread: copies of a device end in the order in which they were started."""
    return ThreadPoolExecutor(1, thread_name_prefix="ringred-crossing")
