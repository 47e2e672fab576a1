"""torchrun over two hosts: its store brings the ranks together, TCP connects them, no MPI takes part."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest
from cluster import Cluster
from programs import COLLECTIVES, ROOT, ROUND_AND_ROUND, environment

# One step over the gradients' average, against the same by hand.
TRAINING = """
import torch
import ringred.torch as hvd

hvd.init()
model = torch.nn.Linear(3, 1, bias=False)
torch.nn.init.ones_(model.weight)
optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
optimizer = hvd.DistributedOptimizer(optimizer, named_parameters=model.named_parameters())
model(torch.full((1, 3), float(hvd.rank()))).sum().backward()
optimizer.step()
assert model.weight.tolist() == [[1 - (hvd.size() - 1) / 2] * 3], model.weight
hvd.shutdown()
print("trained", flush=True)
"""


def command(program: Path) -> list[str]:
    """What starts one host's part of the job, the same on each."""
    job = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", "--rdzv-endpoint=h0:29400", "--rdzv-id=job"]
    return [sys.executable, "-P", "-m", "torch.distributed.run", *job, str(program)]


def test_collectives_and_training(cluster: Cluster, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="needs torch")
    program = tmp_path / "program.py"
    program.write_text(COLLECTIVES + TRAINING)
    jobs = [cluster.start(host, command(program), environment(OMP_NUM_THREADS="1")) for host in cluster.hosts]
    ended = [job.wait(60) for job in jobs]
    text = "".join(one.text for one in ended)
    assert [one.status for one in ended] == [0, 0], text
    assert text.count("over TCP (10.77.0.1, 10.77.0.2), not through MPI: no launcher") == 2, text  # of two init()
    assert text.count("trained") == 2 and {"local=0/1 cross=0/2", "local=0/1 cross=1/2"} < {*text.splitlines()}, text


def test_cut_link(cluster: Cluster, tmp_path: Path) -> None:
    """As torchrun's ranks, which meet through files here, since importing torch takes longer than the test."""
    here = str(ROOT / "tests" / "mpi")
    meeting = {"MEETING_DIRECTORY": str(tmp_path), "MEETING_SIZE": "2", "MASTER_ADDR": "h0"}
    variables = environment(RINGRED_TIMEOUT_SECONDS="1", **meeting, PYTHONPATH=os.pathsep.join([str(ROOT), here]))
    words = [sys.executable, "-P", "-c", "import meeting\nmeeting.install()\n" + ROUND_AND_ROUND]
    jobs = [
        cluster.start(host, words, {**variables, "MEETING_RANK": str(rank)}) for rank, host in enumerate(cluster.hosts)
    ]
    deadline = time.monotonic() + 30
    while jobs[0].text().count(".\n") < 10:
        assert time.monotonic() < deadline and all(job.process.poll() is None for job in jobs), jobs[0].text()
        time.sleep(0.02)
    cluster.cut("h1")
    began = time.monotonic()
    ended = jobs[0].wait(15)
    assert ended.status == 7 and time.monotonic() - began < 10, ended.text
    said = ended.text[ended.text.index("rank 0 ended with") :].splitlines()[0]
    assert "TimeoutError" in said and "rank 1" in said, said
    cluster.mend("h1")
