"""How ranks meet: torch's store with and without torchrun, mpirun, and launchers of another MPI than that in use."""

from __future__ import annotations

import shutil
import signal
import socket
import sys
import textwrap
import time
from pathlib import Path

import pytest
from jobs import Job, clean_environment, run_ranks

pytestmark = pytest.mark.timeout(120)

RESULTS = """
import os, signal, sys, time
import numpy as np
import ringred as rr
rr.init()
rank, size = rr.rank(), rr.size()
assert rr.allreduce(np.full(3, rank + 1.0), rr.Sum).tolist() == [size * (size + 1) / 2] * 3
values = rr.empty(300_000)
values[...] = rank
assert (rr.allreduce_(values, rr.Max) == size - 1).all()
assert rr.broadcast(np.array([rank]), size - 1)[0] == size - 1
rr.shutdown()
rr.init()
assert (rr.rank(), rr.size()) == (rank, size)
rr.barrier()
print(f"rank {rank} of {size} is done", flush=True)
"""


def free_port() -> int:
    """A port that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def program(directory: Path, *bodies: str) -> str:
    """Write a program and return its path."""
    path = directory / "program.py"
    path.write_text("\n".join(textwrap.dedent(body) for body in bodies))
    return str(path)


def mpirun(ranks: int, *command: str) -> list[str]:
    """The command that starts ranks under the MPI of this environment, through ringred's own launcher's knowledge."""
    launcher = Path(sys.executable).with_name("mpirun")
    found = str(launcher) if launcher.exists() else shutil.which("mpirun")
    if found is None:
        pytest.skip("needs mpirun")
    options = ["--allow-run-as-root", "--oversubscribe", "--bind-to", "none"]
    return [found, *options, "-np", str(ranks), *command]


def test_ranks_without_a_launcher_meet_in_torchs_store(tmp_path: Path) -> None:
    """And without one nobody ends the others when a rank dies: they notice by themselves."""
    pytest.importorskip("torch", reason="needs torch")
    body = """
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        start = time.monotonic()
        try:
            rr.allreduce(np.ones(300_000))
        except rr.PeerLostError as error:
            assert "rank 1" in str(error), error
            assert time.monotonic() - start < 5
            print("rank 1 is missed")
    """
    path = program(tmp_path, RESULTS, body)
    port = str(free_port())
    with Job() as job:
        for rank in range(2):
            numbers = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            job.start([sys.executable, path], clean_environment(**numbers))
        survivor, killed = job.wait()
        assert not job.left_behind()
    told = f"rank 0: {survivor}\nrank 1: {killed}"
    assert killed.status == -signal.SIGKILL and "rank 1 of 2 is done" in killed.text, told
    assert survivor.status == 0 and "rank 0 of 2 is done\nrank 1 is missed" in survivor.text, told


def test_first_rank_may_be_ready_long_before_the_others(tmp_path: Path) -> None:
    """It serves the store, which the others still read from when it is through with init(), and with shutdown()."""
    pytest.importorskip("torch", reason="needs torch")
    body = """
        import time
        import ringred as rr
        from ringred import bootstrap
        class Slow(bootstrap.StoreBootstrap):
            def allgather(self, value):
                values = super().allgather(value)
                if self.rank == 1: time.sleep(0.05)  # not a wait for anything: this rank is slow
                return values
        bootstrap.StoreBootstrap = Slow
        for _ in range(3):
            rr.init()
            rr.shutdown()
        rr.init()
        rr.barrier()
    """
    port = str(free_port())
    with Job() as job:
        for rank in range(2):
            numbers = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            job.start([sys.executable, program(tmp_path, body)], clean_environment(**numbers))
        ended = job.wait()
    assert [one.status for one in ended] == [0, 0], ended


def test_torchrun(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="needs torch")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    with Job() as job:
        job.start([*command, program(tmp_path, RESULTS)], clean_environment())
        (ended,) = job.wait()
        assert not job.left_behind()
    assert ended.status == 0, ended.text
    assert all(f"rank {rank} of 2 is done" in ended.text for rank in range(2)), ended.text


def test_mpirun(tmp_path: Path) -> None:
    pytest.importorskip("mpi4py", reason="needs mpi4py")
    with Job() as job:
        job.start(mpirun(3, sys.executable, program(tmp_path, RESULTS)), clean_environment())
        (ended,) = job.wait()
    assert ended.status == 0, ended.text
    assert all(f"rank {rank} of 3 is done" in ended.text for rank in range(3)), ended.text


@pytest.mark.parametrize("ending", ["os.kill(os.getpid(), signal.SIGKILL)", "raise LookupError('in rank 1')"])
def test_mpirun_ends_when_a_rank_does(tmp_path: Path, ending: str) -> None:
    pytest.importorskip("mpi4py", reason="needs mpi4py")
    before = set(Path("/dev/shm").glob("*ringred*"))
    body = f"""
        if rank == 1:
            {ending}
        rr.allreduce(np.ones(300_000))
    """
    with Job() as job:
        job.start(mpirun(3, sys.executable, program(tmp_path, RESULTS, body)), clean_environment())
        start = time.monotonic()
        (ended,) = job.wait(20)
        assert time.monotonic() - start < 15  # 10 from the death on, and a start
        assert not job.left_behind()
    assert ended.status not in (0, -signal.SIGKILL), ended.text
    assert "in rank 1" in ended.text or "LookupError" not in ending
    assert set(Path("/dev/shm").glob("*ringred*")) == before


def test_launcher_of_another_mpi_than_mpi4pys(tmp_path: Path) -> None:
    """The classic silent failure: every process believes to be alone. Here the launcher is made up."""
    pytest.importorskip("mpi4py", reason="needs mpi4py")
    body = """
        import ringred as rr
        try:
            rr.init()
        except rr.UsageError as error:
            print(error)
        assert not rr.is_initialized()
    """
    with Job() as job:
        job.start([sys.executable, program(tmp_path, body)], clean_environment(OMPI_COMM_WORLD_SIZE="4"))
        (ended,) = job.wait()
    assert ended.status == 0, ended.text
    assert "the launcher started 4 ranks, and MPI says 1" in ended.text
    assert "ringred run" in ended.text


def test_task_of_srun_that_mpi_does_not_know_of(tmp_path: Path) -> None:
    """As srun --mpi=none leaves it. Here srun is made up."""
    pytest.importorskip("mpi4py", reason="needs mpi4py")
    step = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}
    with Job() as job:
        job.start([sys.executable, program(tmp_path, "import ringred as rr\nrr.init()")], clean_environment(**step))
        (ended,) = job.wait()
    assert ended.status == 1, ended.text
    assert "srun started 2 tasks, and MPI says 1" in ended.text


def test_launcher_of_another_mpi_is_noticed_on_all_ranks(tmp_path: Path) -> None:
    """Two ranks of a launcher that says four: all of them must stop, and the job ends."""
    pytest.importorskip("mpi4py", reason="needs mpi4py")
    body = """
        import os
        import ringred as rr
        os.environ["OMPI_COMM_WORLD_SIZE"] = "4"
        rr.init()
    """
    with Job() as job:
        job.start(mpirun(2, sys.executable, program(tmp_path, body)), clean_environment())
        (ended,) = job.wait(30)
    assert ended.status > 0, ended.text
    assert "the launcher started 4 ranks, and MPI says 2" in ended.text


def test_data_loaders_workers_in_a_rank() -> None:
    """Under all three ways to start a worker, while the ranks reduce; and with the arena's memory in the dataset."""
    pytest.importorskip("torch", reason="needs torch")
    body = """
        import warnings
        warnings.simplefilter("ignore")
        import torch
        from torch.utils.data import DataLoader, TensorDataset
        import ringred.torch as hvd
        hvd.init()
        samples = hvd.empty(64)
        samples += 1
        for context in ("fork", "forkserver", "spawn"):
            data = TensorDataset(samples if context == "fork" else samples.clone())
            total = torch.zeros(1)
            for (batch,) in DataLoader(data, batch_size=8, num_workers=1, multiprocessing_context=context):
                total += hvd.allreduce(batch, op=hvd.Sum).sum()
            assert total.item() == 64 * hvd.size(), (context, total)
            assert (samples == 1).all()
            hvd.barrier()
        print("all read")
    """
    ended = run_ranks(2, body, settings={"RINGRED_TIMEOUT_SECONDS": "40"}, seconds=80)
    for rank, one in enumerate(ended):
        assert one.status == 0 and "all read" in one.text, f"rank {rank}: {one.text}"
