"""Options of the DistributedOptimizer: how gradients travel must not change what is trained."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn
from training_data import (
    TwoBranches,
    all_inputs,
    assert_same_on_all_ranks,
    backward,
    inputs_of,
    make_model,
)

import ringred as rr
import ringred.torch as hvd


def trained(options: dict[str, Any], steps: int = 4) -> nn.Sequential:
    """A model after some steps on all ranks, in float64."""
    model = make_model().double()
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), model.named_parameters(), **options
    )
    for step in range(steps):
        optimizer.zero_grad()
        backward(model, inputs_of(hvd.rank(), step).double())
        optimizer.step()
    optimizer.close()
    assert_same_on_all_ranks(list(model.parameters()))
    return model


class Fewer(hvd.Compressor):
    """A compressor of the user's: flat, in float32."""

    @staticmethod
    def compress(tensor: torch.Tensor) -> tuple[torch.Tensor, Any]:
        return tensor.float().reshape(-1), (tensor.shape, tensor.dtype)

    @staticmethod
    def decompress(tensor: torch.Tensor, ctx: Any) -> torch.Tensor:
        shape, dtype = ctx
        return tensor.view(shape).to(dtype)


@pytest.mark.parametrize(
    ("options", "digits"),
    [
        ({"groups": 2}, 12),
        ({"groups": 100}, 12),
        ({"gradient_predivide_factor": 4.0}, 12),
        ({"compression": hvd.Compression.fp16}, 3),
        ({"compression": hvd.Compression.bf16}, 2),
        ({"compression": Fewer}, 6),
        ({"compression": Fewer(), "groups": 3, "gradient_predivide_factor": 2.0}, 6),
    ],
    ids=["groups", "many groups", "predivide", "fp16", "bf16", "class", "object"],
)
def test_options_train_the_same_model(options: dict[str, Any], digits: int) -> None:
    for ours, theirs in zip(trained(options).parameters(), trained({}).parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.0, atol=10.0**-digits)


def test_options_that_differ_between_ranks_are_a_mismatch() -> None:
    if hvd.size() == 1:
        pytest.skip("needs two ranks")
    model = make_model()
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), groups=1 + (hvd.rank() == 0))
    backward(model, inputs_of(hvd.rank()))
    with pytest.raises(rr.MismatchError, match="gradients"):
        optimizer.step()
    optimizer.close()


@pytest.mark.parametrize("grouped", [False, True])
def test_unused_parameters_in_groups(grouped: bool) -> None:
    """Rank 0 uses one branch, the others the other one, and it changes with every step; nobody uses the third."""
    model = TwoBranches()
    hvd.broadcast_parameters(model.state_dict())
    groups = [list(model.parameters())[1:]] if grouped else None
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.5), groups=groups)
    for step in range(4):
        optimizer.zero_grad()
        branch = (step + (hvd.rank() != 0)) % 2
        model(torch.ones(1, 2), branch).sum().backward()
        optimizer.step()
        of_rank_0 = model.branches[step % 2].weight.grad
        torch.testing.assert_close(of_rank_0, torch.full((1, 2), 1 / hvd.size()))
        assert model.never.weight.grad is None
    assert_same_on_all_ranks(list(model.parameters()))


def test_frozen_and_thawed_between_steps() -> None:
    model, reference = make_model().double(), make_model().double()
    for net in (model, reference):
        net[0].requires_grad_(False)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    plain = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9)
    for step in range(6):
        for net, opt, inputs in ((model, optimizer, inputs_of(hvd.rank(), step)), (reference, plain, all_inputs(step))):
            net[0].requires_grad_(step in (2, 3))
            net[2].requires_grad_(step != 3)
            opt.zero_grad()
            backward(net, inputs.double())
            opt.step()
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.0, atol=1e-13)


@pytest.mark.parametrize("sparse_as_dense", [False, True])
def test_sparse_embedding(sparse_as_dense: bool) -> None:
    """Ranks use different words, some the same one twice, and one rank none in the second step."""
    torch.manual_seed(0)
    model = nn.ModuleList([nn.Embedding(7, 3, sparse=True), nn.Linear(3, 1)]).double()
    reference = copy.deepcopy(model)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), sparse_as_dense=sparse_as_dense)
    plain = torch.optim.SGD(reference.parameters(), lr=0.1)

    def loss_of(net: nn.ModuleList, rank: int, step: int) -> torch.Tensor:
        words = torch.tensor([rank % 7, 0, 0, (rank + step) % 7])
        inputs = net[0](words) if step == 0 or rank != 0 else torch.ones(1, 3, dtype=torch.float64)
        loss: torch.Tensor = net[1](inputs).square().mean()
        return loss

    for step in range(2):
        optimizer.zero_grad()
        plain.zero_grad()
        loss_of(model, hvd.rank(), step).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        (sum(loss_of(reference, rank, step) for rank in range(hvd.size())) / hvd.size()).backward()  # type: ignore[union-attr]
        plain.step()
        gradient = model[0].weight.grad
        assert gradient is None or hvd.size() == 1 or gradient.is_sparse != sparse_as_dense
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.0, atol=1e-13)
    assert_same_on_all_ranks(list(model.parameters()))


@pytest.mark.parametrize("manner", ["plain", "unscale and clip", "skip_synchronize"])
def test_grad_scaler_skips_on_all_ranks_or_none(manner: str) -> None:
    """The last rank overflows in one step: all skip it, and halve the scale."""
    model = make_model()
    hvd.broadcast_parameters(model.state_dict())
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.05))
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    for step in range(4):
        optimizer.zero_grad()
        overflows = step == 1 and hvd.rank() == hvd.size() - 1
        loss = model(inputs_of(hvd.rank(), step)).square().mean() * (float("inf") if overflows else 1.0)
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        before = [parameter.detach().clone() for parameter in model.parameters()]
        if manner == "skip_synchronize":
            optimizer.synchronize()
        if manner != "plain":
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        with optimizer.skip_synchronize() if manner == "skip_synchronize" else nullcontext():
            scaler.step(optimizer)
        scaler.update()
        moved = not all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
        assert moved == (step != 1)
        assert_same_on_all_ranks(list(model.parameters()))
    assert scaler.get_scale() == 8.0


def test_adasum() -> None:
    """Ranks that see the same do what one does; otherwise they move together, and further than the average."""
    model, reference = make_model(), make_model()
    optimizer = hvd.DistributedOptimizer(torch.optim.Adam(model.parameters()), op=hvd.Adasum)
    plain = torch.optim.Adam(reference.parameters())
    for _ in range(3):
        for net, opt in ((model, optimizer), (reference, plain)):
            opt.zero_grad()
            backward(net, inputs_of(0))
            opt.step()
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for step in range(3):
        optimizer.zero_grad()
        factor = float("inf") if step == 1 and hvd.rank() == 0 else 1.0
        scaler.scale(model(inputs_of(hvd.rank())).square().mean() * factor).backward()  # type: ignore[no-untyped-call]
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 2.0
    assert_same_on_all_ranks(list(model.parameters()))
