"""What Horovod's scripts ask about the build. ringred links no MPI and no vendor's library; it runs under MPI."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

from ringred import world


def mpi_built() -> bool:
    """Whether ranks can meet through MPI: mpi4py is installed."""
    return importlib.util.find_spec("mpi4py") is not None


def mpi_enabled() -> bool:
    """Whether ranks met through MPI.

    Raises:
        UsageError: init() was not called.
    """
    world.size()
    return _mpi() is not None


def mpi_threads_supported() -> bool:
    """Whether MPI may be called from several threads; ringred's own do not call it.

    Raises:
        UsageError: init() was not called.
    """
    world.size()
    mpi = _mpi()
    return mpi is not None and bool(mpi.Query_thread() == mpi.THREAD_MULTIPLE)


def gloo_built() -> bool:
    """False: ranks without MPI meet through torch's store, and talk through shared memory."""
    return False


def gloo_enabled() -> bool:
    """False, as gloo_built()."""
    return False


def nccl_built() -> int:
    """0: this version has no GPU path."""
    return 0


def ddl_built() -> bool:
    """Return False."""
    return False


def ccl_built() -> bool:
    """Return False."""
    return False


def cuda_built() -> bool:
    """False: this version has no GPU path."""
    return False


def rocm_built() -> bool:
    """False: this version has no GPU path."""
    return False


def is_homogeneous() -> bool:
    """Whether all nodes have the same number of ranks.

    Raises:
        UsageError: init() was not called.
    """
    return world.topology().is_homogeneous()


def _mpi() -> Any:
    """mpi4py's module, if this process has MPI running."""
    mpi = sys.modules.get("mpi4py.MPI")
    return mpi if mpi is not None and mpi.Is_initialized() and not mpi.Is_finalized() else None
