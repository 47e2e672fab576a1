"""What the ranks of ``ringred run`` left behind, and who of them failed first.

One record a rank, written by rank_wrapper.py when the rank's command ends. A failure that merely follows from another
one is not the first: a rank that lost its peer (PeerLostError), or one that was told to stop.
"""

from __future__ import annotations

import json
import re
import signal as signals
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

TRACEBACK = "Traceback (most recent call last):"
FATAL = "Fatal Python error: "
CHAINS = ("During handling of the above exception", "The above exception was the direct cause")
SHOWN_LINES = 80
SHOWN_LINES_WITHOUT_TRACEBACK = 20


@dataclass(frozen=True)
class Record:
    """How one rank's command ended. ``time`` is seconds since the epoch, ``stopped_by`` a signal sent from outside."""

    rank: int
    pid: int
    time: float
    exit_code: int
    signal: str
    stopped_by: str
    stderr_tail: str

    @property
    def failed(self) -> bool:
        """True unless the command ended with exit code 0."""
        return self.exit_code != 0 or self.signal != ""

    @property
    def signal_number(self) -> int:
        """The number behind ``signal``; 0 without one."""
        if self.signal in signals.Signals.__members__:
            return int(signals.Signals[self.signal])
        return int(self.signal.removeprefix("SIG") or 0)  # a real-time signal has no name

    @property
    def is_consequence(self) -> bool:
        """True if the last exception, or one that it is chained to, says that another rank was lost."""
        lines = last_traceback(self.stderr_tail).splitlines()
        return any(re.match(r"(\w+\.)*PeerLostError\b", line) for line in lines)

    @property
    def how(self) -> str:
        """How it ended, in words."""
        if self.signal == "SIGKILL":
            return "killed by SIGKILL (if nobody did that by hand: was memory short? the kernel's log says so)"
        return f"killed by {self.signal}" if self.signal else f"exit code {self.exit_code}"


def read_records(directory: Path) -> list[Record]:
    """Return the records of all ranks that have ended so far, by rank."""
    records = []
    for path in directory.glob("rank-*.json"):
        records.append(Record(**json.loads(path.read_text(encoding="utf-8"))))
    return sorted(records, key=lambda record: record.rank)


def first_failure(records: Iterable[Record]) -> Record | None:
    """Return the failure that explains the others: the earliest that was not told to stop and is no consequence."""
    failures = [record for record in records if record.failed]
    return min(failures, key=lambda r: (r.stopped_by != "", r.is_consequence, r.time, r.rank), default=None)


def last_traceback(text: str) -> str:
    """Return the last traceback in ``text`` with the ones it is chained to; without one, the last lines.

    What faulthandler writes on a fatal signal counts as a traceback.
    """
    lines = text.rstrip().splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith((TRACEBACK, FATAL))]
    if not starts:
        return "\n".join(lines[-SHOWN_LINES_WITHOUT_TRACEBACK:])
    start = starts.pop()
    while starts and any(line.startswith(CHAINS) for line in lines[starts[-1] : start]):
        start = starts.pop()
    shown = lines[start:]
    if len(shown) > SHOWN_LINES:
        shown = [*shown[: SHOWN_LINES // 4], "  ...", *shown[-3 * SHOWN_LINES // 4 :]]
    return "\n".join(shown)
