"""Views of shared memory that are read-only outside of step(): what a stray write says, and how long a view lives."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import ringred as rr
from ringred import _core, world

WORDS = "ringred: rank 0: something wrote to the parameter 'layers.3.weight' outside of step()."

START = """
import faulthandler, resource, sys
import numpy as np
import ringred as rr
from ringred import _core, world
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
rr.init()
owner = rr.empty(1_000_000, np.float32)
owner[...] = 1
def guard():
    view = _core.GuardedView(world.engine(), 0, world.engine().offset_of(owner), owner.nbytes)
    view.name_ranges([(0, 4, "bias"), (4, owner.nbytes, "layers.3.weight")])
    return view
"""


@pytest.fixture(autouse=True)
def initialised() -> Iterator[None]:
    rr.init()
    yield
    rr.shutdown()


def error_of(program: str) -> str:
    """What a program writes to stderr that ends by SIGSEGV."""
    command = [sys.executable, "-W", "error", "-c", START + textwrap.dedent(program)]
    done = subprocess.run(command, cwd="/", env=os.environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGSEGV, done.stderr
    assert done.stdout == ""
    return done.stderr


def shared(count: int) -> tuple[np.ndarray, _core.GuardedView]:
    owner = rr.empty(count, np.float32)
    return owner, _core.GuardedView(world.engine(), 0, world.engine().offset_of(owner), owner.nbytes)


STRAY = {
    "numpy": "np.frombuffer(view, np.float32)[5] = 2",
    "torch": """
        import torch
        torch.from_numpy(np.frombuffer(view, np.float32))[1:].add_(1)
    """,
    "an optimizer": """
        import torch
        parameter = torch.nn.Parameter(torch.from_numpy(np.frombuffer(view, np.float32))[1:])
        parameter.grad = torch.ones_like(parameter)
        torch.optim.SGD([parameter], 0.1).step()
    """,
    "a thread": """
        import threading
        thread = threading.Thread(target=lambda: np.frombuffer(view, np.float32)[1:].fill(2))
        thread.start()
        thread.join()
    """,
}


@pytest.mark.parametrize("kind", list(STRAY))
def test_a_stray_write_is_named_before_the_stacks(kind: str) -> None:
    if "torch" in STRAY[kind]:
        pytest.importorskip("torch", reason="needs torch")
    error = error_of("view = guard()\n" + textwrap.dedent(STRAY[kind]))
    assert error.startswith(WORDS) and error.count("ringred: ") == 1
    assert "share_parameters=False.\nFatal Python error: Segmentation fault" in error
    assert error.count('File "<string>", line') >= 1 and error.count("Fatal Python error") == 1


@pytest.mark.parametrize("kind", list(STRAY))
def test_a_stray_write_is_named_after_the_stacks_of_a_faulthandler_that_came_later(kind: str) -> None:
    if "torch" in STRAY[kind]:
        pytest.importorskip("torch", reason="needs torch")
    enabled_later = "faulthandler.disable()\nview = guard()\nfaulthandler.enable()\nview.protect()\n"
    error = error_of(enabled_later + textwrap.dedent(STRAY[kind]))
    assert error.count(WORDS) == 1 and "Fatal Python error" in error
    # torch's threads fault at once: one may speak while another writes the stacks, and several may write them
    if "torch" not in STRAY[kind]:
        assert error.count("Fatal Python error") == 1
        assert error.startswith("Fatal Python error") and error.index('File "<string>", line') < error.index(WORDS)


def test_without_faulthandler_and_after_it_was_disabled() -> None:
    stray = "np.frombuffer(view, np.float32)[5] = 2"
    assert error_of("faulthandler.disable()\nview = guard()\n" + stray).startswith(WORDS)
    assert error_of("view = guard()\nfaulthandler.disable()\nview.protect()\n" + stray).startswith(WORDS)
    error = error_of("view = guard()\nfaulthandler.disable()\nfaulthandler.enable()\nview.protect()\n" + stray)
    assert error.startswith(WORDS) and error.count("Fatal Python error") == 1


@pytest.mark.parametrize("later", [False, True], ids=["faulthandler first", "faulthandler later"])
def test_other_faults_are_as_they_were(later: bool) -> None:
    order = "faulthandler.disable()\nview = guard()\nfaulthandler.enable()\n" if later else "view = guard()\n"
    for fault in (
        "import ctypes; ctypes.string_at(0)",
        "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
        "import signal; signal.raise_signal(signal.SIGSEGV)",
    ):
        error = error_of(order + fault)
        assert error.startswith("Fatal Python error: Segmentation fault")
        assert error.count("Fatal Python error") == 1 and "ringred: " not in error


def test_a_stray_write_after_the_world_and_in_a_forked_child() -> None:
    write = "array = np.frombuffer(view, np.float32)\n"
    assert error_of("view = guard()\nrr.shutdown()\n" + write + "assert array[5] == 1; array[5] = 2").startswith(WORDS)
    child = """
        import os, signal
        if os.fork() == 0:
            array[5] = 2
        code = os.waitstatus_to_exitcode(os.wait()[1])
        os.kill(os.getpid(), -code)
    """
    assert error_of("view = guard()\n" + write + textwrap.dedent(child)).startswith(WORDS)


def test_reads_see_writes_of_the_owner() -> None:
    owner, view = shared(1000)
    array = np.frombuffer(view, np.float32)
    assert array.flags.writeable
    owner[...] = np.arange(1000)
    np.testing.assert_array_equal(array, owner)


def test_torch_takes_it_without_a_warning() -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    owner, view = shared(1000)
    tensor = torch.frombuffer(view, dtype=torch.float32)
    other = torch.from_numpy(np.frombuffer(view, np.float32))
    owner[...] = 3
    assert tensor.sum() == other.sum() == 3000


def test_an_unprotected_view_is_written_to() -> None:
    owner, view = shared(1000)
    array = np.frombuffer(view, np.float32)
    for value in (1, 2):
        view.unprotect()
        array[...] = value
        view.protect()
        assert (owner == value).all()


def test_a_system_call_that_writes_fails(tmp_path: Path) -> None:
    _, view = shared(1000)
    (tmp_path / "file").write_bytes(b"x" * 4000)
    with (tmp_path / "file").open("rb", buffering=0) as file, pytest.raises(OSError, match="Bad address"):
        file.readinto(view)


def mappings() -> int:
    return Path("/proc/self/maps").read_text().count("ringred")


def test_arrays_keep_the_view_and_nothing_else_does() -> None:
    gc.collect()
    before = mappings()
    owner, view = shared(1000)
    owner[...] = 7
    array = np.frombuffer(view, np.float32)[10:]
    assert mappings() == before + 1
    del view
    gc.collect()
    assert (array == 7).all() and mappings() == before + 1
    del array
    gc.collect()
    assert mappings() == before


def test_the_view_outlives_the_world() -> None:
    owner, view = shared(1000)
    owner[...] = 7
    rr.shutdown()
    assert (np.frombuffer(view, np.float32) == 7).all()
    view.unprotect()
    np.frombuffer(view, np.float32)[0] = 8
    assert owner[0] == 8


def test_what_is_no_part_of_a_segment_is_refused() -> None:
    engine = world.engine()
    for rank in (-1, 1):
        with pytest.raises(rr.UsageError, match=f"of a rank, 0 to 0: it is {rank}"):
            _core.GuardedView(engine, rank, 0, 4096)
    with pytest.raises(rr.UsageError, match="lies in the segment"):
        _core.GuardedView(engine, 0, 2**60, 4096)
    with pytest.raises(rr.UsageError, match="lies in the segment"):
        _core.GuardedView(engine, 0, 4096, 2**62)
    _, view = shared(10)
    with pytest.raises(rr.UsageError, match="do not overlap: 'b' is"):
        view.name_ranges([(0, 8, "a"), (4, 8, "b")])
