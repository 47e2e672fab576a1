"""Gradients in buckets: whatever model, order, options and mistakes, all ranks get what one process would compute.

In the first step each gradient travels by itself; so every test makes at least five.

Where parameters are compared with those of a single process, both are float64, and BOUND holds. Both runs compute the
same gradient, as sums of at most n = 2**12 products (samples, positions, ranks) in different orders: they differ by at
most n * u times the sum of magnitudes, u = 2**-53. That sum is below G = 2**5 here, which `against_one_process` checks
of its largest gradient with a factor of 8 to spare for cancellation. So a step adds an error of at most lr * n * u * G.
It multiplies the error that there is by at most 1 + lr * L, where L, the curvature of these losses, is below 2**4:
with lr = 0.02 and 20 steps that is 1.32**20 < 2**9. Together 20 * 2**9 * 0.02 * 2**12 * 2**-53 * 2**5 < 2**-28. Errors
do not all have one sign, which takes off the root of n at least: 2**-28 / 2**6 < 1e-10. A gradient that is lost or
counted twice is off by lr times itself, more than 1e-5.
"""

from __future__ import annotations

import copy
import gc
import random
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
import torch
from rank_data import needs_ranks, nodes_of_ranks
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from training_data import assert_same_on_all_ranks, inputs_of

import ringred as rr
import ringred.torch as hvd
from ringred.torch import buckets

BOUND = 1e-10
LARGE = buckets.ALONE_BYTES
RATE = 0.02
Options = dict[str, Any]
Loss = Callable[[Any, int, int], torch.Tensor]  # of a model, for a rank's batch of a step

WAYS: dict[str, Options] = {
    "late": {"overlap": "on"},  # small gradients travel after the backward pass; in the other ways none does
    "on": {"overlap": "on"},
    "off": {"overlap": "off"},
    "small": {"overlap": "on", "bucket_bytes": 100},
    "none": {"overlap": "on", "bucket_bytes": 0},
}
all_ways = pytest.mark.parametrize("way", ["late", "on", "off", "small"])
all_early_ways = pytest.mark.parametrize("way", ["on", "off", "small"])
overlapping = pytest.mark.parametrize("way", ["late", "on", "off"])


@pytest.fixture(scope="module", autouse=True)
def not_on_four_ranks(world: None) -> None:
    """Two and three ranks run these tests; with four they take too long."""
    if rr.size() == 4:
        pytest.skip("two and three ranks run these")


@pytest.fixture(autouse=True)
def all_sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks have buckets of several gradients, three have a bucket for each, as large ones do."""
    way = request.node.callspec.params.get("way") if hasattr(request.node, "callspec") else None
    if way not in (None, "late"):
        monkeypatch.setattr(buckets, "LATE_BYTES", 0)
    if rr.size() == 3:
        if way == "late":
            pytest.skip("with three ranks no gradient counts as small")
        monkeypatch.setattr(buckets, "ALONE_BYTES", 1)


def ranks() -> range:
    return range(hvd.size())


def inputs(rank: int, step: int) -> torch.Tensor:
    return inputs_of(rank, step).double()


def layers(seed: int = 3, width: int = 9) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(5, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 2)
    ).double()


def squares(model: nn.Module, rank: int, step: int) -> torch.Tensor:
    result: torch.Tensor = model(inputs(rank, step)).square().mean()
    return result


def sgd(model: nn.Module, momentum: float = 0.9) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=RATE, momentum=momentum)


def wrapped(model: nn.Module, way: str = "on", momentum: float = 0.9, **options: Any) -> hvd.DistributedOptimizer:
    return hvd.DistributedOptimizer(sgd(model, momentum), model.named_parameters(), **(WAYS[way] | options))


def backward_of(loss: torch.Tensor, **options: Any) -> None:
    loss.backward(**options)  # type: ignore[no-untyped-call]


def mean_loss(model: nn.Module, loss: Loss, step: int) -> torch.Tensor:
    """Over all ranks, as one process would compute it."""
    return torch.stack([loss(model, rank, step) for rank in ranks()]).mean()


def bits(model: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def assert_close(model: nn.Module, reference: nn.Module) -> None:
    for (name, ours), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.0, atol=BOUND, msg=lambda text, name=name: f"{name}: {text}")


def assert_trains(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Loss = squares, steps: int = 2) -> None:
    """After whatever has happened, steps do what they should, and ranks are equal."""
    reference = copy.deepcopy(model)
    plain = sgd(reference)
    plain.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for step in range(100, 100 + steps):
        optimizer.zero_grad()
        plain.zero_grad()
        backward_of(loss(model, hvd.rank(), step))
        backward_of(mean_loss(reference, loss, step))
        optimizer.step()
        plain.step()
    assert_close(model, reference)
    rr.check_replicas(model, optimizer)


def against_one_process(
    make: Callable[[], nn.Module],
    loss: Loss,
    way: str = "on",
    steps: int = 6,
    momentum: float = 0.9,
    before: Callable[[Any, int], None] = lambda model, step: None,
    after: Callable[[Any, int], None] = lambda model, step: None,
    **options: Any,
) -> nn.Module:
    """Train on all ranks and in one process; gradients are set to None or to zero in turns. `before` and `after`
    prepare a model for a step, before zero_grad() and after it."""
    model, reference = make(), make()
    optimizer, plain = wrapped(model, way, momentum, **options), sgd(reference, momentum)
    for step in range(steps):
        before(model, step)
        before(reference, step)
        optimizer.zero_grad(set_to_none=step % 3 != 2)
        plain.zero_grad(set_to_none=step % 3 != 2)
        after(model, step)
        after(reference, step)
        backward_of(loss(model, hvd.rank(), step))
        backward_of(mean_loss(reference, loss, step))
        optimizer.step()
        plain.step()
        for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
            assert (ours.grad is None) == (theirs.grad is None)
            if theirs.grad is not None and theirs.numel():
                dense = theirs.grad.to_dense() if theirs.grad.is_sparse else theirs.grad
                assert dense.abs().max() < 4
    assert_close(model, reference)
    rr.check_replicas(list(model.named_parameters()), optimizer)
    optimizer.close()
    return model


# Bits


class Wide(nn.Module):
    """13 KB of parameters in some dtype, so that buckets of 4096 bytes hold some."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.Sequential(nn.Linear(5, 50), nn.Tanh(), nn.Linear(50, 50), nn.Tanh(), nn.Linear(50, 2)).to(
            dtype
        )


def trained(dtype: torch.dtype, op: rr.Op, steps: int, options: Options | None) -> list[torch.Tensor]:
    """The parameters; without options gradients are averaged by hand."""
    model = Wide(dtype)
    inner = sgd(model)
    optimizer = (
        inner if options is None else hvd.DistributedOptimizer(inner, model.named_parameters(), op=op, **options)
    )
    for step in range(steps):
        optimizer.zero_grad(set_to_none=step % 4 != 3)
        backward_of(model.layers(inputs_of(hvd.rank(), step).to(dtype)).square().mean())
        if options is None:
            for number, parameter in enumerate(model.parameters()):
                parameter.grad = hvd.allreduce(parameter.grad, op=op, name=f"by.hand.{number}")
        optimizer.step()
    rr.check_replicas(model, inner)
    return bits(model)


@cache
def by_hand(dtype: torch.dtype, op: rr.Op, steps: int) -> list[torch.Tensor]:
    return trained(dtype, op, steps, None)


def assert_equal(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("overlap", ["on", "off"])
@pytest.mark.parametrize("bucket_bytes", [0, 1, 100, 4096, 16 << 20])
def test_bits_do_not_depend_on_buckets_and_overlap(bucket_bytes: int, overlap: str) -> None:
    options = {"bucket_bytes": bucket_bytes, "overlap": overlap}
    for dtype in (torch.float32, torch.bfloat16):
        assert_equal(trained(dtype, rr.Average, 6, options), by_hand(dtype, rr.Average, 6))
    assert_equal(trained(torch.float32, rr.Sum, 6, options), by_hand(torch.float32, rr.Sum, 6))


@pytest.mark.parametrize("bucket_bytes", [4096, 16 << 20])
def test_bits_are_the_same_through_the_whole_measurement_of_overlap(bucket_bytes: int) -> None:
    options = {"bucket_bytes": bucket_bytes, "overlap": "auto"}
    assert_equal(trained(torch.float32, rr.Average, 24, options), by_hand(torch.float32, rr.Average, 24))


def test_bits_are_the_same_from_run_to_run() -> None:
    first, second = (trained(torch.float32, rr.Average, 8, {"overlap": "on", "bucket_bytes": 4096}) for _ in range(2))
    assert_equal(first, second)


def test_gradients_are_views_of_one_bucket_from_the_second_step_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "ALONE_BYTES", LARGE)
    monkeypatch.setattr(buckets, "LATE_BYTES", 0)
    needs_ranks(2)
    model = layers()
    optimizer = wrapped(model)
    addresses = []
    for step in range(5):
        optimizer.zero_grad()
        backward_of(squares(model, hvd.rank(), step))
        addresses.append([parameter.grad.data_ptr() for parameter in model.parameters()])  # type: ignore[union-attr]
        optimizer.step()
    assert addresses[1] == addresses[2] == addresses[3] == addresses[4]
    in_order = sorted((parameter.grad.data_ptr(), parameter.nbytes) for parameter in model.parameters())  # type: ignore[union-attr]
    assert all(0 <= after - (begin + length) < 64 for (begin, length), (after, _) in pairwise(in_order))
    optimizer.close()


def test_an_overlap_that_differs_between_ranks_is_a_mismatch() -> None:
    """Only some of them would take part in the measurement."""
    needs_ranks(2)
    model = layers()
    optimizer = wrapped(model, overlap="auto" if hvd.rank() == 0 else "on")
    backward_of(squares(model, hvd.rank(), 0))
    with pytest.raises(rr.MismatchError, match="overlap"):
        optimizer.step()
    optimizer.close()


# Models


class Case(NamedTuple):
    make: Callable[[], nn.Module]
    loss: Loss


class Embedded(nn.Module):
    def __init__(self, sparse: bool = False, tied: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(7, 3, sparse=sparse)
        self.out = nn.Linear(3, 7)
        if tied:
            self.out.weight = self.words.weight
        self.double()


def of_words(model: Any, rank: int, step: int) -> torch.Tensor:
    words = torch.tensor([rank % 7, 0, 0, (rank + step) % 7])
    return functional.cross_entropy(model.out(model.words(words)), (words + 1) % 7)


class Free(nn.Module):
    """Parameters of these shapes and dtypes, and nothing else."""

    def __init__(self, *shapes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.free = nn.ParameterList(nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in shapes)


def of_complex(model: Any, rank: int, step: int) -> torch.Tensor:
    """Gradients of all three come as lazily conjugated tensors, or of other strides."""
    first, second, third = model.free
    numbers = torch.complex(inputs(rank, step), inputs(rank, step + 1))
    result: torch.Tensor = (numbers @ first.conj()).abs().square().mean() + (second.conj() * numbers.mean()).real
    return result + (third.T.conj() * numbers[:3, :2]).real.square().mean()


def of_shapes(model: Any, rank: int, step: int) -> torch.Tensor:
    scalar, empty, middle, vector, hole = model.free
    predicted = scalar * (inputs(rank, step) @ vector) + empty.sum() + middle.sum() + hole.sum()
    return predicted.square().mean()


def convolutions() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 2), nn.Flatten())
    return net.double().to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def of_images(model: nn.Module, rank: int, step: int) -> torch.Tensor:
    values = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(100 * step + rank)).double()
    result: torch.Tensor = model(values.to(memory_format=torch.channels_last)).square().mean()
    return result


def of_one_twice(model: Any, rank: int, step: int) -> torch.Tensor:
    values = model[0](inputs(rank, step))
    return model[4](model[2](torch.tanh(model[2](values)))).square().mean()  # type: ignore[no-any-return]


def of_many(model: Any, rank: int, step: int) -> torch.Tensor:
    """A sum of all layers, each with a factor of its own."""
    factors = torch.linspace(-1, 1, len(model), dtype=torch.float64).view(-1, 1)
    weight = (factors.unsqueeze(1) * torch.stack([layer.weight for layer in model])).sum(0)
    bias = (factors * torch.stack([layer.bias for layer in model])).sum(0)
    return functional.linear(inputs(rank, step)[:, :2], weight, bias).square().mean() / 100


def many() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(2, 2) for _ in range(300))).double()


CASES = {
    "layers": Case(layers, squares),
    "channels last": Case(convolutions, of_images),
    "dense words": Case(Embedded, of_words),
    "sparse words": Case(lambda: Embedded(sparse=True), of_words),
    "tied": Case(lambda: Embedded(tied=True), of_words),
    "used twice": Case(layers, of_one_twice),
    "complex": Case(lambda: Free((5, 3), (), (2, 3), dtype=torch.complex128), of_complex),
    "shapes": Case(lambda: Free((), (0, 3), (2, 0, 4), (5,), (0,)), of_shapes),
    "many": Case(many, of_many),
}
SEVERAL = ("layers", "sparse words", "complex")  # with all choices
CHOICES: dict[str, Options] = {**WAYS, "groups": {"overlap": "on", "groups": 2}, "one group": {"groups": 1}}


@cache
def alone(name: str, steps: int = 20) -> nn.Module:
    """Trained in one process on the batches of all ranks."""
    case = CASES[name]
    model = case.make()
    optimizer = sgd(model, 0.0)
    for step in range(steps):
        optimizer.zero_grad(set_to_none=step % 3 != 2)
        backward_of(mean_loss(model, case.loss, step))
        optimizer.step()
    return model


@pytest.mark.parametrize(
    ("name", "choice"),
    [
        (name, choice)
        for name in CASES
        for choice in CHOICES
        if choice == "on" or name in SEVERAL or (choice == "small" and name != "many")
    ],
)
def test_models_train_as_in_one_process(name: str, choice: str) -> None:
    case = CASES[name]
    model = case.make()
    optimizer = hvd.DistributedOptimizer(sgd(model, 0.0), model.named_parameters(), **CHOICES[choice])
    for step in range(20):
        optimizer.zero_grad(set_to_none=step % 3 != 2)
        backward_of(case.loss(model, hvd.rank(), step))
        optimizer.step()
    assert_close(model, alone(name))
    rr.check_replicas(list(model.named_parameters()), optimizer)
    optimizer.close()


@all_ways
def test_dtypes_mixed_in_one_model(way: str) -> None:
    """To the bit: gradients of the other ranks from replicas, added in rank order, halves rounded once."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(5, 5) for _ in range(4)))
    for number, dtype in enumerate((torch.bfloat16, torch.float64, torch.bfloat16, torch.float32)):
        model[number].to(dtype)

    def loss(net: Any, rank: int, step: int) -> torch.Tensor:
        values = inputs(rank, step)
        for layer in net:
            values = torch.tanh(layer(values.to(layer.weight.dtype)))
        return values.square().mean()

    optimizer = wrapped(model, way)
    for step in range(6):
        gradients = []
        for rank in ranks():
            replica = copy.deepcopy(model)
            replica.zero_grad()
            backward_of(loss(replica, rank, step))
            gradients.append([parameter.grad for parameter in replica.parameters()])
        optimizer.zero_grad(set_to_none=step % 2 == 0)
        backward_of(loss(model, hvd.rank(), step))
        optimizer.step()
        for number, parameter in enumerate(model.parameters()):
            wide = torch.float32 if parameter.dtype == torch.bfloat16 else parameter.dtype
            nodes: dict[int, torch.Tensor] = {}
            for node, one in zip(nodes_of_ranks(), gradients, strict=True):
                more = one[number].to(wide)  # type: ignore[union-attr]
                nodes[node] = nodes[node] + more if node in nodes else more
            average = sum(nodes.values()) / hvd.size()
            if wide != parameter.dtype and len(nodes) > 1:  # halves: each node divides and rounds
                average = sum((one / hvd.size()).to(parameter.dtype).to(wide) for one in nodes.values())
            assert parameter.grad is not None and isinstance(average, torch.Tensor)
            assert torch.equal(parameter.grad, average.to(parameter.dtype))
    rr.check_replicas(model, optimizer)
    optimizer.close()


# What models and users do


def branches(count: int = 4) -> nn.ModuleList:
    torch.manual_seed(4)
    return nn.ModuleList(nn.Linear(5, 5) for _ in range(count)).double()


def chained(model: Any, order: list[int], rank: int, step: int) -> torch.Tensor:
    values = inputs(rank, step)
    for index in order:
        values = torch.tanh(model[index](values))
    return values.square().mean()


@all_ways
def test_unused_parameters(way: str) -> None:
    """Layer 1 is used never, 2 on even ranks, 3 in odd steps, 4 by one rank in one step, 0 always."""

    def loss(model: Any, rank: int, step: int) -> torch.Tensor:
        order = [0, *[2] * (rank % 2 == 0), *[3] * (step % 2), *[4] * (step == 4 and rank == hvd.size() - 1)]
        return chained(model, order, rank, step)

    model: Any = against_one_process(lambda: branches(5), loss, way, steps=9)
    assert model[1].weight.grad is None


@overlapping
def test_all_steps_with_no_gradient_on_some_ranks(way: str) -> None:
    """In each step one rank has no gradient at all, and takes no backward pass."""
    model, reference = layers(), layers()
    optimizer, plain = wrapped(model, way), sgd(reference)
    for step in range(7):
        idle = step % hvd.size()
        optimizer.zero_grad()
        plain.zero_grad()
        if hvd.rank() != idle or hvd.size() == 1:
            backward_of(squares(model, hvd.rank(), step))
        for rank in ranks():
            if rank != idle or hvd.size() == 1:
                backward_of(squares(reference, rank, step) / hvd.size())
        optimizer.step()
        plain.step()
    assert_close(model, reference)
    rr.check_replicas(model, optimizer)


@pytest.mark.parametrize("size", [-5, 1.5, "x", None])
def test_sizes_of_buckets_are_checked(size: Any) -> None:
    model = branches()
    with pytest.raises(rr.UsageError, match="bucket_bytes must be a whole number, at least 0: it is"):
        hvd.DistributedOptimizer(sgd(model), model.named_parameters(), bucket_bytes=size)


@pytest.mark.parametrize("way", list(WAYS))
@pytest.mark.parametrize("count", [1, 2])
def test_gradients_that_are_parts_of_one_tensor(way: str, count: int) -> None:
    """Those of stacked parameters share torch's counter of changes: a second pass into one counts for all."""
    model, reference = branches(), branches()
    optimizer, plain = wrapped(model, way, backward_passes_per_step=count), sgd(reference)

    def loss(net: Any, rank: int, step: int) -> torch.Tensor:
        weights = torch.stack([layer.weight for layer in net])
        return (inputs(rank, step) @ weights).square().mean()

    for step in range(7):
        optimizer.zero_grad(set_to_none=step % 3 != 2)
        plain.zero_grad(set_to_none=step % 3 != 2)
        for number in range(count):
            backward_of(loss(model, hvd.rank(), step + number))
            backward_of(mean_loss(reference, loss, step + number))
        optimizer.step()
        plain.step()
    assert_close(model, reference)
    rr.check_replicas(model, optimizer)


@all_ways
@pytest.mark.parametrize("when", ["before", "after"])
def test_frozen_and_thawed(way: str, when: str) -> None:
    def toggle(model: Any, step: int) -> None:
        model[0].requires_grad_(step % 3 != 1)
        model[2].requires_grad_(step not in (0, 3, 4))

    against_one_process(layers, squares, way, steps=9, **{when: toggle})


@all_ways
def test_frozen_after_zero_grad_or_between_passes(way: str) -> None:
    """Some parameters get a pass less than others, or a pass that nobody could know of at the beginning."""
    model, reference = branches(), branches()
    optimizer, plain = wrapped(model, way, backward_passes_per_step=2), sgd(reference)
    for step in range(8):
        optimizer.zero_grad(set_to_none=step % 3 != 2)
        plain.zero_grad(set_to_none=step % 3 != 2)
        for number in range(2):
            for net in (model, reference):
                net[1].requires_grad_((step + number) % 2 == 0)
                net[2].requires_grad_(step != 3)
            backward_of(chained(model, [0, 1, 2, 3], hvd.rank(), step))
            backward_of(mean_loss(reference, lambda net, rank, step: chained(net, [0, 1, 2, 3], rank, step), step))
        optimizer.step()
        plain.step()
    assert_close(model, reference)
    rr.check_replicas(model, optimizer)


@all_ways
def test_a_parameter_thawed_when_its_bucket_has_gone(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layer 0 is frozen in the first pass, and gets its gradient in a second one. Never a gradient of one rank only."""
    monkeypatch.setattr(buckets, "ALONE_BYTES", LARGE)
    model, reference = branches(2), branches(2)
    optimizer, plain = wrapped(model, way), sgd(reference)
    for step in range(6):
        optimizer.zero_grad()
        plain.zero_grad()
        thaws = step == 4
        for net in (model, reference):
            net[0].requires_grad_(not thaws)
        if not thaws:
            backward_of(chained(model, [0, 1], hvd.rank(), step))
            backward_of(mean_loss(reference, lambda net, rank, step: chained(net, [0, 1], rank, step), step))
        else:
            for net in (model, reference):
                net[0].requires_grad_(False)
            optimizer.zero_grad()
            optimizer.step()  # a round opens with layer 0 frozen
            backward_of(chained(model, [0, 1], hvd.rank(), step))
            backward_of(mean_loss(reference, lambda net, rank, step: chained(net, [0, 1], rank, step), step))
            for net in (model, reference):
                net[0].requires_grad_(True)
            if way == "on" and hvd.size() > 1:
                with pytest.raises(rr.UsageError, match=r"after its bucket had been sent.*overlap=.off"):
                    backward_of(chained(model, [0], hvd.rank(), step))
                optimizer.zero_grad()
                plain.zero_grad()
                backward_of(chained(model, [0], hvd.rank(), step))
            else:
                backward_of(chained(model, [0], hvd.rank(), step))
            backward_of(mean_loss(reference, lambda net, rank, step: chained(net, [0], rank, step), step))
        optimizer.step()
        plain.step()
        assert_same_on_all_ranks([one.grad for one in model.parameters() if one.grad is not None])
    assert_close(model, reference)


@all_ways
def test_graphs_that_change_with_rank_and_step(way: str) -> None:
    def loss(model: Any, rank: int, step: int) -> torch.Tensor:
        generator = random.Random(100 * step + rank)
        return chained(model, generator.sample(range(6), generator.randint(1, 6)), rank, step)

    against_one_process(lambda: branches(6), loss, way, steps=12)


@overlapping
def test_two_optimizers_on_one_model(way: str) -> None:
    model, reference = layers(), layers()
    pairs = [(wrapped(model[index], way), sgd(reference[index])) for index in (0, 2, 4)]
    for step in range(7):
        for ours, theirs in pairs:
            ours.zero_grad(set_to_none=step % 3 != 2)
            theirs.zero_grad(set_to_none=step % 3 != 2)
        backward_of(squares(model, hvd.rank(), step))
        backward_of(mean_loss(reference, squares, step))
        for ours, theirs in pairs if step % 2 else pairs[::-1]:
            ours.step()
            theirs.step()
    assert_close(model, reference)


@pytest.mark.parametrize("ways", [("late", "on"), ("on", "none"), ("none", "small"), ("small", "late")])
def test_two_optimizers_on_the_same_parameters(ways: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The newer one takes over, with whatever the older one left."""
    needs_ranks(2)
    model = layers()
    optimizers = []
    for way in ways:
        monkeypatch.setattr(buckets, "LATE_BYTES", 8 << 10 if way == "late" else 0)
        optimizers.append(wrapped(model, way))
        assert_trains(model, optimizers[-1], steps=4)
        backward_of(squares(model, hvd.rank(), 3))
    with pytest.raises(rr.UsageError, match="another one has been built"):
        optimizers[0].step()
    optimizers[0].zero_grad()
    optimizers[1].zero_grad()
    assert_trains(model, optimizers[1])
    optimizers[0].close()
    assert_trains(model, optimizers[1])
    optimizers[1].close()


def of_flagged_words(flag: Callable[[int, int], bool]) -> Loss:
    def loss(model: Any, rank: int, step: int) -> torch.Tensor:
        words = torch.tensor([rank % 7, 0, (rank + step) % 7])
        found = functional.embedding(words, model.words.weight, sparse=flag(rank, step))
        return functional.cross_entropy(model.out(found), words)

    return loss


@all_ways
@pytest.mark.parametrize("first_sparse", [True, False])
def test_sparse_gradients_of_what_was_dense_and_the_reverse(way: str, first_sparse: bool) -> None:
    loss = of_flagged_words(lambda rank, step: (step in (0, 1, 5)) == first_sparse)
    against_one_process(Embedded, loss, way, steps=8, momentum=0.0)


@pytest.mark.parametrize("way", ["off", "on"])
def test_gradients_that_are_sparse_on_some_ranks_only(way: str) -> None:
    """They lie in a bucket from the first step on, where they are dense."""
    loss = of_flagged_words(lambda rank, step: step > 0 and (rank + step) % 2 == 0)
    against_one_process(Embedded, loss, way, steps=6, momentum=0.0)


def test_a_parameter_that_was_sparse_becomes_dense_on_some_ranks_only() -> None:
    """After the backward pass ranks agree on a kind. Before that they cannot know: an error on all, and on they go."""
    loss = of_flagged_words(lambda rank, step: step < 2 or rank == 0)
    against_one_process(Embedded, loss, "off", steps=6, momentum=0.0)
    needs_ranks(2)
    model = Embedded()
    optimizer = wrapped(model, "on", momentum=0.0)
    for step in range(2):
        optimizer.zero_grad()
        backward_of(loss(model, hvd.rank(), step))
        optimizer.step()
    optimizer.zero_grad()
    before = bits(model)
    backward_of(loss(model, hvd.rank(), 2))
    with pytest.raises(rr.MismatchError):
        optimizer.step()
    assert_equal(bits(model), before)
    for step in range(2):
        optimizer.zero_grad()
        backward_of(of_words(model, hvd.rank(), step))
        optimizer.step()
    rr.check_replicas(model)
    optimizer.close()


def test_compiled_model() -> None:
    model, reference = layers(), layers()
    try:
        compiled = torch.compile(model, backend="eager")
        compiled(inputs(0, 0))
    except Exception as error:
        pytest.skip(f"torch.compile does not work here: {type(error).__name__}")
    optimizer, plain = wrapped(model), sgd(reference)
    for step in range(5):
        optimizer.zero_grad()
        plain.zero_grad()
        backward_of(squares(compiled, hvd.rank(), step))
        backward_of(mean_loss(reference, squares, step))
        optimizer.step()
        plain.step()
    assert_close(model, reference)


@overlapping
@pytest.mark.parametrize("clips", ["no", "ours", "torch"])
def test_grad_scaler_with_an_overflow_on_one_rank(way: str, clips: str) -> None:
    """Scales are powers of two, so gradients are those of one process but for their order; all skip step 3."""
    model, reference = layers(), layers()
    optimizer, plain = wrapped(model, way), sgd(reference)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(7):
        optimizer.zero_grad()
        plain.zero_grad()
        overflows = step == 3 and hvd.rank() == hvd.size() - 1
        before = bits(model)
        scaled = scaler.scale(squares(model, hvd.rank(), step) * (float("inf") if overflows else 1.0))
        backward_of(scaled)
        if clips != "no":
            scaler.unscale_(optimizer)
        if clips == "ours":
            optimizer.clip_grad_norm_(0.05)
        elif clips == "torch":
            nn.utils.clip_grad_norm_(model.parameters(), 0.05)
        scaler.step(optimizer)
        scaler.update()
        if step == 3:
            assert_equal(bits(model), before)
            continue
        backward_of(mean_loss(reference, squares, step))
        if clips != "no":
            assert nn.utils.clip_grad_norm_(reference.parameters(), 0.05) > 0.05
        plain.step()
    assert scaler.get_scale() == 512.0
    rr.check_replicas(model, optimizer)
    assert_close(model, reference)


@overlapping
def test_autocast(way: str) -> None:
    """Against gradients averaged by hand, to the bit."""
    results = []
    for by_itself in (True, False):
        model = layers().float()
        optimizer: Any = wrapped(model, way) if by_itself else sgd(model)
        for step in range(6):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(inputs_of(hvd.rank(), step)).float().square().mean()
            backward_of(loss)
            if not by_itself:
                for number, parameter in enumerate(model.parameters()):
                    parameter.grad = hvd.allreduce(parameter.grad, name=f"autocast.{number}")
            optimizer.step()
        results.append(bits(model))
    assert_equal(*results)


@overlapping
@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing(way: str, reentrant: bool) -> None:
    def loss(model: Any, rank: int, step: int) -> torch.Tensor:
        values = inputs(rank, step).requires_grad_()
        for begin in (0, 2, 4):
            values = checkpoint(model[begin : begin + 2], values, use_reentrant=reentrant)
        return values.square().mean()

    against_one_process(layers, loss, way)


@all_ways
def test_gradient_penalty(way: str) -> None:
    def loss(model: Any, rank: int, step: int) -> torch.Tensor:
        value = squares(model, rank, step)
        slopes = torch.autograd.grad(value, list(model.parameters())[:4], create_graph=True)
        return value + 0.1 * torch.stack([slope.square().sum() for slope in slopes]).sum()

    against_one_process(layers, loss, way)


@overlapping
@pytest.mark.filterwarnings("ignore:Using backward")
def test_backward_that_makes_a_graph(way: str) -> None:
    """The second of two passes differentiates what the first one left in the gradients."""
    model, reference = layers(), layers()
    optimizer, plain = wrapped(model, way, backward_passes_per_step=2), sgd(reference)
    for step in range(6):
        for net, opt, loss in (
            (model, optimizer, lambda step=step: squares(model, hvd.rank(), step)),
            (reference, plain, None),
        ):
            opt.zero_grad()
            if loss is not None:
                backward_of(loss(), create_graph=True)
                backward_of(torch.stack([one.grad.square().sum() for one in net.parameters()]).sum())  # type: ignore[union-attr]
                continue
            totals = [torch.zeros_like(parameter) for parameter in net.parameters()]
            for rank in ranks():
                net.zero_grad()
                backward_of(squares(net, rank, step), create_graph=True)
                backward_of(torch.stack([one.grad.square().sum() for one in net.parameters()]).sum())  # type: ignore[union-attr]
                for total, parameter in zip(totals, net.parameters(), strict=True):
                    total += parameter.grad.detach() / hvd.size()  # type: ignore[union-attr]
            for total, parameter in zip(totals, net.parameters(), strict=True):
                parameter.grad = total
        optimizer.step()
        plain.step()
    assert_close(model, reference)
    optimizer.zero_grad()


@all_ways
@pytest.mark.parametrize("most", [1, 3])
def test_passes_and_no_sync(way: str, most: int) -> None:
    """In turns all passes, fewer, and further ones that accumulate on each rank only."""
    model, reference = layers(), layers()
    optimizer, plain = wrapped(model, way, backward_passes_per_step=most), sgd(reference)
    for step in range(8):
        optimizer.zero_grad(set_to_none=step % 3 != 2)
        plain.zero_grad(set_to_none=step % 3 != 2)
        quiet = step % 3
        with optimizer.no_sync():
            for number in range(quiet):
                backward_of(squares(model, hvd.rank(), step + 10 * number))
        for number in range(quiet, quiet + max(most - step % 2, quiet == 0)):
            backward_of(squares(model, hvd.rank(), step + 10 * number))
        for number in range(quiet + max(most - step % 2, quiet == 0)):
            backward_of(mean_loss(reference, squares, step + 10 * number))
        optimizer.step()
        plain.step()
    assert_close(model, reference)
    rr.check_replicas(model, optimizer)


@overlapping
def test_retained_graph(way: str) -> None:
    model, reference = layers(), layers()
    optimizer, plain = wrapped(model, way, backward_passes_per_step=2), sgd(reference)
    for step in range(6):
        optimizer.zero_grad()
        plain.zero_grad()
        for loss in (squares(model, hvd.rank(), step), mean_loss(reference, squares, step)):
            backward_of(loss, retain_graph=True)
            backward_of(loss)
        optimizer.step()
        plain.step()
    assert_close(model, reference)


@overlapping
def test_schedules_and_state_go_on_in_another_optimizer(way: str) -> None:
    """To the bit as without the change."""
    results = []
    for changes in (False, True):
        model = layers()
        optimizer = wrapped(model, way)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.7)
        for step in range(10):
            if changes and step == 5:
                states = copy.deepcopy((model.state_dict(), optimizer.state_dict(), schedule.state_dict()))
                optimizer.close()
                model = layers(seed=77)
                optimizer = wrapped(model, way)
                schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.7)
                model.load_state_dict(states[0])
                optimizer.load_state_dict(states[1])
                schedule.load_state_dict(states[2])
            optimizer.zero_grad()
            backward_of(squares(model, hvd.rank(), step))
            optimizer.step()
            schedule.step()
        assert optimizer.param_groups[0]["lr"] == pytest.approx(RATE * 0.7**5)
        results.append(bits(model))
    assert_equal(*results)


def triple(parameter: torch.Tensor) -> None:
    assert parameter.grad is not None
    parameter.grad.mul_(3)


@all_ways
@pytest.mark.parametrize("kind", ["gradient", "in place", "replaced"])
def test_hooks_of_the_users_that_change_gradients(way: str, kind: str) -> None:
    """Registered before the optimizer's; in the reference, which has only one pass for all ranks, they do the same."""

    def hooked() -> nn.Module:
        model = layers()
        for index in (0, 4):
            weight: Any = model[index].weight
            if kind == "gradient":
                weight.register_hook(lambda gradient: gradient * 3)
            elif kind == "in place":
                weight.register_post_accumulate_grad_hook(triple)
            else:
                weight.register_post_accumulate_grad_hook(lambda one: setattr(one, "grad", one.grad * 3))
        return model

    against_one_process(hooked, squares, way)


@all_early_ways
def test_a_hook_after_the_optimizers_that_changes_a_gradient_is_an_error(way: str) -> None:
    needs_ranks(2)
    model = layers()
    optimizer = wrapped(model, way)
    assert_trains(model, optimizer, steps=5)
    weight: Any = model[2].weight
    handle = weight.register_post_accumulate_grad_hook(triple)
    optimizer.zero_grad()
    backward_of(squares(model, hvd.rank(), 0))
    with pytest.raises(rr.UsageError, match=r"may not change between backward.*2\.weight"):
        optimizer.step()
    handle.remove()
    optimizer.zero_grad()
    assert_trains(model, optimizer)


def change_gradient(parameter: torch.Tensor, manner: str) -> None:
    gradient = parameter.grad
    assert gradient is not None
    if manner == "replaced":
        parameter.grad = gradient * 3
    elif manner == "in place":
        gradient.mul_(3)
    elif manner == "data":
        gradient.data = gradient.data * 3
    elif manner == "strided":
        parameter.grad = (gradient * 3).t().contiguous().t()
    elif manner == "sparse":
        parameter.grad = (gradient * 3).to_sparse()
    else:
        parameter.grad = None


@all_early_ways
@pytest.mark.parametrize("manner", ["replaced", "in place", "data", "none"])
def test_a_gradient_set_before_step_is_an_error(way: str, manner: str) -> None:
    needs_ranks(2)
    model = layers()
    optimizer = wrapped(model, way)
    assert_trains(model, optimizer, steps=5)
    optimizer.zero_grad()
    backward_of(squares(model, hvd.rank(), 0))
    change_gradient(model[2].weight, manner)
    with pytest.raises(rr.UsageError, match=r"may not change between backward.*2\.weight"):
        optimizer.step()
    optimizer.zero_grad()
    assert_trains(model, optimizer)


@pytest.mark.filterwarnings("ignore:grad and param do not obey")  # on one rank they do not, indeed
@pytest.mark.parametrize("way", ["late"])
@pytest.mark.parametrize("manner", ["replaced", "in place", "data", "strided", "sparse", "none"])
def test_what_is_done_to_a_small_gradient_before_step_is_in_the_average(way: str, manner: str) -> None:
    model, reference = layers(), layers()
    optimizer, plain = wrapped(model, way), sgd(reference)
    for step in range(8):
        optimizer.zero_grad(set_to_none=step % 3 != 2)
        plain.zero_grad(set_to_none=step % 3 != 2)
        backward_of(squares(model, hvd.rank(), step))
        backward_of(mean_loss(reference, squares, step))
        if step % 2:
            change_gradient(model[2].weight, manner)
            change_gradient(reference[2].weight, manner if manner == "none" else "replaced")
        optimizer.step()
        plain.step()
    assert_close(model, reference)
    rr.check_replicas(model, optimizer)
    optimizer.close()


@pytest.mark.parametrize("way", ["late"])
def test_a_small_gradient_after_synchronize_is_averaged_again(way: str) -> None:
    """Of a parameter whose passes no hook counted before; with op=Sum it is an error."""
    needs_ranks(2)
    model = branches(6)
    optimizer = wrapped(model, way)
    chain = [*range(6)]
    for step in range(4):
        optimizer.zero_grad()
        backward_of(chained(model, chain, hvd.rank(), step))
        optimizer.step()
    optimizer.zero_grad()
    backward_of(chained(model, chain, hvd.rank(), 4))
    optimizer.synchronize()
    first = [parameter.grad.clone() for parameter in model[0].parameters()]
    backward_of(chained(model, [0], hvd.rank(), 5))
    optimizer.step()
    assert_same_on_all_ranks(list(model.parameters()))
    assert all(not torch.equal(a, b.grad) for a, b in zip(first, model[0].parameters(), strict=True))
    assert_same_on_all_ranks([parameter.grad for parameter in model.parameters()])
    optimizer.close()


@all_ways
@pytest.mark.parametrize("set_to_none", [True, False])
def test_memory_of_a_gradient_may_be_replaced_between_synchronize_and_step(way: str, set_to_none: bool) -> None:
    """As code for clipping does that assigns to `grad.data`."""
    model, reference = layers(), layers()
    optimizer, plain = wrapped(model, way), sgd(reference)
    for step in range(8):
        optimizer.zero_grad(set_to_none=set_to_none)
        plain.zero_grad(set_to_none=set_to_none)
        backward_of(squares(model, hvd.rank(), step))
        backward_of(mean_loss(reference, squares, step))
        optimizer.synchronize()
        for net in (model, reference):
            for parameter in net.parameters():
                assert parameter.grad is not None
                if step in (2, 3, 5):
                    parameter.grad.data = parameter.grad.data.clamp(-0.01, 0.01)
        optimizer.step()
        plain.step()
    assert_close(model, reference)
    rr.check_replicas(model, optimizer)


@overlapping
def test_memory_format_changed_between_steps(way: str) -> None:
    def change(model: Any, step: int) -> None:
        model.to(memory_format=torch.contiguous_format if step % 2 else torch.channels_last)

    against_one_process(convolutions, of_images, way, momentum=0.0, steps=7, before=change)


@all_ways
def test_step_without_backward(way: str) -> None:
    model = layers()
    optimizer = wrapped(model, way, momentum=0.0)
    for step in range(7):
        optimizer.zero_grad(set_to_none=step < 5)
        before = bits(model)
        if step % 2 == 0:
            backward_of(squares(model, hvd.rank(), step))
        optimizer.step()
        assert (step % 2 == 0) != all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    rr.check_replicas(model, optimizer)


@all_ways
def test_backward_twice_is_an_error_there(way: str) -> None:
    needs_ranks(2)
    model = layers()
    optimizer = wrapped(model, way)
    for _ in range(3):
        assert_trains(model, optimizer)
        optimizer.zero_grad()
        backward_of(squares(model, hvd.rank(), 0))
        with pytest.raises(rr.UsageError, match="backward_passes_per_step"):
            backward_of(squares(model, hvd.rank(), 1))
        with pytest.raises(rr.UsageError, match="backward_passes_per_step"), optimizer.no_sync():
            backward_of(squares(model, hvd.rank(), 1))
        optimizer.zero_grad()


@all_ways
@pytest.mark.parametrize("place", [0, 2, 4])
def test_an_exception_in_a_users_hook_surfaces_in_backward(way: str, place: int) -> None:
    """Some gradients are on their way by then, some are not; and on another rank others."""
    model = layers()
    optimizer = wrapped(model, way)
    assert_trains(model, optimizer, steps=4)

    def fail(gradient: torch.Tensor) -> None:
        raise ZeroDivisionError

    for _ in range(2):
        optimizer.zero_grad()
        handle = model[(place + 2 * hvd.rank()) % 6].weight.register_hook(fail)  # type: ignore[operator]
        with pytest.raises(ZeroDivisionError):
            backward_of(squares(model, hvd.rank(), 0))
        handle.remove()
        optimizer.zero_grad()
    assert_trains(model, optimizer)


# Weights and clipping


def batches(step: int) -> list[torch.Tensor]:
    """Of 0 to 5 samples, by rank; some step has an empty one on each rank, and none is empty on all."""
    lengths = [(2 * rank + step) % 6 for rank in ranks()]
    if not any(lengths):
        lengths[0] = 1
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(length, 5, generator=generator).double() for length in lengths]


@pytest.mark.parametrize("bucket_bytes", [0, 100, 16 << 20])
@pytest.mark.parametrize("manner", ["backward", "no backward", "clip"])
def test_weights(bucket_bytes: int, manner: str) -> None:
    """An empty batch has nan as its mean, or no backward pass."""
    needs_ranks(2)
    model, reference = layers(), layers()
    optimizer, plain = wrapped(model, "off", bucket_bytes=bucket_bytes), sgd(reference)
    for step in range(8):
        optimizer.zero_grad(set_to_none=step % 3 != 2)
        plain.zero_grad(set_to_none=step % 3 != 2)
        own, everything = batches(step)[hvd.rank()], torch.cat(batches(step))
        if len(own) or manner == "backward":
            backward_of(model(own).square().mean())
        backward_of(reference(everything).square().mean())
        if manner == "clip":
            norm = optimizer.clip_grad_norm_(0.1, weight=len(own))
            torch.testing.assert_close(norm, nn.utils.clip_grad_norm_(reference.parameters(), 0.1))
            optimizer.step()
        else:
            optimizer.step(weight=len(own))
        plain.step()
    assert_close(model, reference)
    rr.check_replicas(model, optimizer)


@pytest.mark.parametrize("overlap", ["on", "auto"])
@pytest.mark.parametrize("steps", [0, 4])
def test_weights_take_overlap_off(overlap: str, steps: int) -> None:
    """An error on all ranks alike, also on one that has nothing on its way."""
    needs_ranks(2)
    model = layers()
    optimizer = wrapped(model, overlap=overlap)
    assert_trains(model, optimizer, steps=steps)
    optimizer.zero_grad()
    if hvd.rank() != 0:
        backward_of(squares(model, hvd.rank(), 0))
    for call in (lambda: optimizer.step(weight=3), lambda: optimizer.clip_grad_norm_(1.0, weight=3)):
        with pytest.raises(rr.UsageError, match=r'build the optimizer with .*overlap="off"'):
            call()
    optimizer.step()
    assert_trains(model, optimizer)


@pytest.mark.parametrize("steps", [0, 5])
def test_a_weight_on_one_rank_only_is_a_mismatch(steps: int) -> None:
    needs_ranks(2)
    model = layers()
    optimizer = wrapped(model, "off")
    assert_trains(model, optimizer, steps=steps)
    optimizer.zero_grad()
    before = bits(model)
    backward_of(squares(model, hvd.rank(), 0))
    with pytest.raises(rr.MismatchError, match="weights are for all or none"):
        optimizer.step(weight=3 if hvd.rank() == 1 else None)
    assert_equal(bits(model), before)
    optimizer.zero_grad()
    assert_trains(model, optimizer)


def test_weights_of_no_samples_at_all() -> None:
    needs_ranks(2)
    model = layers()
    optimizer = wrapped(model, "off")
    assert_trains(model, optimizer, steps=5)
    optimizer.zero_grad()
    with pytest.raises(rr.UsageError, match="more than 0"):
        optimizer.step(weight=0)
    optimizer.zero_grad()
    assert_trains(model, optimizer)


CLIPPED = {
    "layers": Case(layers, squares),
    "unused": Case(
        lambda: branches(3), lambda model, rank, step: chained(model, [0, *[1] * (rank == step % 2)], rank, step)
    ),
    "sparse": Case(lambda: Embedded(sparse=True), of_words),
    "complex": CASES["complex"],
    "shapes": CASES["shapes"],
    "channels last": CASES["channels last"],
}


@pytest.mark.parametrize("way", ["on", "none"])
@pytest.mark.parametrize("name", list(CLIPPED))
def test_clipping_equals_torchs_on_averages(name: str, way: str) -> None:
    """The norm is a sum of squares in float64 here as there, in another order: far below 1e-12 of itself. A step is
    clipped, the next one not."""
    if name in ("sparse", "complex"):
        needs_ranks(2)  # a single process has torch's function, which takes neither
    case = CLIPPED[name]
    model, reference = case.make(), case.make()
    optimizer, plain = wrapped(model, way, momentum=0.0), sgd(reference, momentum=0.0)
    for step in range(7):
        optimizer.zero_grad(set_to_none=step % 3 != 2)
        plain.zero_grad(set_to_none=step % 3 != 2)
        backward_of(case.loss(model, hvd.rank(), step))
        backward_of(mean_loss(reference, case.loss, step))
        gradients = [one.grad for one in reference.parameters() if one.grad is not None]
        dense = [(one.to_dense() if one.is_sparse else one).flatten() for one in gradients]
        expected = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(one) for one in dense]))
        limit = float(expected) * (0.5 if step % 2 else 2.0)
        norm = optimizer.clip_grad_norm_(limit)
        torch.testing.assert_close(norm, expected, rtol=1e-12, atol=0.0)
        assert_same_on_all_ranks([norm])
        for one in gradients:
            one.mul_(min(1.0, limit / (float(expected) + 1e-6)))
        optimizer.step()
        plain.step()
    assert_close(model, reference)
    rr.check_replicas(list(model.named_parameters()), optimizer)


@all_ways
def test_clipping_sees_what_was_done_to_the_averages(way: str) -> None:
    """After synchronize() gradients may be edited, by clipping as well: the next norm is that of the result."""
    model = layers()
    optimizer = wrapped(model, way)
    for step in range(5):
        optimizer.zero_grad()
        backward_of(squares(model, hvd.rank(), step))
        if step % 2:
            optimizer.synchronize()
            for parameter in model.parameters():
                assert parameter.grad is not None
                parameter.grad.mul_(4)
        first = float(optimizer.clip_grad_norm_(1e-3))
        assert first > 1e-3
        assert float(optimizer.clip_grad_norm_(1.0)) == pytest.approx(1e-3 * first / (first + 1e-6), rel=1e-12)
        optimizer.step()
    rr.check_replicas(model, optimizer)


def test_clipping_when_a_rank_has_joined() -> None:
    """Its gradients count as zeros. Without buckets: of their norm it would have to tell its part."""
    needs_ranks(2)
    model = layers()
    optimizer = wrapped(model, "none")
    for step in range(5 if hvd.rank() == 0 else 7):
        optimizer.zero_grad()
        backward_of(squares(model, hvd.rank(), step))
        norm = optimizer.clip_grad_norm_(1e9)
        parts = [torch.linalg.vector_norm(one.grad) for one in model.parameters() if one.grad is not None]
        torch.testing.assert_close(norm, torch.linalg.vector_norm(torch.stack(parts)), rtol=1e-12, atol=0.0)
        optimizer.step()
    hvd.join()
    optimizer.close()


# Memory


@contextmanager
def collected_by_hand() -> Iterator[None]:
    gc.freeze()  # what there is, so that a collection takes no time
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


@all_ways
@pytest.mark.parametrize("where", ["after zero_grad", "after step", "after backward"])
def test_nothing_keeps_model_and_optimizer(way: str, where: str) -> None:
    with collected_by_hand():
        model = layers()
        optimizer = wrapped(model, way)
        for step in range(5):
            optimizer.zero_grad()
            backward_of(squares(model, hvd.rank(), step))
            optimizer.step()
        if where == "after zero_grad":
            optimizer.zero_grad()
        elif where == "after backward":
            optimizer.zero_grad()
            backward_of(squares(model, hvd.rank(), 5))
            optimizer.synchronize()
        weak = [weakref.ref(one) for one in (model, optimizer, *model.parameters())]
        kept = model[2].weight.grad
        values = None if kept is None else kept.clone()
        del model, optimizer
        gc.collect()
        assert [one() for one in weak] == [None] * len(weak)
        others = [hvd.empty(100_000).fill_(7.0) for _ in range(3)]
        if kept is not None and values is not None:
            assert torch.equal(kept, values)
            kept.add_(1)
            assert torch.equal(kept, values + 1)
        assert all(bool((other == 7).all()) for other in others)


def test_arena_memory_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fifty models, one after the other, have their buckets in the same few places."""
    monkeypatch.setattr(buckets, "LATE_BYTES", 0)
    needs_ranks(2)
    places = set()
    with collected_by_hand():
        for _ in range(50):
            model = layers(width=50)
            optimizer = wrapped(model)
            for step in range(2):
                optimizer.zero_grad()
                backward_of(squares(model, hvd.rank(), step))
                optimizer.step()
            assert model[0].weight.grad is not None
            places.add(model[0].weight.grad.data_ptr())
            del model, optimizer
            gc.collect()
    assert len(places) <= 3


@all_ways
def test_close_removes_hooks_and_gradients_stay(way: str) -> None:
    model = layers()
    optimizer = wrapped(model, way)
    assert_trains(model, optimizer, steps=5)
    optimizer.close()
    assert not any(parameter._post_accumulate_grad_hooks for parameter in model.parameters())  # type: ignore[attr-defined]
    before = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    backward_of(squares(model, hvd.rank(), 3))
    replica = copy.deepcopy(model)
    replica.zero_grad()
    backward_of(squares(replica, hvd.rank(), 3))
    for old, parameter, alone_ in zip(before, model.parameters(), replica.parameters(), strict=True):
        assert parameter.grad is not None and alone_.grad is not None
        torch.testing.assert_close(parameter.grad, old + alone_.grad, rtol=0.0, atol=BOUND)
