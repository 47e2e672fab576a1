"""Clears up what an MPI leaves in /dev/shm when its ranks are killed. (ringred itself leaves nothing: it uses memfd.)

Removed is only what cannot be anybody's: made by this user since the job started, and mapped by no process.
As a program, ``leftovers.py SINCE DIRECTORY``, it stands in for a launcher that was killed: it waits until the ranks
are gone and removes the launcher's directory too. Standard library only.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

SEGMENT_NAMES = ("mpich_shm_*", "Intel_MPI_*", "impi-shm-*", "psm*_shm*", "vader_segment.*", "sm_segment.*")
ENDING_SECONDS = 2.0  # mpirun and the wrappers end their ranks within this
YOUNG_SECONDS = 0.5  # another job may have made a segment that it is only about to map


def remove_left_behind(since: float, directory: Path = Path("/dev/shm"), processes: Path = Path("/proc")) -> list[Path]:
    """Remove this user's unmapped MPI segments that are newer than ``since`` (seconds since the epoch); return them."""
    suspects = {path: path.stat() for name in SEGMENT_NAMES for path in directory.glob(name) if path.is_file()}
    mine = [path for path, facts in suspects.items() if facts.st_uid == os.geteuid() and facts.st_mtime >= since]
    if not mine:
        return []
    youngest = max(suspects[path].st_mtime for path in mine)
    time.sleep(max(0.0, min(YOUNG_SECONDS, youngest + YOUNG_SECONDS - time.time())))
    mapped = set(mapped_files(processes))
    removed = [path for path in mine if str(path) not in mapped]
    for path in removed:
        path.unlink(missing_ok=True)
    return removed


def mapped_files(processes: Path = Path("/proc")) -> Iterator[str]:
    """Yield the names of all files that processes have mapped now, as far as this user may see them."""
    for maps in processes.glob("[0-9]*/maps"):
        try:
            lines = maps.read_text(errors="replace").splitlines()
        except OSError:  # ended meanwhile, or another user's: that cannot map our private files
            continue
        for line in lines:
            fields = line.split(maxsplit=5)
            if len(fields) == 6:
                yield fields[5]


def main(arguments: list[str]) -> int:
    """Clear up after a killed launcher."""
    time.sleep(ENDING_SECONDS)
    shutil.rmtree(arguments[1], ignore_errors=True)
    remove_left_behind(float(arguments[0]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
