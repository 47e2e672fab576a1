"""Training on all ranks does what one process does on all data, and leaves the same bits everywhere.

Distances to a single process have derived bounds. With u = eps / 2 of the dtype, a sum of k terms in any order errs by
at most (k - 1) * u * sum of magnitudes; the bounds below count the terms.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("op_name", ["Average", "Sum"])
def test_gradients_are_reduced_over_ranks(dtype: torch.dtype, op_name: str) -> None:
    size = hvd.size()
    model = make_model().to(dtype)
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1), model.named_parameters(), op=getattr(hvd, op_name)
    )
    inputs = inputs_of(hvd.rank()).to(dtype)
    backward(model, inputs)
    optimizer.synchronize()
    replicas = []
    for rank in range(size):
        replica = copy.deepcopy(model)
        replica.zero_grad()
        backward(replica, inputs_of(rank).to(dtype))
        replicas.append([parameter.grad.double() for parameter in replica.parameters()])  # type: ignore[union-attr]
    divisor = size if op_name == "Average" else 1
    # n - 1 additions, one division; half types one rounding of the fp32 result more, and up to one rounding a step in
    # a schedule, which n also covers.
    unit = torch.finfo(dtype).eps / 2
    for index, parameter in enumerate(model.parameters()):
        terms = torch.stack([replica[index] for replica in replicas])
        bound = (size + 1) * unit * terms.abs().sum(0) / divisor
        assert parameter.grad is not None
        assert bool(((parameter.grad.double() - terms.sum(0) / divisor).abs() <= bound).all())
    assert_same_on_all_ranks([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    optimizer.close()


OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-2, eps=1e-4),
}


@pytest.mark.parametrize("kind", sorted(OPTIMIZERS))
@pytest.mark.parametrize("set_to_none", [True, False])
def test_training_equals_a_single_process_on_the_global_batch(kind: str, set_to_none: bool) -> None:
    """In float64, 20 steps: 1e-12 is 4500 eps; terms in a sum, factors of Adam's 1/eps and steps stay far below that
    product of 20 steps and about 100 roundings a step, and any real mistake is larger than 1e-3."""
    steps = 20
    model = make_model(seed=hvd.rank()).double()
    hvd.broadcast_parameters(model.state_dict())
    reference = copy.deepcopy(model)
    plain = OPTIMIZERS[kind](list(reference.parameters()))
    optimizer = hvd.DistributedOptimizer(OPTIMIZERS[kind](list(model.parameters())), model.named_parameters())
    for step in range(steps):
        for net, opt, inputs in (
            (model, optimizer, inputs_of(hvd.rank(), step)),
            (reference, plain, all_inputs(step)),
        ):
            opt.zero_grad(set_to_none=set_to_none)
            backward(net, inputs.double())
            opt.step()
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.0, atol=1e-12)
    assert_same_on_all_ranks(list(model.parameters()))
    assert (hvd.size() == 1) == (optimizer.communication_seconds == 0.0)


def test_large_and_small_gradients() -> None:
    """Parameters of 4 MiB and many small ones; powers of two as values, so that sums are exact."""
    sizes = [1 << 20, 3, 70_001, 1, 150_000, 200_003, 17]
    parameters = [nn.Parameter(torch.zeros(length)) for length in sizes]
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(parameters, lr=1.0), op=hvd.Sum)
    for step in range(3):
        optimizer.zero_grad()
        weight = float(2 ** ((hvd.rank() + step) % 8))
        sum(
            ((index + 1) * weight * parameter.sum() for index, parameter in enumerate(parameters)), torch.zeros(())
        ).backward()
        optimizer.synchronize()
        total = sum(float(2 ** ((rank + step) % 8)) for rank in range(hvd.size()))
        for index, parameter in enumerate(parameters):
            assert parameter.grad is not None
            assert torch.equal(parameter.grad, torch.full_like(parameter, (index + 1) * total))
        optimizer.step()


def test_parameter_that_some_ranks_do_not_use() -> None:
    model = TwoBranches()
    hvd.broadcast_parameters(model.state_dict())
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.5), model.named_parameters())
    for _ in range(2):
        optimizer.zero_grad()
        branch = 0 if hvd.rank() == 0 else 1  # rank 0 alone in branch 0; with a single rank nobody is in branch 1
        model(torch.ones(1, 2), branch).sum().backward()
        optimizer.step()
        share = 1 / hvd.size()
        expected = torch.full((1, 2), share)
        torch.testing.assert_close(model.branches[0].weight.grad, expected)
        if hvd.size() > 1:
            torch.testing.assert_close(model.branches[1].weight.grad, 1 - expected)
        else:
            assert model.branches[1].weight.grad is None
        assert model.never.weight.grad is None
    assert_same_on_all_ranks(list(model.parameters()))


def test_accumulation_and_no_sync() -> None:
    model, reference = make_model().double(), make_model().double()
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), backward_passes_per_step=2)
    plain = torch.optim.SGD(reference.parameters(), lr=0.1)
    for passes in (2, 1):
        optimizer.zero_grad()
        plain.zero_grad()
        for step in range(passes):
            backward(model, inputs_of(hvd.rank(), step).double())
            backward(reference, all_inputs(step).double())
        with optimizer.no_sync():
            if passes == 1:
                backward(model, inputs_of(hvd.rank(), 7).double())
                backward(reference, all_inputs(7).double())
        optimizer.step()
        plain.step()
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.0, atol=1e-13)
    assert_same_on_all_ranks(list(model.parameters()))


def test_lbfgs_decides_alike_on_all_ranks() -> None:
    model = make_model().double()
    inner = torch.optim.LBFGS(model.parameters(), max_iter=8, line_search_fn="strong_wolfe")
    optimizer = hvd.DistributedOptimizer(inner)
    losses = []
    for _ in range(3):

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss: torch.Tensor = model(inputs_of(hvd.rank()).double()).square().mean()
            loss.backward()  # type: ignore[no-untyped-call]
            return loss.detach()

        losses.append(float(optimizer.step(closure)))
    assert losses[-1] < losses[0]
    assert_same_on_all_ranks([torch.tensor(losses), *model.parameters()])


def test_zero_grad_drops_a_pass_that_ranks_got_differently_far_with() -> None:
    model = TwoBranches()
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.5), model.named_parameters())
    model(torch.ones(1, 2), hvd.rank() % 2).sum().backward()
    optimizer.zero_grad()
    model(torch.ones(1, 2), 0).sum().backward()
    optimizer.step()
    torch.testing.assert_close(model.branches[0].weight.grad, torch.ones(1, 2))
    assert_same_on_all_ranks(list(model.parameters()))


def test_ranks_with_different_models_get_an_error_and_go_on() -> None:
    if hvd.size() == 1:
        pytest.skip("needs two ranks")
    parameters = [nn.Parameter(torch.ones(3))]
    name = "odd" if hvd.rank() == hvd.size() - 1 else "even"
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(parameters, lr=0.5), [(name, parameters[0])])
    parameters[0].sum().backward()
    with pytest.raises(rr.MismatchError, match=r"'even' of shape \(3,\), torch.float32 on rank 0.*'odd'"):
        optimizer.step()
    total = hvd.allreduce(torch.ones(1), op=hvd.Sum)
    assert total.item() == hvd.size()
    optimizer.close()


@pytest.mark.parametrize("steps_before", [0, 1])
def test_a_rank_that_drops_a_step_is_a_mismatch(steps_before: int) -> None:
    """Its zero_grad() must not pair with the step of the others: the models would part without a word."""
    if hvd.size() == 1:
        pytest.skip("needs two ranks")
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 2)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    for _ in range(steps_before):
        model(torch.ones(3, 4)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    model(torch.ones(3, 4)).sum().backward()
    with pytest.raises(rr.MismatchError, match=r"rank\(s\) 1.* called step\(\).*rank\(s\) 0 called zero_grad"):
        optimizer.zero_grad() if hvd.rank() == 0 else optimizer.step()
    optimizer.close()


def test_join_with_uneven_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank r has r batches more than rank 0; those that have joined count as zeros in the averages."""
    monkeypatch.setenv("RINGRED_GPU", "staged")  # which join() takes
    size = hvd.size()
    model = nn.Linear(1, 1, bias=False).double()
    model.weight.data.zero_()
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=1.0))
    for batch in range(hvd.rank() + 1):
        optimizer.zero_grad()
        model(torch.ones(1, 1, dtype=torch.float64)).sum().backward()
        optimizer.step()
        torch.testing.assert_close(model.weight.grad, torch.full((1, 1), (size - batch) / size, dtype=torch.float64))
    hvd.join()
    hvd.broadcast_parameters(model.state_dict(), root_rank=size - 1)
    assert_same_on_all_ranks(list(model.parameters()))
