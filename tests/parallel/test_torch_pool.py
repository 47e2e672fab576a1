"""Gradients that autograd computes into the arena: they are reduced where they lie, and nobody else notices."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from rank_data import needs_ranks
from torch import nn
from training_data import assert_same_on_all_ranks

import ringred as rr
import ringred.torch as hvd
from ringred import _core, world
from ringred.torch import buckets

WIDTH = 97  # no whole number of cache lines
BYTES = WIDTH * WIDTH * 4


@pytest.fixture(autouse=True)
def small_gradients_travel_alone(world: None, monkeypatch: pytest.MonkeyPatch) -> None:
    needs_ranks(2)
    monkeypatch.setattr(buckets, "ALONE_BYTES", BYTES)
    monkeypatch.setattr(buckets, "LATE_BYTES", 0)


def layers(seed: int = 3) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=bias) for bias in (True, False, True)))


def wrapped(model: nn.Module, **options: object) -> hvd.DistributedOptimizer:
    inner = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return hvd.DistributedOptimizer(inner, model.named_parameters(), **options)


def inputs(step: int, rank: int) -> torch.Tensor:
    return torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(100 * step + rank))


def backward(model: nn.Module, step: int, **options: bool) -> None:
    model(inputs(step, rr.rank())).square().mean().backward(**options)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, **options: bool) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        backward(model, step, **options)
        optimizer.step()


def finish(model: nn.Module, optimizer: hvd.DistributedOptimizer) -> None:
    assert_same_on_all_ranks(list(model.parameters()))
    optimizer.close()


def in_arena(tensor: torch.Tensor) -> bool:
    begin, end = world.engine().arena
    return begin <= tensor.data_ptr() < end


def is_view(gradient: torch.Tensor) -> bool:
    """Whether, between rounds, it is a place in a bucket."""
    pool = _core.Pool(world.engine(), [])  # it knows the blocks of all
    return in_arena(gradient) and not pool.holds(gradient.data_ptr(), gradient.nbytes)


def bits_of(model: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def test_large_gradients_are_not_copied() -> None:
    model = layers()
    optimizer = wrapped(model)
    train(model, optimizer, 2)
    places = []
    for step in range(5):
        optimizer.zero_grad()
        backward(model, step)
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        assert all(gradient is not None and in_arena(gradient) for gradient in gradients.values())
        places.append(sorted(gradients[f"{layer}.weight"].data_ptr() for layer in range(3)))
        optimizer.step()
        assert {name for name, gradient in gradients.items() if is_view(gradient)} == {"0.bias", "2.bias"}
        del gradients  # or their memory is not free for the next ones
    assert all(place == places[0] for place in places)  # no memory is taken but that of three gradients
    optimizer.close()


@pytest.mark.parametrize("overlap", ["on", "off"])
@pytest.mark.parametrize("to_none", [True, False])
def test_the_bits_are_those_without_a_pool(overlap: str, to_none: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for choice in ("on", "off"):
        monkeypatch.setenv("RINGRED_GRADIENT_POOL", choice)
        model = layers()
        optimizer = wrapped(model, overlap=overlap)
        for step in range(5):
            optimizer.zero_grad(set_to_none=to_none)
            backward(model, step)
            optimizer.step()
        found.append(bits_of(model))
        assert all(is_view(parameter.grad) for parameter in model.parameters()) == (choice == "off" or not to_none)
        optimizer.close()
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_a_pool_on_some_ranks_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RINGRED_GRADIENT_POOL", "off" if rr.rank() == 1 else "on")
    model = layers()
    optimizer = wrapped(model)
    train(model, optimizer, 5)
    assert is_view(model[1].weight.grad) == (rr.rank() == 1)
    finish(model, optimizer)


def test_two_models_in_turns() -> None:
    models = [layers(1), layers(2)]
    optimizers = [wrapped(model) for model in models]
    for step in range(5):
        for optimizer in optimizers:
            optimizer.zero_grad()
        for model, optimizer in zip(models, optimizers, strict=True):
            backward(model, step)
            optimizer.step()
            assert step == 0 or not any(is_view(layer.weight.grad) for layer in model)
    for model, optimizer in zip(models, optimizers, strict=True):
        finish(model, optimizer)


def test_a_gradient_that_is_kept_stays_as_it_is() -> None:
    model = layers()
    optimizer = wrapped(model)
    train(model, optimizer, 3)
    kept = model[0].weight.grad
    assert kept is not None
    copied = kept.clone()
    train(model, optimizer, 3)
    assert in_arena(kept) and torch.equal(kept, copied)  # one more than there are blocks: that one was copied
    finish(model, optimizer)


def test_what_is_allocated_outside_of_backward_is_not_of_the_arena() -> None:
    model = layers()
    optimizer = wrapped(model)
    train(model, optimizer, 4)
    clones = [copy.deepcopy(model)[0].weight, torch.empty(WIDTH, WIDTH), model[0].weight.grad.clone()]
    state = [value for one in optimizer.state.values() for value in one.values() if isinstance(value, torch.Tensor)]
    assert state and not any(in_arena(tensor) for tensor in [*clones, *state])
    optimizer.close()


@pytest.mark.parametrize(
    "change",
    [
        lambda parameter: parameter.grad.mul_(2),
        lambda parameter: setattr(parameter.grad, "data", torch.ones(WIDTH, WIDTH)),
        lambda parameter: setattr(parameter, "grad", torch.ones(WIDTH, WIDTH)),
    ],
)
def test_a_change_before_step_is_an_error(change: Callable[[nn.Parameter], object]) -> None:
    model = layers()
    optimizer = wrapped(model)
    train(model, optimizer, 3)
    before = bits_of(model)
    optimizer.zero_grad()
    backward(model, 9)
    change(model[1].weight)
    with pytest.raises(rr.UsageError, match=r"may not change .*1\.weight"):
        optimizer.step()
    optimizer.zero_grad()
    assert all(torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))
    train(model, optimizer, 2)
    finish(model, optimizer)


def test_a_gradient_of_the_users_making_is_copied() -> None:
    model = layers()
    optimizer = wrapped(model)
    train(model, optimizer, 3)
    optimizer.zero_grad()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    backward(model, 0)
    assert all(in_arena(parameter.grad) for parameter in model.parameters())
    optimizer.step()
    train(model, optimizer, 2)
    finish(model, optimizer)


def test_gradients_with_a_graph() -> None:
    model = layers()
    optimizer = wrapped(model)
    train(model, optimizer, 2)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*create_graph")  # torch says it once in a process
        train(model, optimizer, 2, create_graph=True)
    assert all(not parameter.grad.requires_grad for parameter in model.parameters())
    finish(model, optimizer)


def test_a_parameter_that_one_rank_does_not_use() -> None:
    model, reference = layers().double(), layers().double()
    optimizer, plain = wrapped(model), torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9)

    def loss(of: nn.Sequential, step: int, rank: int) -> torch.Tensor:
        first = of[0] if rank != step % rr.size() or step < 2 else of[2]
        result: torch.Tensor = of[1](first(inputs(step, rank).double())).square().mean()
        return result

    for step in range(6):
        optimizer.zero_grad()
        plain.zero_grad()
        loss(model, step, rr.rank()).backward()
        torch.stack([loss(reference, step, rank) for rank in range(rr.size())]).mean().backward()
        optimizer.step()
        plain.step()
    for one, other in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    optimizer.close()


def test_a_newer_optimizer_takes_the_parameters() -> None:
    model = layers()
    first = wrapped(model)
    train(model, first, 3)
    first.zero_grad()
    backward(model, 0)
    second = wrapped(model)
    with pytest.raises(rr.UsageError, match="one DistributedOptimizer at a time"):
        first.step()
    train(model, second, 4)
    finish(model, second)


def test_closing_in_the_middle_of_a_round_leaves_gradients_to_the_next_optimizer() -> None:
    model = layers()
    first = wrapped(model, overlap="off")
    train(model, first, 3)
    first.zero_grad()
    backward(model, 0)
    first.close()
    second = wrapped(model)
    model.zero_grad()
    train(model, second, 3)
    finish(model, second)


def test_passes_are_accumulated_in_place() -> None:
    model, reference = layers().double(), layers().double()
    optimizer = wrapped(model, backward_passes_per_step=3)
    plain = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9)
    for step in range(4):
        optimizer.zero_grad()
        plain.zero_grad()
        for part in range(3):
            model(inputs(3 * step + part, rr.rank()).double()).square().mean().backward()
            losses = [reference(inputs(3 * step + part, rank).double()).square().mean() for rank in range(rr.size())]
            torch.stack(losses).mean().backward()
        optimizer.step()
        for parameter in reference.parameters():
            assert parameter.grad is not None
        plain.step()
    for one, other in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    optimizer.close()


def test_the_norm_is_taken_on_the_way() -> None:
    model = layers()
    optimizer = wrapped(model)
    for step in range(4):
        optimizer.zero_grad()
        backward(model, step)
        norm = optimizer.clip_grad_norm_(1e-3)
        found = torch.linalg.vector_norm(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
        assert norm > 1e-3 and float(found) == pytest.approx(1e-3, rel=1e-3)
        optimizer.step()
    finish(model, optimizer)


@pytest.mark.parametrize("to_none", [True, False])
def test_fused_gradients_are_computed_in_the_arena_one_after_the_other(
    one_node: None, to_none: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for choice in ("on", "off"):
        monkeypatch.setenv("RINGRED_GRADIENT_POOL", choice)
        model = layers()
        optimizer = wrapped(model, fused=True)
        seen: list[bool] = []
        for layer in model:
            layer.weight.register_hook(lambda gradient, seen=seen: seen.append(in_arena(gradient)))
        for step in range(4):
            optimizer.zero_grad(set_to_none=to_none)
            backward(model, step)
            assert all(is_view(parameter.grad) for parameter in model.parameters())
            optimizer.step()
        assert len(seen) == 12 and all(seen[3:]) == (choice == "on") and any(seen) == (choice == "on")
        found.append(bits_of(model))
        finish(model, optimizer)
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_the_setting_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RINGRED_GRADIENT_POOL", "maybe")
    with pytest.raises(rr.UsageError, match=r"RINGRED_GRADIENT_POOL must be on or off: it is 'maybe'"):
        wrapped(layers())
