"""Models and optimizers whose gradients are reduced where they lie on GPUs, for tests on the device that is made up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import ringred.torch as hvd

WIDTH = 7
BUCKET_BYTES = 230  # a layer of 196 and its bias of 28, so that each branch has its own


class Branches(nn.Module):
    """Layers whose outputs are added up, so that gradients can be made in any order, or left out."""

    def __init__(self, device: str, branches: int = 4) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(branches))
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        self.to(device)

    def backward(self, order: list[int], seed: int, scale: float = 1.0) -> None:
        """A backward pass for each of these layers, one after the other."""
        generator = torch.Generator().manual_seed(seed)
        for number in order:
            values = torch.randn(3, WIDTH, generator=generator).to(self.layers[0].weight.device)
            (self.layers[number](values).square().mean() * scale).backward()

    def values(self) -> list[torch.Tensor]:
        return [parameter.detach().cpu() for parameter in self.parameters()]


def optimizer_of(model: nn.Module, **options: Any) -> Any:
    settings: dict[str, Any] = {"bucket_bytes": BUCKET_BYTES, "overlap": "on", **options}
    return hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), **settings)


Steps = Callable[[Branches, Any], None]


def everywhere(steps: Steps, **options: Any) -> Any:
    """Do the same on the CPU and on the device, and compare what comes of it. Returns the device's optimizer."""
    results = []
    for device in ("cpu", "fake"):
        model = Branches(device)
        optimizer = optimizer_of(model, **options)
        steps(model, optimizer)
        results.append(model.values())
    for on_device, on_cpu in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(on_device, on_cpu)
    return optimizer


def ways(optimizer: Any) -> list[Any]:
    return [unit.bucket._way for unit in optimizer._exchange._units if unit.bucket is not None]


def calls_of(optimizer: Any) -> int:
    return sum(turns._group.calls for turns in optimizer._exchange._arrangement.turns)


def step(model: Branches, optimizer: Any, order: list[int], seed: int) -> None:
    optimizer.zero_grad()
    model.backward(order, seed)
    optimizer.step()
