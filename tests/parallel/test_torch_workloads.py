"""The workloads of benchmarks/training.py, made small: 20 steps on all ranks are those of one process with all batches.

All is float64, and errors are parts of the way that a parameter tensor has gone. BOUND is not derived but lies between
what is known of two things: runs that add in different orders were at most 7.3e-14 apart, over all ways and workloads;
and one batch that is lost in the last step of 20 makes more than 1e-3 in every tensor, which a test here asserts.
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
BOUND = 1e-10
LOST = 1e-3
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


@pytest.fixture(autouse=True)
def several_ranks() -> None:
    """These tests compare several ranks with one process."""
    if rr.size() == 1:
        pytest.skip("compares several ranks with one process")


def optimizer_of(name: str, model: torch.nn.Module) -> torch.optim.Optimizer:
    if name == "sgd":
        return torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    return torch.optim.Adam(model.parameters(), lr=1e-3)


def model_of(workloads: ModuleType, workload: str) -> Any:
    found = workloads.WORKLOADS[workload](3)
    found.model.double()
    found.model.eval()  # BatchNorm takes its running statistics: those of a batch would differ between ranks
    return found


def as_double(batch: Any) -> Any:
    return tuple(part.double() if part.is_floating_point() else part for part in batch)


def batches_of(workload: Any, step: int, ranks: int) -> list[Any]:
    generators = [torch.Generator().manual_seed(step * ranks + rank) for rank in range(ranks)]
    return [as_double(workload.batch(generator)) for generator in generators]


def train_on_all(workload: Any, optimizer: torch.optim.Optimizer, ranks: int, without: int = -1) -> None:
    """One process with the batches of all ranks, in one step `without` that of the last rank."""
    for step in range(STEPS):
        batches = batches_of(workload, step, ranks)
        inputs, targets = (torch.cat(parts) for parts in zip(*batches[: -1 if step == without else None], strict=True))
        optimizer.zero_grad()
        workload.loss(workload.model(inputs), targets).backward()
        optimizer.step()


def errors(ours: torch.nn.Module, theirs: torch.nn.Module, start: list[torch.Tensor]) -> dict[str, float]:
    """By parameter tensor: how far the two are apart, as a part of the way from the start."""
    found = {}
    triples = zip(ours.named_parameters(), theirs.parameters(), start, strict=True)
    for (name, mine), other, before in triples:
        way = torch.linalg.vector_norm(other.detach() - before)
        assert way > 0
        found[name] = float(torch.linalg.vector_norm(mine.detach() - other.detach()) / way)
    return found


@pytest.mark.parametrize("workload", "abcd")
def test_one_lost_batch_is_far_beyond_the_bound(workloads: ModuleType, workload: str) -> None:
    right, wrong = model_of(workloads, workload), model_of(workloads, workload)
    start = [parameter.detach().clone() for parameter in right.model.parameters()]
    train_on_all(right, optimizer_of("sgd", right.model), 2)
    train_on_all(wrong, optimizer_of("sgd", wrong.model), 2, without=STEPS - 1)
    assert min(errors(wrong.model, right.model, start).values()) > LOST


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("workload", "abcd")
def test_training_equals_one_process(workloads: ModuleType, workload: str, way: str) -> None:
    name, options = WAYS[way]
    ours, reference = model_of(workloads, workload), model_of(workloads, workload)
    start = [parameter.detach().clone() for parameter in reference.model.parameters()]
    optimizer = hvd.DistributedOptimizer(optimizer_of(name, ours.model), ours.model.named_parameters(), **options)
    for step in range(STEPS):
        inputs, targets = batches_of(ours, step, rr.size())[rr.rank()]
        optimizer.zero_grad()
        ours.loss(ours.model(inputs), targets).backward()
        optimizer.step()
    train_on_all(reference, optimizer_of(name, reference.model), rr.size())
    found = errors(ours.model, reference.model, start)
    assert max(found.values()) <= BOUND, found
    assert_same_on_all_ranks(list(ours.model.parameters()))
    optimizer.close()
