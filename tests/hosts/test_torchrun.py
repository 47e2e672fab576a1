"""torchrun over two hosts: its store brings the ranks together, TCP connects them, no MPI takes part."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
from cluster import Cluster
from programs import COLLECTIVES, ROUND_AND_ROUND, environment

LAYOUT = (2, 1)

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


def torchrun(host: int, *command: str) -> list[str]:
    """The command that starts one host's part of the job."""
    job = [f"--nnodes={len(LAYOUT)}", "--rdzv-backend=c10d", "--rdzv-endpoint=h0:29400", "--rdzv-id=job"]
    return [sys.executable, "-P", "-m", "torch.distributed.run", *job, f"--nproc-per-node={LAYOUT[host]}", *command]


def test_collectives_training_and_a_cut_link(cluster: Cluster, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="needs torch")
    program = tmp_path / "program.py"
    program.write_text(COLLECTIVES + TRAINING + ROUND_AND_ROUND)
    variables = environment(RINGRED_TIMEOUT_SECONDS="3", OMP_NUM_THREADS="1")
    jobs = [cluster.start(f"h{host}", torchrun(host, str(program)), variables) for host in range(2)]
    deadline = time.monotonic() + 60
    while jobs[0].text().count(".\n") < 10:
        assert time.monotonic() < deadline, [job.text() for job in jobs]
        assert all(job.process.poll() is None for job in jobs), [job.text() for job in jobs]
        time.sleep(0.02)
    text = "".join(job.text() for job in jobs)
    assert text.count("over TCP (10.77.0.1, 10.77.0.2), not through MPI: no launcher of MPI's") == 3, (
        text
    )  # each init()
    assert text.count("trained") == 3 and {"local=0/2 cross=0/2", "local=0/1 cross=1/2"} < {*text.splitlines()}, text
    cluster.cut("h1")
    began = time.monotonic()
    while "rank 0 ended with" not in jobs[0].text() and time.monotonic() < began + 20:
        time.sleep(0.1)
    text, seconds = jobs[0].text(), time.monotonic() - began
    jobs[0].kill()  # and the other: torchrun waits for a node that it has lost
    assert "rank 0 ended with TimeoutError" in text, text
    assert "rank 2" in text[text.index("rank 0 ended with") :].splitlines()[0] and seconds < 10, text
