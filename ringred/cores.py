"""How many cores this process may really use: the affinity mask and the cgroup's quota, not the machine's count."""

from __future__ import annotations

import os
from pathlib import Path


def usable_cores(process: Path = Path("/proc/self"), mounts: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the number of cores that the affinity mask and the cgroup's CPU quota leave, at least 1.

    ``process`` and ``mounts`` are where the kernel shows this process and its cgroups; tests put others there.
    """
    allowed = len(os.sched_getaffinity(0))
    quota = cgroup_quota(process, mounts)
    return allowed if quota is None else max(1, min(allowed, int(quota)))


def cgroup_quota(process: Path = Path("/proc/self"), mounts: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Return the smallest CPU quota, in cores, on the way from this process's cgroup to the root; None without one."""
    quotas = []
    for line in _read(process / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = mounts / controllers if controllers else mounts
        directory = root / path.lstrip("/")
        # In a container the path may name a place outside the mount, whose root is then this process's cgroup.
        directories = [directory, *directory.parents] if directory.is_dir() else [root]
        for level in directories:
            quotas.append(_quota_of(level))
            if level == root:
                break
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota_of(level: Path) -> float | None:
    unified = _read(level / "cpu.max").split()
    if len(unified) == 2 and unified[0] != "max":
        return int(unified[0]) / int(unified[1])
    quota, period = _read(level / "cpu.cfs_quota_us").strip(), _read(level / "cpu.cfs_period_us").strip()
    if quota and period and int(quota) > 0:
        return int(quota) / int(period)
    return None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
