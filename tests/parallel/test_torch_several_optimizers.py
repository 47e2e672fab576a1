"""Several DistributedOptimizers at a time: on one model, on two, in process sets, one after the other, at random."""

from __future__ import annotations

import copy
import random
import time

import pytest
import torch
from torch import nn
from training_data import (
    all_inputs,
    assert_same_on_all_ranks,
    backward,
    inputs_of,
    make_model,
)

import ringred as rr
import ringred.torch as hvd
from ringred.torch import buckets


@pytest.mark.parametrize("late", [False, True])
def test_a_parameter_belongs_to_the_newest_optimizer(late: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the others were in the midst of, and though nobody has closed them."""
    if hvd.size() == 1:
        pytest.skip("needs two ranks")
    if not late:
        monkeypatch.setattr(buckets, "LATE_BYTES", 0)
    model = make_model()
    older = []
    for steps in (0, 1, 3):
        optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), overlap="on")
        for step in range(steps):
            optimizer.zero_grad()
            backward(model, inputs_of(hvd.rank(), step))
            optimizer.step()
        backward(model, inputs_of(hvd.rank(), 7))
        older.append(optimizer)
    newest = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    for optimizer in older:
        with pytest.raises(rr.UsageError, match="another one has been built"):
            optimizer.step()
    for step in range(4):
        newest.zero_grad()
        backward(model, inputs_of(hvd.rank(), step))
        newest.step()
    assert_same_on_all_ranks(list(model.parameters()))


def test_two_optimizers_on_one_model() -> None:
    """One backward pass serves both; the ranks step them in the same order, whoever is first."""
    model, reference = make_model().double(), make_model().double()
    pairs = [
        (
            hvd.DistributedOptimizer(torch.optim.SGD(model[index].parameters(), lr=0.1)),
            torch.optim.SGD(reference[index].parameters(), lr=0.1),
        )
        for index in (0, 2)
    ]
    for step in range(3):
        for ours, theirs in pairs:
            ours.zero_grad()
            theirs.zero_grad()
        backward(model, inputs_of(hvd.rank(), step).double())
        backward(reference, all_inputs(step).double())
        for ours, theirs in pairs if step % 2 else pairs[::-1]:
            ours.step()
            theirs.step()
    for one, other in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0.0, atol=1e-13)


def test_two_models_whose_gradients_come_in_another_order_on_every_rank() -> None:
    models = [make_model(seed).double() for seed in (1, 2)]
    references = copy.deepcopy(models)
    optimizers = [hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1)) for model in models]
    plain = [torch.optim.SGD(model.parameters(), lr=0.1) for model in references]
    for step in range(4):
        for number in (0, 1) if (hvd.rank() + step) % 2 else (1, 0):
            backward(models[number], inputs_of(hvd.rank(), step).double())
        for model, optimizer, reference, opt in zip(models, optimizers, references, plain, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            backward(reference, all_inputs(step).double())
            opt.step()
            opt.zero_grad()
            for one, other in zip(model.parameters(), reference.parameters(), strict=True):
                torch.testing.assert_close(one, other, rtol=0.0, atol=1e-13)


def test_optimizers_in_process_sets() -> None:
    """Two sets that overlap train a model each; rank 0 is in both."""
    if hvd.size() < 2:
        pytest.skip("needs two ranks")
    last = hvd.size() - 1
    sets = [hvd.add_process_set([0, last]), hvd.add_process_set([0])]
    try:
        for members in sets:
            if not members.included():
                with pytest.raises(ValueError, match="member"):
                    hvd.DistributedOptimizer(torch.optim.SGD(make_model().parameters(), lr=0.1), process_set=members)
                continue
            model = make_model()
            optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), process_set=members)
            for step in range(2):
                optimizer.zero_grad()
                backward(model, inputs_of(hvd.rank(), step))
                optimizer.step()
            hvd.check_replicas(model, process_set=members)
            inner = torch.optim.LBFGS(model.parameters(), max_iter=3)
            optimizer.close()
            searching = hvd.DistributedOptimizer(inner, process_set=members)

            def closure(model: nn.Module = model, searching: torch.optim.Optimizer = searching) -> torch.Tensor:
                searching.zero_grad()
                loss: torch.Tensor = model(inputs_of(hvd.rank())).square().mean()
                loss.backward()  # type: ignore[no-untyped-call]
                return loss.detach()

            searching.step(closure)
            hvd.check_replicas(model, searching, process_set=members)
    finally:
        hvd.barrier()
        for members in sets:
            hvd.remove_process_set(members)


def test_state_goes_on_after_a_broadcast_of_it() -> None:
    """As after a restart: rank 0 has loaded a checkpoint, the others have fresh optimizers."""
    model = make_model(seed=hvd.rank())
    inner = torch.optim.Adam(model.parameters())
    if hvd.rank() == 0:
        backward(model, inputs_of(0))
        inner.step()
        inner.zero_grad()
    optimizer = hvd.DistributedOptimizer(inner, model.named_parameters())
    hvd.broadcast_parameters(model.state_dict())
    hvd.broadcast_optimizer_state(optimizer)
    for step in range(2):
        optimizer.zero_grad()
        backward(model, inputs_of(hvd.rank(), step))
        optimizer.step()
    hvd.check_replicas(model, optimizer)


# Random rounds


def value_of(rank: int, number: int, index: int) -> float:
    """The gradient that pass `number` of `rank` adds to parameter `index`: small whole numbers, so sums are exact."""
    return float((rank + 1) * (number + 1) + index)


@pytest.mark.parametrize("seed", range(4))
def test_random_rounds(seed: int) -> None:
    """Unused parameters, passes, drops, groups, delays: all ranks know what all do, and what must come out."""
    common, own = random.Random(seed), random.Random(1000 * seed + hvd.rank())
    parameters = [nn.Parameter(torch.zeros(length, dtype=torch.float64)) for length in (1, 3, 1000, 40_000, 17)]
    indices, ranks = range(len(parameters)), range(hvd.size())
    most_passes = common.choice([1, 3])
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD(parameters, lr=1.0),
        op=hvd.Sum,
        groups=[None, 2, 3, [parameters[1:3], parameters[4:]]][seed],
        backward_passes_per_step=most_passes,
    )
    for _ in range(30):
        optimizer.zero_grad(set_to_none=common.random() < 0.5)
        passes = common.randint(1, most_passes)
        drops = common.random() < 0.15
        used = {
            key: drops or common.random() < 0.6
            for key in ((r, p, i) for r in ranks for p in range(passes) for i in indices)
        }
        for number in range(passes):
            mine = [index for index in indices if used[hvd.rank(), number, index]]
            own.shuffle(mine)
            if mine:
                terms = [(value_of(hvd.rank(), number, index) * parameters[index]).sum() for index in mine]
                torch.stack(terms).sum().backward()
            time.sleep(own.choice([0.0, 0.0, 0.002]))
        if drops:
            continue
        if common.random() < 0.3:
            optimizer.synchronize()
        optimizer.step()
        for index, parameter in enumerate(parameters):
            total = sum(value_of(r, p, i) for (r, p, i), use in used.items() if use and i == index)
            assert (
                total == 0 if parameter.grad is None else torch.equal(parameter.grad, torch.full_like(parameter, total))
            )
    optimizer.zero_grad()
    optimizer.close()
