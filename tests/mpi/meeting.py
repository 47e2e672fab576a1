"""A bootstrap through files, for ranks that a test starts: no launcher, no torch, no MPI. Imported by those only."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ringred import bootstrap

PATIENCE_SECONDS = 10.0


class FileBootstrap:
    """Every value is a file, which appears as a whole by renaming."""

    name = "file"

    def __init__(self, generation: int) -> None:
        self.rank = int(os.environ["MEETING_RANK"])
        self.size = int(os.environ["MEETING_SIZE"])
        self._directory = Path(os.environ["MEETING_DIRECTORY"])
        self._generation = generation
        self._round = 0

    def allgather(self, value: Any) -> list[Any]:
        self._round += 1
        paths = [self._directory / f"{self._generation}-{self._round}-{rank}" for rank in range(self.size)]
        draft = paths[self.rank].with_suffix(".draft")
        draft.write_bytes(pickle.dumps(value))
        draft.rename(paths[self.rank])
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not all(path.exists() for path in paths):
            assert time.monotonic() < deadline, f"rank {self.rank} waited for its peers in round {self._round}"
            time.sleep(0.001)
        return [pickle.loads(path.read_bytes()) for path in paths]


def install() -> None:
    """Let rr.init() meet through files."""

    def start(
        environment: Mapping[str, str], generation: int, timeout_seconds: float, comm: Any = None
    ) -> FileBootstrap:
        return FileBootstrap(generation)

    bootstrap.start = start  # type: ignore[assignment]


def everybody(occasion: int = 1) -> list[int]:
    """Wait for all ranks, outside of ringred, and return the numbers of their processes by rank. Each occasion once."""
    return FileBootstrap(-occasion).allgather(os.getpid())


def await_sleep(process: int) -> None:
    """Return when a process has been seen asleep ten times in a row: it waits in a call that does not return."""
    seen = 0
    while seen < 10:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        seen = seen + 1 if state == "S" else 0
        time.sleep(0.005)


def expect(kind: type[BaseException], call: Callable[[], Any], *words: str, seconds: float) -> None:
    """Fail unless the call ends with such an error, in time, with all these words in its text."""
    start = time.monotonic()
    try:
        call()
    except kind as error:
        text, taken = str(error), time.monotonic() - start
    else:
        raise AssertionError(f"the call returned, where {kind.__name__} was expected")
    assert all(word in text for word in words), f"{words} are not all in: {text}"
    assert taken < seconds, f"{kind.__name__} came after {taken:.2f} s"


def again_and_again(call: Callable[[], Any]) -> None:
    """Call until there is an error: a rank that announced itself before it died is missed in the next call only."""
    while True:
        call()
