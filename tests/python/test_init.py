"""init, shutdown and what depends on them, in one process."""

from __future__ import annotations

import ast
import multiprocessing
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ringred as rr
from ringred import _core
from ringred.world import RANK_MARK, _launched_as


@pytest.fixture(autouse=True)
def no_world() -> Iterator[None]:
    rr.shutdown()
    yield
    rr.shutdown()


def python(program: str, **environment: str) -> str:
    """Run a program in a process of its own and return what it printed; fail if it fails."""
    command = [sys.executable, "-c", textwrap.dedent(program)]
    options = {"cwd": "/", "env": {**os.environ, **environment}}  # not the sources, which lack the compiled core
    done = subprocess.run(command, **options, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def error_of(program: str, **environment: str) -> str:
    """The type and text of the ringred error with which init() ends under this environment."""
    return python(
        f"""
        import ringred as rr
        try:
            rr.init()
            {program}
        except rr.RingredError as error:
            print(type(error).__name__, error)
        """,
        **environment,
    )


NEEDS_INIT: dict[str, Callable[[], Any]] = {
    "rank": rr.rank,
    "size": rr.size,
    "local_rank": rr.local_rank,
    "local_size": rr.local_size,
    "cross_rank": rr.cross_rank,
    "cross_size": rr.cross_size,
    "barrier": rr.barrier,
    "allreduce": lambda: rr.allreduce(np.ones(1)),
    "allreduce_": lambda: rr.allreduce_(np.ones(1)),
    "broadcast": lambda: rr.broadcast(np.ones(1)),
    "broadcast_": lambda: rr.broadcast_(np.ones(1)),
    "plan_allreduce": lambda: rr.plan_allreduce(np.ones(1)),
    "empty": lambda: rr.empty(1),
    "empty of nothing": lambda: rr.empty(0),
}


@pytest.mark.parametrize("name", list(NEEDS_INIT))
def test_use_before_init_and_after_shutdown(name: str) -> None:
    for _ in range(2):
        with pytest.raises(rr.UsageError, match=r"call ringred\.init\(\) first"):
            NEEDS_INIT[name]()
        rr.init()
        NEEDS_INIT[name]()
        rr.shutdown()


def test_init_and_shutdown_may_be_repeated() -> None:
    for _ in range(3):
        assert not rr.is_initialized()
        rr.init()
        rr.init()
        assert rr.is_initialized()
        assert (rr.rank(), rr.size(), rr.local_rank(), rr.local_size()) == (0, 1, 0, 1)
        assert (rr.cross_rank(), rr.cross_size()) == (0, 1)
        rr.shutdown()
        rr.shutdown()


def test_init_leaks_neither_descriptors_nor_mappings() -> None:
    def held() -> tuple[int, int]:
        mappings = Path("/proc/self/maps").read_text().count("ringred")
        return len(os.listdir("/proc/self/fd")), mappings

    rr.init()
    rr.shutdown()
    before = held()
    for _ in range(10):
        rr.init()
        rr.allreduce_(rr.empty(1000))
        rr.shutdown()
    assert held() == before


def test_plan_ends_with_shutdown() -> None:
    rr.init()
    values = rr.empty(10)
    plan = rr.plan_allreduce(values)
    assert plan() is values
    rr.shutdown()
    for _ in range(2):
        with pytest.raises(rr.UsageError, match=r"shutdown\(\).*bind plans again"):
            plan()
        rr.init()


def test_arena_arrays_outlive_the_world_that_made_them() -> None:
    rr.init()
    values = rr.empty(100_000)
    values[...] = 5
    rr.shutdown()
    assert (values == 5).all()
    rr.init()
    newer = rr.empty(100_000)
    newer[...] = 6
    assert rr.allreduce_(values) is values
    assert (values == 5).all() and (newer == 6).all()


def test_import_loads_neither_torch_nor_mpi() -> None:
    said = python("import sys, ringred; print([name for name in ('torch', 'mpi4py') if name in sys.modules])")
    assert said == "[]"


def test_neither_import_nor_init_alone_loads_mpi() -> None:
    pytest.importorskip("torch", reason="needs torch")
    clean = "import os; [os.environ.pop(name) for name in list(os.environ) if name.startswith(('OMPI_', 'PMI'))]\n"
    assert python(clean + "import sys, ringred.torch as hvd; hvd.init(); print('mpi4py.MPI' in sys.modules)") == "False"


def test_exit_without_shutdown_is_silent() -> None:
    assert python("import ringred as rr; rr.init(); keep = rr.empty(10), rr.plan_allreduce(rr.empty(3))") == ""


# Settings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RINGRED_TIMEOUT_SECONDS", "soon"),
        ("RINGRED_TIMEOUT_SECONDS", "-1"),
        ("RINGRED_TIMEOUT_SECONDS", "nan"),
        ("RINGRED_STALL_SECONDS", "1e400"),
        ("RINGRED_ALGORITHM", "rings"),
        ("RINGRED_WAIT", "sleep"),
        ("RINGRED_ISA", "mmx"),
        ("RINGRED_SLOT_BYTES", "0"),
        ("RINGRED_SLOT_BYTES", "256KB"),
        ("RINGRED_CHUNK_BYTES", "99999999999999999999999"),
        ("RINGRED_HUGE_PAGES", "yes"),
        ("RINGRED_BOOTSTRAP", "carrier pigeon"),
        ("RINGRED_LOG_LEVEL", "loud"),
    ],
)
def test_setting_that_makes_no_sense(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(rr.UsageError, match=rf"{name}.*'{value}'"):
        rr.init()
    assert not rr.is_initialized()
    monkeypatch.delenv(name)
    rr.init()
    assert rr.size() == 1


def test_small_arena_says_what_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RINGRED_ARENA_BYTES", "4M")
    monkeypatch.setenv("RINGRED_SLOT_BYTES", "64K")
    rr.init()
    fits = rr.empty(1 << 20, "u1")
    with pytest.raises(rr.SystemError, match=r"no free range of 8\.0 MiB.*RINGRED_ARENA_BYTES"):
        rr.empty(8 << 20, "u1")
    more = []
    with pytest.raises(rr.SystemError, match=r"no free range.*Free arrays"):
        more.extend(rr.empty(1 << 20, "u1") for _ in range(8))
    del fits
    rr.empty(1 << 20, "u1")


def test_memory_that_cannot_be_had_says_need_have_and_remedy() -> None:
    program = "rr.empty(1 << 42, 'u1')"
    said = error_of(program, RINGRED_ARENA_BYTES=str(1 << 43))
    assert said.startswith("SystemError The arena needs 4.0 TiB of shared memory, and ")
    assert "leaves" in said and "Use smaller arrays" in said


def test_limit_on_file_sizes_is_respected() -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0}))\n"
    program = (
        "import ringred as rr\ntry:\n rr.init(); rr.empty({1}, 'u1')\nexcept rr.SystemError as error: print(error)"
    )
    said = python((limit + program).format(1 << 16, 1))
    assert "needs" in said and "ulimit -f" in said and "Raise that limit" in said
    said = python((limit + program).format(64 << 20, 128 << 20))
    assert "128.0 MiB does not fit" in said


def test_small_file_limit_is_an_error_and_no_signal() -> None:
    """A process that writes behind the limit gets SIGXFSZ, which would end it."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30))\n"
    assert python(limit + "import ringred as rr; rr.init(); print(rr.allreduce_(rr.empty(1000)).sum())") == "0.0"


# Forked children


def in_child(action: Callable[[], str]) -> str:
    """What `action` returns in a forked child, which then exits as a Python process does."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=lambda: sender.send(action()))
    child.start()
    sender.close()
    assert receiver.poll(30)
    said: str = receiver.recv()
    child.join(30)
    assert child.exitcode == 0
    return said


TOLD_IN_CHILDREN = ("rank", "size", "local_rank", "local_size")


@pytest.mark.parametrize("name", [name for name in NEEDS_INIT if name not in ("plan_allreduce", *TOLD_IN_CHILDREN)])
def test_forked_child_gets_a_usage_error(name: str) -> None:
    rr.init()

    def use() -> str:
        try:
            NEEDS_INIT[name]()
        except rr.UsageError as error:
            return str(error)
        return "no error"

    assert "forked child cannot take part" in in_child(use)
    assert rr.is_initialized()
    NEEDS_INIT[name]()


@pytest.mark.parametrize("name", TOLD_IN_CHILDREN)
def test_forked_child_knows_which_rank_it_works_for(name: str) -> None:
    rr.init()
    assert in_child(lambda: str(NEEDS_INIT[name]())) == str(NEEDS_INIT[name]())


def test_a_process_that_a_rank_started_is_no_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMIX_RANK", "3")
    monkeypatch.setenv(RANK_MARK, f"{os.getppid()} {_launched_as()}")
    with pytest.raises(rr.UsageError, match="was started by a rank"):
        rr.init()
    monkeypatch.setenv("PMIX_RANK", "4")  # a launch of its own
    rr.init()


def test_forked_child_reads_arena_arrays_and_leaves_them_alone() -> None:
    rr.init()
    values = rr.empty(300_000)
    values[...] = 4
    dropped = [values[:10]]

    def end_of_child() -> str:
        total = str(int(values.sum()))
        dropped.clear()
        rr.shutdown()
        return total

    assert in_child(end_of_child) == "1200000"
    assert (values == 4).all()
    assert rr.allreduce_(values) is values
    assert (rr.empty(10) == 0).all()


def test_forked_child_that_drops_all_arrays_leaves_the_parents_alone() -> None:
    rr.init()
    values = [rr.empty(300_000)]
    values[0][...] = 4

    def drop() -> str:
        values.clear()
        return str(rr.is_initialized())

    assert in_child(drop) == "False"
    assert (values[0] == 4).all()


def test_forked_child_of_a_single_process_may_start_its_own_world() -> None:
    rr.init()

    def start() -> str:
        rr.init()
        return f"{rr.size()} {rr.allreduce(np.ones(2), rr.Sum).sum()}"

    assert in_child(start) == "1 2.0"


def test_plan_of_the_parent_in_a_forked_child() -> None:
    rr.init()
    plan = rr.plan_allreduce(np.ones(3))

    def use() -> str:
        try:
            plan()
        except rr.UsageError as error:
            return str(error)
        return "no error"

    assert "fork" in in_child(use)
    plan()


# The typed stub


def test_stub_names_what_the_module_has() -> None:
    stub = ast.parse((Path(rr.__file__).parent / "_core.pyi").read_text())
    for node in stub.body:
        if isinstance(node, ast.ClassDef):
            members = [member for member in node.body if isinstance(member, ast.FunctionDef)]
            for member in members:
                assert hasattr(getattr(_core, node.name), member.name), f"{node.name}.{member.name}"
    declared = {node.name for node in stub.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))}
    constants = [node.target for node in stub.body if isinstance(node, ast.AnnAssign)]
    declared |= {target.id for target in constants if isinstance(target, ast.Name)}
    assert declared == {name for name in vars(_core) if not name.startswith("_")}


@pytest.mark.parametrize("name", ["Endpoint", "Communicator", "AllreducePlan"])
def test_module_has_no_members_that_the_stub_does_not_name(name: str) -> None:
    stub = ast.parse((Path(rr.__file__).parent / "_core.pyi").read_text())
    (node,) = [node for node in stub.body if isinstance(node, ast.ClassDef) and node.name == name]
    declared = {member.name for member in node.body if isinstance(member, ast.FunctionDef)}
    assert {member for member in vars(getattr(_core, name)) if not member.startswith("_")} <= declared


def test_settings_table() -> None:
    rows = _core.setting_table()
    names = [name for name, _, _, _ in rows]
    assert len(set(names)) == len(names) and all(name.startswith("RINGRED_") for name in names)
    assert all(meaning.endswith(".") for _, _, _, meaning in rows)
    agreed = {row.partition("=")[0] for row in _core.agreed_settings({})}
    assert agreed == {name for name, _, must_agree, _ in rows if must_agree}
