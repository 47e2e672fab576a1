"""Gradients of several parameters that autograd lets share one memory: each is reduced once, wherever it travels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from rank_data import needs_ranks
from torch import nn

import ringred as rr
import ringred.torch as hvd

COUNTS = {"small": 40, "middle": 2000, "large": 200_000}  # elements of 8 bytes: each kind of bucket has one


class Twins(nn.Module):
    """Both parameters are reshaped, added, and multiplied by a factor: both gradients are that factor."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.zeros(count // 4, 4, dtype=torch.float64))
        self.two = nn.Parameter(torch.zeros(2, count // 2, dtype=torch.float64))

    def forward(self, factor: float, both: bool = True) -> torch.Tensor:
        total = self.two.view(-1) * 1 + self.one.view(-1) * 0 if not both else self.one.view(-1) + self.two.view(-1)
        return total * torch.full_like(total, factor)


@pytest.fixture(scope="module", autouse=True)
def two_or_three_ranks(world: None) -> None:
    needs_ranks(2)
    if rr.size() == 4:
        pytest.skip("two and three ranks run these")


def wrapped(model: nn.Module, **options: Any) -> hvd.DistributedOptimizer:
    return hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.0), model.named_parameters(), **options)


def backward(model: Twins, step: int, both: bool = True) -> bool:
    """Whether the gradients share memory; each is (rank + 1) * (step + 1)."""
    model(float((rr.rank() + 1) * (step + 1)), both).sum().backward()
    assert model.one.grad is not None and model.two.grad is not None
    return model.one.grad.data_ptr() == model.two.grad.data_ptr()


def assert_gradients(model: nn.Module, value: float) -> None:
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, torch.full_like(parameter, value)), (
            name,
            value,
            parameter.grad.flatten()[:4],
        )


def total(step: int) -> float:
    return float(sum(range(1, rr.size() + 1)) * (step + 1))


every_size = pytest.mark.parametrize("size", COUNTS)


@every_size
@pytest.mark.parametrize("op", [rr.Average, rr.Sum])
@pytest.mark.parametrize("options", [{}, {"overlap": "off"}, {"bucket_bytes": 0, "overlap": "on"}], ids=str)
def test_each_is_reduced_once(size: str, op: rr.Op, options: dict[str, Any]) -> None:
    model = Twins(COUNTS[size])
    optimizer = wrapped(model, op=op, **options)
    shared = []
    for step in range(5):
        optimizer.zero_grad(set_to_none=step != 3)
        shared.append(backward(model, step))
        optimizer.step()
        assert_gradients(model, total(step) / (rr.size() if op == rr.Average else 1))
    assert shared[0]  # or this tests nothing
    optimizer.close()


@every_size
@pytest.mark.parametrize("bucket_bytes", [0, 16 << 20])
def test_each_is_weighted_once(size: str, bucket_bytes: int) -> None:
    model = Twins(COUNTS[size])
    optimizer = wrapped(model, overlap="off", bucket_bytes=bucket_bytes)
    for step in range(5):
        optimizer.zero_grad()
        backward(model, step)
        optimizer.step(weight=2 ** rr.rank())
        weights = [2**rank for rank in range(rr.size())]
        mean = sum(weight * (rank + 1) for rank, weight in enumerate(weights)) * (step + 1) / sum(weights)
        for parameter in model.parameters():
            torch.testing.assert_close(parameter.grad, torch.full_like(parameter, mean), rtol=1e-12, atol=0.0)
    optimizer.close()


@every_size
@pytest.mark.parametrize("op", [rr.Average, rr.Sum])
def test_two_optimizers_with_one_each(size: str, op: rr.Op) -> None:
    model = Twins(COUNTS[size])
    optimizers = [
        hvd.DistributedOptimizer(torch.optim.SGD([parameter], lr=0.0), [(name, parameter)], op=op)
        for name, parameter in model.named_parameters()
    ]
    for step in range(5):
        for optimizer in optimizers:
            optimizer.zero_grad()
        backward(model, step)
        for optimizer in optimizers if step % 2 else optimizers[::-1]:
            optimizer.step()
        assert_gradients(model, total(step) / (rr.size() if op == rr.Average else 1))
    for optimizer in optimizers:
        optimizer.close()


@every_size
def test_where_one_rank_does_not_use_one_of_them(size: str) -> None:
    model = Twins(COUNTS[size])
    optimizer = wrapped(model)
    for step in range(5):
        optimizer.zero_grad()
        backward(model, step, both=rr.rank() != 1)
        optimizer.step()
        assert model.one.grad is not None and model.two.grad is not None
        assert torch.equal(model.two.grad, torch.full_like(model.two, total(step) / rr.size()))
        assert torch.equal(model.one.grad, torch.full_like(model.one, (total(step) - 2 * (step + 1)) / rr.size()))
    optimizer.close()


@every_size
@pytest.mark.parametrize("change", ["resized", "grown", "cast"])
def test_a_parameter_that_has_changed_is_an_error(size: str, change: str) -> None:
    """Instead of a copy beyond the end of the smaller one."""
    model = nn.ParameterList([nn.Parameter(torch.zeros(COUNTS[size])), nn.Parameter(torch.zeros(5))])
    optimizer = wrapped(model)
    for step in range(4):
        optimizer.zero_grad()
        sum(parameter.sum() for parameter in model).backward()
        if step < 3:
            optimizer.step()
    optimizer.zero_grad()
    count = COUNTS[size]
    model[0].data = {
        "resized": torch.zeros(count // 2),
        "grown": torch.zeros(2 * count),
        "cast": torch.zeros(count, dtype=torch.float64),
    }[change]
    with pytest.raises(rr.UsageError, match="Parameters keep their shape and dtype: '0'"):
        sum(parameter.double().sum() for parameter in model).backward()
        optimizer.step()
    optimizer.close()
