"""Which way of meeting the environment asks for, and environments that make no sense."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

import ringred as rr
from ringred import bootstrap

STORE = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
TORCHRUN = {**STORE, "TORCHELASTIC_RUN_ID": "none"}

# As Slurm 22.05 sets them.
SALLOC = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4", "SLURM_NPROCS": "4", "SLURM_TASKS_PER_NODE": "2(x2)"}
BATCH = {**SALLOC, "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_TASK_PID": "21"}
STEP = {**BATCH, "SLURM_STEP_ID": "0", "SLURM_STEPID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3"}
STEP_OF_ONE = {**BATCH, "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "1"}
PMIX = {"PMIX_NAMESPACE": "slurm.pmix.1.0", "PMIX_RANK": "3"}
PMI2 = {"PMI_FD": "13", "PMI_JOBID": "3.0", "PMI_RANK": "3", "PMI_SIZE": "4"}


@pytest.fixture(autouse=True)
def without_mpi(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "mpi4py.MPI", raising=False)


@pytest.mark.parametrize(
    ("environment", "kind"),
    [
        ({}, "single"),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "mpi"),
        ({"PMI_SIZE": "1"}, "mpi"),
        ({"MPI_LOCALNRANKS": "2"}, "mpi"),
        ({"OMPI_COMM_WORLD_SIZE": ""}, "single"),
        (STORE, "store"),
        ({**STORE, "MASTER_PORT": ""}, "single"),
        ({**STORE, "PMI_SIZE": "2"}, "mpi"),
        ({**STORE, "RINGRED_BOOTSTRAP": "single"}, "single"),
        ({"PMI_SIZE": "2", "RINGRED_BOOTSTRAP": "store"}, "store"),
        ({"RINGRED_BOOTSTRAP": "mpi"}, "mpi"),
        ({**STORE, "RINGRED_BOOTSTRAP": "auto"}, "store"),
        (SALLOC, "single"),
        (BATCH, "single"),
        (STEP, "mpi"),  # srun --mpi=none: MPI does not know of the other tasks, which check_launcher tells
        ({**STEP, **PMIX}, "mpi"),
        ({**STEP, **PMI2}, "mpi"),
        ({**STEP, "RINGRED_BOOTSTRAP": "single"}, "single"),
        (STEP_OF_ONE, "single"),
        ({**STEP_OF_ONE, **PMIX, "PMIX_RANK": "0"}, "single"),
        ({**STEP_OF_ONE, "OMPI_COMM_WORLD_SIZE": "2"}, "mpi"),  # mpirun in a task
        (PMIX, "mpi"),  # a launcher that sets nothing else
        ({**STEP, **STORE}, "store"),  # a script that sets them from SLURM_PROCID
        ({**STEP, **PMIX, **STORE}, "mpi"),
        ({**STEP, **PMIX, **TORCHRUN}, "store"),
        ({**TORCHRUN, "OMPI_COMM_WORLD_SIZE": "2"}, "store"),  # mpirun starts one torchrun on each node
    ],
)
def test_choice(environment: dict[str, str], kind: str) -> None:
    assert bootstrap.choose(environment) == kind


@pytest.mark.parametrize(("size", "kind"), [(1, "single"), (3, "mpi")])
def test_choice_where_mpi_was_started_already(monkeypatch: pytest.MonkeyPatch, size: int, kind: str) -> None:
    """Launchers that set none of the known variables: the user's script has imported MPI, and it has several ranks."""
    module = SimpleNamespace(COMM_WORLD=SimpleNamespace(Get_size=lambda: size))
    monkeypatch.setitem(sys.modules, "mpi4py.MPI", module)
    assert bootstrap.choose({}) == kind


def test_launched_size() -> None:
    assert bootstrap.launched_size({}) is None
    assert bootstrap.launched_size({"PMI_SIZE": "many"}) is None
    assert bootstrap.launched_size({"PMI_SIZE": "8", "MPI_LOCALNRANKS": "4"}) == 8
    assert bootstrap.launched_size({**STEP, **PMIX}) == 4
    assert bootstrap.launched_size({**STEP, "OMPI_COMM_WORLD_SIZE": "8"}) == 8
    for environment in (SALLOC, BATCH, STEP_OF_ONE, {**STEP, "SLURM_STEP_NUM_TASKS": ""}):
        assert bootstrap.launched_size(environment) is None


@pytest.mark.parametrize("name", bootstrap.MPI_SIZE_VARIABLES)
def test_launcher_and_library_of_different_mpis(name: str) -> None:
    with pytest.raises(rr.UsageError, match=r"launcher started 4 ranks, and MPI says 1 \(MPICH 5\).*ringred run"):
        bootstrap.check_launcher({name: "4"}, 1, "MPICH 5\nmore lines")


@pytest.mark.parametrize("pmi", [{}, PMIX, PMI2])
def test_srun_and_a_library_that_speaks_another_pmi(pmi: dict[str, str]) -> None:
    with pytest.raises(rr.UsageError, match=r"srun started 4 tasks, and MPI says 1 \(MPICH 5\).*srun --mpi=pmi2"):
        bootstrap.check_launcher({**STEP, **pmi}, 1, "MPICH 5\nmore lines")


@pytest.mark.parametrize("mine", [{"OMPI_COMM_WORLD_SIZE": "4"}, {"PMI_SIZE": "4", "MPI_LOCALNRANKS": "2"}])
def test_mpirun_that_uses_srun_is_not_taken_for_it(mine: dict[str, str]) -> None:
    with pytest.raises(rr.UsageError, match="launcher started 4 ranks, and MPI says 1"):
        bootstrap.check_launcher({**STEP, **mine}, 1, "any")


def test_a_launcher_that_tells_no_size_and_a_library_of_another_mpi() -> None:
    with pytest.raises(rr.UsageError, match="launcher started at least 4 ranks, and MPI says 1"):
        bootstrap.check_launcher(PMIX, 1, "any")


def test_launcher_and_library_that_belong_together() -> None:
    bootstrap.check_launcher({}, 1, "any")
    bootstrap.check_launcher({"OMPI_COMM_WORLD_SIZE": "4"}, 4, "any")
    bootstrap.check_launcher({"MPI_LOCALNRANKS": "2"}, 4, "any")  # of two nodes
    bootstrap.check_launcher({**STEP, **PMIX}, 4, "any")
    bootstrap.check_launcher(PMIX, 4, "any")
    bootstrap.check_launcher(BATCH, 1, "any")
    bootstrap.check_launcher({**STEP_OF_ONE, **PMIX, "PMIX_RANK": "0"}, 1, "any")


@pytest.mark.parametrize(
    ("name", "value"),
    [("RANK", "two"), ("RANK", "-1"), ("RANK", "2"), ("WORLD_SIZE", "0"), ("MASTER_PORT", ""), ("MASTER_ADDR", "")],
)
def test_store_variables_that_make_no_sense(name: str, value: str) -> None:
    with pytest.raises(rr.UsageError, match=f"{name}='{value}'"):
        bootstrap.start({**STORE, name: value, "RINGRED_BOOTSTRAP": "store"}, 1, 1.0)


def test_store_of_one_needs_no_store() -> None:
    assert bootstrap.start({**STORE, "WORLD_SIZE": "1"}, 1, 1.0).name == "single"


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(rr.SystemError, match=r"mpirun started needs the package mpi4py.*pip install mpi4py"):
        bootstrap.start({"PMI_SIZE": "2"}, 1, 1.0)
    monkeypatch.setitem(sys.modules, "torch.distributed.distributed_c10d", None)
    with pytest.raises(rr.SystemError, match=r"torchrun started needs the package torch.*pip install torch"):
        bootstrap.start(STORE, 1, 1.0)


class Meeting:
    """A meeting of this rank with others whose values are made up."""

    name = "made up"
    rank = 0

    def __init__(self, *others: object) -> None:
        self.size = 1 + len(others)
        self.others = others

    def allgather(self, value: object) -> list[object]:
        return [value, *self.others]


def test_agree_returns_the_result() -> None:
    assert bootstrap.agree(Meeting(None, None), "do it", lambda: 7) == 7


def test_agree_raises_what_a_peer_raised() -> None:
    with pytest.raises(rr.SystemError, match="rank 2 could not do it, so no rank can start: no room"):
        bootstrap.agree(Meeting(None, "no room"), "do it", lambda: 7)


@pytest.mark.parametrize("error", [rr.UsageError("wrong"), OSError("broken"), MemoryError()])
def test_agree_tells_the_peers_before_it_raises(error: Exception) -> None:
    told = []

    class Listening(Meeting):
        def allgather(self, value: object) -> list[object]:
            told.append(value)
            return super().allgather(value)

    def fail() -> None:
        raise error

    with pytest.raises(type(error)):
        bootstrap.agree(Listening(None), "do it", fail)
    assert told == [str(error)]


def test_ranks_of_a_communicator_are_taken_in_one_order() -> None:
    """Create_group must get the same group on all ranks, whatever order each of them lists it in."""
    seen: list[list[int]] = []

    class World:
        Get_size, Get_rank = staticmethod(lambda: 4), staticmethod(lambda: 1)
        Get_group = staticmethod(lambda: SimpleNamespace(Incl=list))
        Create_group = staticmethod(seen.append)

    mpi = SimpleNamespace(Comm=World, COMM_WORLD=World)
    for ranks in ([3, 1], (1, 3)):
        bootstrap._communicator_of(mpi, ranks)
    assert seen == [[1, 3], [1, 3]]
