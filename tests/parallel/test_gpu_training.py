"""benchmarks/gpu/gpu_training.py, rehearsed: tiny models, on the CPU or on the device that is made up."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import ringred as rr

FOLDER = Path(__file__).parents[2] / "benchmarks" / "gpu"
TINY = {"VOCABULARY": 50, "LENGTH": 12, "WIDTH": 16, "HEADS": 2, "LAYERS": 1}


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch, device: str) -> Iterator[Any]:
    if rr.size() != 2 or device == "cuda":
        pytest.skip("two ranks without a GPU rehearse it")
    names = ("gpu_training", "training", "workloads")
    before = list(sys.path)
    sys.path.insert(0, str(FOLDER))
    import gpu_training

    for name, value in TINY.items():
        monkeypatch.setattr(gpu_training.workloads, name, value)
    if device != "cpu":
        torch.set_default_device("cpu")  # models are made there, and moved
    yield gpu_training
    if device != "cpu":
        torch.set_default_device(device)
    sys.path[:] = before
    for name in names:
        sys.modules.pop(name, None)
    if dist.is_initialized():
        rr.barrier()
        dist.destroy_process_group()


def test_all_modes_that_can_run_train_alike(benchmark: Any, device: str, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = "none,staged,direct,nccl" if device == "fake" else "none,direct,ddp,nccl"
    words = ["--device", device, "--modes", wanted, "--rounds", "2", "--warm-up", "2", "--optimizer", "sgd"]
    before = os.environ.get("RINGRED_GPU")
    args = benchmark.arguments(words)
    result = json.loads(json.dumps(benchmark.measure(args)))
    assert os.environ.get("RINGRED_GPU") == before
    modes = wanted.removesuffix(",nccl").split(",")
    assert list(result["seconds"]) == modes and all(len(times) == 2 for times in result["seconds"].values())
    assert "nccl does not run here: it is for GPUs" in result["notes"]
    text = capsys.readouterr().out
    if rr.rank() == 0:
        rows = [line.split()[0] for line in text.splitlines() if line.startswith(tuple(modes))]
        assert rows == modes and "same bits on all ranks" in text and "nccl does not run here" in text


def test_bad_options_and_no_gpu(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, said in (
        (["--modes", "none,gloo"], "no such mode: gloo"),
        (["--modes", "staged,ddp"], "against the mode none"),
        (["--rounds", "1"], "two rounds at least"),
    ):
        with pytest.raises(SystemExit):
            benchmark.arguments(words)
        assert said in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert benchmark.main([]) == 0
    assert capsys.readouterr().out == "ringred: torch sees no GPU here; nothing was measured.\n"
