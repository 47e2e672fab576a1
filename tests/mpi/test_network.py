"""Nodes that MPI connects, with each MPI that PyPI has: the same compiled module, and the library of that MPI alone.

The MPIs are installed beside this environment's own, into build/mpi, the first time they are needed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from jobs import Job

from ringred.cli import mpi_launcher

ROOT = Path(__file__).parents[2]
INSTALL_SECONDS = 100

# Two ranks on each of two nodes; or, by the argument, with MPI initialised for fewer threads.
PROGRAM = """
import os
import sys

import mpi4py

mpi4py.rc.thread_level = sys.argv[1]
from mpi4py import MPI

import numpy as np

os.environ["RINGRED_LINK"] = "mpi"
os.environ["RINGRED_NODE"] = str(MPI.COMM_WORLD.rank // 2)
import ringred as rr
from ringred import world

try:
    rr.init()
except rr.UsageError as error:
    print(f"refused: {error}", flush=True)
    sys.exit(0)
rank, size = rr.rank(), rr.size()
assert (rr.local_size(), rr.cross_size()) == (2, 2)
for dtype in ("float32", "int8", "float16"):
    for count in (1, 700, 5000, 300_001):
        mine = (np.arange(count) % 5 + rank).astype(dtype)
        expected = ((np.arange(count) % 5) * size + 6).astype(dtype)
        assert np.array_equal(rr.allreduce(mine, rr.Sum), expected)
        handles = [rr.allreduce_async(mine, rr.Sum, name=f"{i}") for i in range(3)]
        assert all(np.array_equal(handle.wait(), expected) for handle in handles)
for schedule in ("circulant", "double_tree", "auto"):
    world.communicator().force(schedule)
    for count in (700, 300_001):
        mine = (np.arange(count) % 5 + rank).astype("float32")
        assert np.array_equal(rr.allreduce(mine, rr.Sum), (np.arange(count) % 5) * size + 6)
assert rr.allgather(np.full((rank + 1, 2), rank))[:, 0].tolist() == [0, 1, 1, 2, 2, 2, 3, 3, 3, 3]
rr.shutdown()
print(f"works with {MPI.Get_library_version()}", flush=True)
"""


def prefix_of(package: str) -> Path:
    """Where an MPI is installed: a prefix with bin and lib."""
    prefix = ROOT / "build" / "mpi" / re.split("[=<>]", package)[0]
    if not (prefix / "bin").exists():
        words = [sys.executable, "-m", "pip", "install", "-q", "--no-warn-script-location", "--prefix", str(prefix)]
        ended = subprocess.run([*words, package], capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False)
        if ended.returncode != 0:
            pytest.skip(f"pip could not install {package}: {ended.stderr.strip().splitlines()[-1:]}")
    return prefix


def run(prefix: Path, flavour: str, level: str) -> str:
    """What four ranks print."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("OMPI_", "PMIX_", "PMI"))},
        "PATH": f"{prefix / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "LD_LIBRARY_PATH": str(prefix / "lib"),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "FI_PROVIDER": "tcp",  # of Intel MPI: what every machine has
        "I_MPI_PIN": "off",
        "I_MPI_THREAD_YIELD": "3",
        "OMPI_MCA_mpi_yield_when_idle": "true",
    }
    if flavour != mpi_launcher.OPEN_MPI:
        environment["MPI4PY_LIBMPI"] = str(prefix / "lib" / "libmpi.so.12")
    options = ["--allow-run-as-root", "--oversubscribe", "--bind-to", "none"]
    words = [str(prefix / "bin" / "mpirun"), *(options if flavour == mpi_launcher.OPEN_MPI else []), "-np", "4"]
    with Job() as job:
        job.start([*words, sys.executable, "-P", "-c", PROGRAM, level], environment)
        (ended,) = job.wait(60)
    assert ended.status == 0, ended.text
    return ended.text


@pytest.fixture
def own() -> Path:
    """The Open MPI of this environment."""
    launcher = mpi_launcher.find_launcher(mpi_launcher.loaded_library())
    if mpi_launcher.loaded_library().flavour != mpi_launcher.OPEN_MPI:
        pytest.skip("this environment's MPI is not Open MPI")
    return launcher.parent.parent


def test_open_mpi(own: Path) -> None:
    assert run(own, mpi_launcher.OPEN_MPI, "multiple").count("works with Open MPI") == 4


@pytest.mark.parametrize(("package", "name"), [("mpich", "MPICH"), ("impi-rt==2021.18.1", "Intel(R) MPI")])
def test_other_mpis(package: str, name: str) -> None:
    assert run(prefix_of(package), name, "multiple").count(f"works with {name}") == 4


def test_one_thread_at_a_time_is_enough_but_said(own: Path) -> None:
    text = run(own, mpi_launcher.OPEN_MPI, "serialized")
    assert text.count("works with Open MPI") == 4
    assert text.count("MPI allows one thread at a time (MPI_THREAD_SERIALIZED)") == 1


def test_one_thread_alone_is_refused(own: Path) -> None:
    text = run(own, mpi_launcher.OPEN_MPI, "funneled")
    assert text.count("MPI must be initialised with MPI_THREAD_MULTIPLE: it is with MPI_THREAD_FUNNELED") >= 1
    assert text.count("refused: ") == 4
