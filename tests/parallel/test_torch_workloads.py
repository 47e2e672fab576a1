"""The workloads of benchmarks/training.py, made small: 20 steps on all ranks are those of one process with all batches.

All is float64. A gradient is a sum of at most 2**13 products, behind at most 2**6 layers; so runs that add in different
orders get gradients that differ by 2**(13 + 6 - 53) of the sum of magnitudes, and that is at most 2**8 times the
gradient's norm here. Steps of these sizes let errors grow by less than 2**5 over 20 of them: together 2**-21 of the
gradients, BOUND of the way that a parameter tensor has gone. A gradient that is lost, late or counted twice on one of 2
ranks in one step of 20 is more than a hundredth of that way.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from training_data import assert_same_on_all_ranks

import ringred as rr
import ringred.torch as hvd

STEPS = 20
BOUND = 1e-6
SMALL = {
    "WIDE": 40,
    "TINY": 8,
    "TINY_LAYERS": 20,
    "CHANNELS": (2, 4),
    "VOCABULARY": 50,
    "LENGTH": 12,
    "WIDTH": 16,
    "HEADS": 2,
    "LAYERS": 1,
}
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "during backward": ("sgd", {"overlap": "on"}),
    "after backward": ("adam", {"overlap": "off"}),
    "measured": ("sgd", {}),
    "small buckets": ("adam", {"overlap": "on", "bucket_bytes": 2000}),
    "no buckets": ("sgd", {"overlap": "on", "bucket_bytes": 0}),
    "groups": ("adam", {"groups": 3}),
    "fused SGD": ("sgd", {"fused": True}),
    "fused Adam": ("adam", {"fused": True, "keep_gradients": True}),
    "shared parameters": ("adam", {"fused": True, "share_parameters": True}),
}


@pytest.fixture(scope="module", autouse=True)
def on_two_ranks(world: None) -> None:
    """With more they take too long, and those of gradients and options run there."""
    if rr.size() > 2:
        pytest.skip("one and two ranks run these")


@pytest.fixture(scope="module")
def workloads() -> ModuleType:
    file = Path(__file__).parents[2] / "benchmarks" / "workloads.py"
    specification = importlib.util.spec_from_file_location("small_workloads", file)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[module.__name__] = module  # its dataclasses look for themselves there
    specification.loader.exec_module(module)
    for name, value in SMALL.items():
        assert hasattr(module, name)
        setattr(module, name, value)
    return module


def optimizer_of(name: str, model: torch.nn.Module) -> torch.optim.Optimizer:
    if name == "sgd":
        return torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    return torch.optim.Adam(model.parameters(), lr=1e-3)


def as_double(batch: Any) -> Any:
    return tuple(part.double() if part.is_floating_point() else part for part in batch)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("workload", "abcd")
def test_training_equals_one_process(workloads: ModuleType, workload: str, way: str) -> None:
    name, options = WAYS[way]
    ours, reference = (workloads.WORKLOADS[workload](3) for _ in range(2))
    for one in (ours, reference):
        one.model.double()
        one.model.eval()  # BatchNorm takes its running statistics: those of a batch would differ between ranks
    start = [parameter.detach().clone() for parameter in reference.model.parameters()]
    optimizer = hvd.DistributedOptimizer(optimizer_of(name, ours.model), ours.model.named_parameters(), **options)
    plain = optimizer_of(name, reference.model)
    for step in range(STEPS):
        generators = [torch.Generator().manual_seed(step * rr.size() + rank) for rank in range(rr.size())]
        batches = [as_double(ours.batch(generator)) for generator in generators]
        inputs, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
        optimizer.zero_grad()
        plain.zero_grad()
        ours.loss(ours.model(batches[rr.rank()][0]), batches[rr.rank()][1]).backward()
        reference.loss(reference.model(inputs), targets).backward()
        optimizer.step()
        plain.step()
    pairs = zip(ours.model.named_parameters(), reference.model.parameters(), start, strict=True)
    for (parameter, mine), theirs, before in pairs:
        way_gone = torch.linalg.vector_norm(theirs.detach() - before)
        error = torch.linalg.vector_norm(mine.detach() - theirs.detach())
        assert error <= BOUND * way_gone and way_gone > 0, (parameter, float(error), float(way_gone))
    assert_same_on_all_ranks(list(ours.model.parameters()))
    optimizer.close()
