"""The compiled part for GPUs (csrc/python/cuda). Addresses, streams and ordinals are numbers."""

from collections.abc import Callable, Sequence

def host_bytes(size: int) -> int: ...
def check_device(device: int) -> None: ...

class Communicator:
    def __init__(
        self,
        device: int,
        rank: int,
        gather: Callable[[bytes], list[bytes]],
        host_blocks: Sequence[int],
        lifelines: Sequence[int],
        cores_suffice: bool,
        environment: dict[str, str],
    ) -> None: ...
    @property
    def is_direct(self) -> bool: ...
    @property
    def waits_on_host(self) -> bool: ...
    @property
    def sentence(self) -> str: ...
    def allreduce(
        self,
        stream: int,
        input: int,
        output: int,
        count: int,
        dtype: str,
        op: int,
        prescale: float,
        postscale: float,
        algorithm: str | None = None,
        tag: str = "",
    ) -> None: ...
    def allocate(self, bytes: int) -> int: ...
    def wait(self) -> None: ...
    def check(self) -> None: ...
    def end(self) -> None: ...
    def abandon(self, reason: str) -> None: ...
