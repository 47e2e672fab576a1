"""The fused step does what torch's optimizer does with averaged gradients, and leaves the same bits on all ranks.

fused_data.py derives how far the two may be apart.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fused_data import (
    SHAPES,
    Make,
    Twins,
    assert_same_states,
    assert_within,
    averages,
    bound,
    generator,
    give_gradients,
    gradients_of,
    make_parameters,
)
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import SGD, Adam, AdamW
from torch.utils.checkpoint import checkpoint
from training_data import TwoBranches, all_inputs, assert_same_on_all_ranks, backward, inputs_of, make_model

import ringred as rr
import ringred.torch as hvd


@pytest.fixture(scope="module", autouse=True)
def not_on_four_ranks(world: None) -> None:
    """Two and three ranks run these tests; with four they take too long."""
    if rr.size() == 4:
        pytest.skip("two and three ranks run these")


RULES: dict[str, Make] = {
    "sgd": lambda given: SGD(given, lr=0.05),
    "sgd, decay, maximize": lambda given: SGD(given, lr=0.05, weight_decay=0.01, maximize=True),
    "momentum": lambda given: SGD(given, lr=0.05, momentum=0.9),
    "dampening": lambda given: SGD(given, lr=0.05, momentum=0.8, dampening=0.3, weight_decay=0.01),
    "nesterov": lambda given: SGD(given, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "nesterov, maximize": lambda given: SGD(given, lr=0.05, momentum=0.7, nesterov=True, maximize=True),
    "adam": lambda given: Adam(given, lr=0.01),
    "adam, decay, betas": lambda given: Adam(given, lr=0.01, weight_decay=0.01, betas=(0.4, 0.9), eps=1e-4),
    "amsgrad": lambda given: Adam(given, lr=0.01, amsgrad=True, betas=(0.8, 0.7)),
    "adam, maximize": lambda given: Adam(given, lr=0.01, maximize=True, weight_decay=0.01),
    "adamw": lambda given: AdamW(given, lr=0.01),
    "adamw, amsgrad": lambda given: AdamW(given, lr=0.01, weight_decay=0.01, amsgrad=True, betas=(0.9, 0.6)),
    "adamw, maximize": lambda given: AdamW(given, lr=0.01, weight_decay=0.01, maximize=True),
    "rate in a tensor": lambda given: AdamW(given, lr=torch.tensor(0.01, dtype=torch.float64)),
}

DOUBLE, SINGLE = torch.float64, torch.float32


def needs_two_ranks() -> None:
    if hvd.size() == 1:
        pytest.skip("needs two ranks")


def fused_sgd(model: nn.Module, lr: float = 0.1, momentum: float = 0.9, **options: Any) -> hvd.DistributedOptimizer:
    inner = SGD(model.parameters(), lr=lr, momentum=momentum)
    return hvd.DistributedOptimizer(inner, model.named_parameters(), fused=True, **options)


def double_model() -> nn.Sequential:
    model = make_model().double()
    assert isinstance(model, nn.Sequential)
    return model


def train(model: nn.Module, optimizer: Any, inputs: torch.Tensor) -> None:
    optimizer.zero_grad()
    backward(model, inputs.double())
    optimizer.step()


def assert_trained_alike(model: nn.Module, reference: nn.Module, atol: float = 1e-13) -> None:
    """For gradients of batches, whose sums are rounded in another order: some hundred eps of values around 1."""
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.0, atol=atol)
    assert_same_on_all_ranks(list(model.parameters()))


# The rules


@pytest.mark.parametrize("rule", RULES)
def test_rules(rule: str) -> None:
    twins = Twins(make_parameters(), RULES[rule])
    for _ in range(50):
        twins.step()
        twins.check()
    assert_same_states(twins.fused.state_dict(), twins.plain.state_dict(), bound(1, DOUBLE, 500.0))


@pytest.mark.parametrize("rule", ["nesterov", "amsgrad", "adamw"])
def test_rules_in_float32(rule: str) -> None:
    twins = Twins(make_parameters(dtype=SINGLE), RULES[rule])
    for _ in range(50):
        twins.step()
        twins.check()


@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE], ids=str)
def test_one_step_is_within_two_eps(dtype: torch.dtype) -> None:
    """From the same state, and of what is added."""
    for rule in ("nesterov", "adam, decay, betas", "adamw"):
        twins = Twins(make_parameters([(1000,)], dtype), RULES[rule])
        twins.step()
        for ours, theirs in zip(twins.ours, twins.theirs, strict=True):
            assert_within(ours, theirs, 2 * torch.finfo(dtype).eps * (1 + 0.2))
        twins.fused.close()


def test_op_sum() -> None:
    twins = Twins(make_parameters(), RULES["adamw"], op=hvd.Sum)
    for _ in range(10):
        twins.step()
        twins.check()


def test_large_parameters() -> None:
    """Each rank owns several parts of these: they have more than 2 MiB for each of up to four ranks."""
    twins = Twins(make_parameters([(3,), (1_100_003,), (1,), (70_001,)]), RULES["nesterov"])
    for _ in range(2):
        twins.step()
    twins.check()
    assert_same_states(twins.fused.state_dict(), twins.plain.state_dict(), bound(1, DOUBLE, 500.0))


def test_groups_of_several_rates() -> None:
    """Names in another order than the groups, and dtypes that alternate."""
    dtypes = [DOUBLE, SINGLE, DOUBLE, SINGLE, DOUBLE, DOUBLE]
    parameters = [make_parameters([shape], dtype)[0] for shape, dtype in zip(SHAPES, dtypes, strict=True)]

    def make(given: list[nn.Parameter]) -> SGD:
        groups = [
            {"params": [given[5], given[0]], "lr": 0.01, "weight_decay": 0.01},
            {"params": [given[2]], "momentum": 0.0},
            {"params": [given[4], given[1], given[3]], "maximize": True, "dampening": 0.2},
        ]
        return SGD(groups, lr=0.05, momentum=0.9)

    twins = Twins(parameters, make)
    for _ in range(10):
        twins.step()
        twins.check()
    assert_same_states(twins.fused.state_dict(), twins.plain.state_dict(), bound(10, SINGLE, 100.0))


SCHEDULERS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "step": ("momentum", lambda one: torch.optim.lr_scheduler.StepLR(one, 3, gamma=0.5)),
    "one cycle, momentum": (
        "momentum",
        lambda one: torch.optim.lr_scheduler.OneCycleLR(one, 0.05, total_steps=12, base_momentum=0.6, max_momentum=0.9),
    ),
    "one cycle, betas": ("adam", lambda one: torch.optim.lr_scheduler.OneCycleLR(one, 0.01, total_steps=12)),
    "cosine, rate in a tensor": (
        "rate in a tensor",
        lambda one: torch.optim.lr_scheduler.CosineAnnealingLR(one, T_max=12),
    ),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers(name: str) -> None:
    """They change rates between steps, and do not warn that they are called in the wrong order."""
    rule, make = SCHEDULERS[name]
    twins = Twins(make_parameters(), RULES[rule])
    schedulers = [make(twins.fused), make(twins.plain)]
    for _ in range(11):
        twins.step()
        for scheduler in schedulers:
            scheduler.step()
        twins.check()
    assert twins.fused.param_groups[0]["lr"] == twins.plain.param_groups[0]["lr"] != 0.05


def test_a_single_process_is_left_alone() -> None:
    model = double_model()
    before = [parameter.data_ptr() for parameter in model.parameters()]
    optimizer = fused_sgd(model)
    train(model, optimizer, inputs_of(hvd.rank()))
    moved = [parameter.data_ptr() for parameter in model.parameters()] != before
    assert moved == (hvd.size() > 1)
    assert bool(optimizer.state) == (hvd.size() == 1)
    assert (optimizer.communication_seconds == 0.0) == (hvd.size() == 1)


# Any models, and gradients that not all have

RATES_OF_GROUPS = st.fixed_dictionaries(
    {"lr": st.sampled_from([0.0, 0.003, 0.01]), "weight_decay": st.sampled_from([0.0, 0.01]), "maximize": st.booleans()}
)
MOMENTA = st.sampled_from([(0.0, 0.0, False), (0.9, 0.0, False), (0.5, 0.25, False), (0.9, 0.0, True)])
BETAS = st.sampled_from([(0.9, 0.999), (0.5, 0.9), (0.0, 0.9), (0.9, 0.5)])
SIZES = st.lists(st.sampled_from([1, 1, 2, 3, 5, 8, 17, 0]), max_size=3).map(tuple)
PARAMETERS = st.lists(st.tuples(SIZES, st.sampled_from([SINGLE, DOUBLE]), st.integers(0, 2)), min_size=1, max_size=9)


@settings(max_examples=25, deadline=None, derandomize=True, database=None, phases=[Phase.generate])
@given(
    rule=st.sampled_from([SGD, Adam, AdamW]),
    parameters=PARAMETERS,
    rates=st.lists(RATES_OF_GROUPS, min_size=3, max_size=3),
    momenta=st.lists(MOMENTA, min_size=3, max_size=3),
    betas=st.lists(BETAS, min_size=3, max_size=3),
    amsgrad=st.booleans(),
    presence=st.lists(st.integers(0, 2**36 - 1), min_size=1, max_size=5),
    saves=st.integers(0, 4),
)
def test_random_models(
    rule: type,
    parameters: list[tuple[tuple[int, ...], torch.dtype, int]],
    rates: list[dict[str, Any]],
    momenta: list[tuple[float, float, bool]],
    betas: list[tuple[float, float]],
    amsgrad: bool,
    presence: list[int],
    saves: int,
) -> None:
    """Bits of `presence` tell which rank has which gradient; a parameter that no rank has one of does not step."""
    made = [make_parameters([shape], dtype)[0] for shape, dtype, _ in parameters]
    groups = [number for _, _, number in parameters]

    def make(given: list[nn.Parameter]) -> Any:
        all_groups = []
        for number in sorted(set(groups)):
            options: dict[str, Any] = {"amsgrad": amsgrad, "betas": betas[number]}
            if rule is SGD:
                options = dict(zip(("momentum", "dampening", "nesterov"), momenta[number], strict=True))
            members = [one for one, group in zip(given, groups, strict=True) if group == number]
            all_groups.append({"params": members, **rates[number], **options})
        return rule(all_groups)

    twins = Twins(made, make)
    for step, bits in enumerate(presence):

        def exists(rank: int, index: int, bits: int = bits) -> bool:
            return bool(bits >> (9 * (rank % 4) + index) & 1)

        before = [parameter.detach().clone() for parameter in made]
        twins.step(exists)
        twins.check()
        for index, (parameter, old) in enumerate(zip(made, before, strict=True)):
            if not any(exists(rank, index) for rank in range(hvd.size())):
                assert torch.equal(parameter, old)
        if step == saves:
            state = twins.fused.state_dict()
            assert_same_states(state, twins.plain.state_dict(), bound(5, SINGLE, 500.0))
            twins.fused.load_state_dict(state)
    assert_same_states(twins.fused.state_dict(), twins.plain.state_dict(), bound(5, SINGLE, 500.0))
    twins.fused.close()


def test_parameters_that_ranks_use_differently() -> None:
    """Rank 0 alone uses one branch, and it changes with every step; nobody uses the third."""
    model, reference = TwoBranches().double(), TwoBranches().double()
    hvd.broadcast_parameters(model.state_dict())
    reference.load_state_dict(model.state_dict())
    optimizer, plain = fused_sgd(model), SGD(reference.parameters(), lr=0.1, momentum=0.9)
    inputs, size = torch.ones(1, 2, dtype=DOUBLE), hvd.size()
    for step in range(4):
        optimizer.zero_grad()
        model(inputs, (step + (hvd.rank() != 0)) % 2).sum().backward()
        optimizer.step()
        plain.zero_grad()
        sum(reference(inputs, (step + (rank != 0)) % 2).sum() / size for rank in range(size)).backward()  # type: ignore[union-attr]
        plain.step()
        assert model.never.weight.grad is None
    assert_trained_alike(model, reference)
    never = 4 if size == 1 else len(optimizer.state_dict()["state"])
    assert never in (2, 4)


# What becomes of gradients


@pytest.mark.parametrize("keep", [False, True])
def test_gradients_after_a_step(keep: bool) -> None:
    """The last rank has no gradient of one parameter, and no rank of another one; float32 beside float64."""
    parameters = [*make_parameters(), *make_parameters(SHAPES[:4], SINGLE)]
    named = [(str(index), parameter) for index, parameter in enumerate(parameters)]
    optimizer = hvd.DistributedOptimizer(SGD(parameters, lr=0.05), named, fused=True, keep_gradients=keep)
    for step in range(3):
        own = gradients_of(hvd.rank(), step, parameters)
        own[1] = None if hvd.rank() == hvd.size() - 1 and hvd.size() > 1 else own[1]
        own[2] = None
        exists = [index != 2 for index in range(len(parameters))]
        optimizer.zero_grad(set_to_none=True)
        give_gradients(parameters, own)
        for parameter, gradient in zip(parameters, own, strict=True):
            assert gradient is None or torch.equal(parameter.grad, gradient)  # type: ignore[arg-type]
        optimizer.step()
        wanted = averages(own, parameters, exists) if keep else own
        for parameter, gradient in zip(parameters, wanted, strict=True):
            assert (parameter.grad is None) == (gradient is None)
            assert gradient is None or torch.equal(parameter.grad, gradient)  # type: ignore[arg-type]


def test_measuring_leaves_gradients_alone() -> None:
    parameters = make_parameters()
    optimizer = hvd.DistributedOptimizer(SGD(parameters, lr=0.05), fused=True)
    own = gradients_of(hvd.rank(), 0, parameters)
    give_gradients(parameters, own)
    optimizer.clip_grad_norm_(1e3)
    for parameter, gradient in zip(parameters, own, strict=True):
        assert parameter.grad is not None and gradient is not None and torch.equal(parameter.grad, gradient)
    optimizer.zero_grad()


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad(set_to_none: bool) -> None:
    """Also of a pass that is dropped; gradients that are kept as zeros do not come back."""
    model, reference = double_model(), double_model()
    optimizer, plain = fused_sgd(model), SGD(reference.parameters(), lr=0.1, momentum=0.9)
    for step in range(6):
        for net, opt, inputs in ((model, optimizer, inputs_of(hvd.rank(), step)), (reference, plain, all_inputs(step))):
            opt.zero_grad(set_to_none)
            backward(net, inputs.double())
            if step % 3 != 1:
                opt.step()
    optimizer.zero_grad(set_to_none)
    for parameter in model.parameters():
        assert parameter.grad is None if set_to_none else not parameter.grad.any()  # type: ignore[union-attr]
    assert_trained_alike(model, reference)


def test_a_step_without_gradients_changes_nothing() -> None:
    model = double_model()
    optimizer = fused_sgd(model, keep_gradients=True)
    before = copy.deepcopy(model.state_dict())
    for _ in range(2):
        optimizer.step()
        optimizer.zero_grad()
    assert optimizer.clip_grad_norm_(1.0).item() == 0.0
    optimizer.step()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert optimizer.state_dict()["state"] == {}
    assert all(parameter.grad is None for parameter in model.parameters())


# Clipping


@pytest.mark.parametrize("max_norm", [0.25, 1e6])
@pytest.mark.parametrize("twice", [False, True])
def test_clipping(max_norm: float, twice: bool) -> None:
    """The norm is that of the averages: n squares and additions in float64, so n eps. What comes after is a step that
    is not clipped."""
    parameters = [*make_parameters(), *make_parameters(SHAPES[:2], SINGLE)]
    twins = Twins(parameters, RULES["adamw"])
    for step in range(6):
        own = gradients_of(hvd.rank(), step, parameters)
        twins.fused.zero_grad()
        give_gradients(parameters, own)
        for theirs, average in zip(twins.theirs, averages(own, parameters, [True] * len(own)), strict=True):
            theirs.grad = average
        if step != 3:
            wanted = torch.nn.utils.get_total_norm(
                [theirs.grad.double() for theirs in twins.theirs if theirs.grad is not None]
            )
            norm = twins.fused.clip_grad_norm_(max_norm)
            assert norm.dtype == DOUBLE and norm.dim() == 0
            # a single process leaves it to torch, which rounds norms of float32 gradients to float32
            torch.testing.assert_close(norm, wanted, rtol=1e-13 if hvd.size() > 1 else 1e-6, atol=0.0)
            assert_same_on_all_ranks([norm])
            nn.utils.clip_grad_norm_(twins.theirs, max_norm)
            if twice:  # the second time it finds what the first one left
                torch.testing.assert_close(twins.fused.clip_grad_norm_(0.1), min(norm, torch.tensor(max_norm).double()))
                nn.utils.clip_grad_norm_(twins.theirs, 0.1)
        twins.fused.step()
        twins.plain.step()
        twins.steps += 1
        # torch's norm is a float32 here: relative 1e-6 of clipped steps, which Adam divides out but for its decay
        for ours, theirs in zip(twins.ours, twins.theirs, strict=True):
            assert_within(ours, theirs, bound(twins.steps, SINGLE))
    rr.check_replicas([(str(n), p.detach()) for n, p in enumerate(parameters)])


def test_clipped_steps_are_those_of_clipped_averages() -> None:
    """In float64 and with SGD, where the factor tells."""
    for clipped in (True, False):
        model, reference = double_model(), double_model()
        optimizer, plain = fused_sgd(model), SGD(reference.parameters(), lr=0.1, momentum=0.9)
        most = 0.01 if clipped else 100.0
        for step in range(5):
            optimizer.zero_grad()
            plain.zero_grad()
            backward(model, inputs_of(hvd.rank(), step).double())
            backward(reference, all_inputs(step).double())
            norm = optimizer.clip_grad_norm_(most)
            wanted = nn.utils.clip_grad_norm_(reference.parameters(), most)
            assert (norm.item() > most) == clipped
            torch.testing.assert_close(norm, wanted, rtol=1e-13, atol=0.0)
            optimizer.step()
            plain.step()
        assert_trained_alike(model, reference)


@pytest.mark.parametrize("max_norm", [0, -1.0, float("nan"), None, "1"], ids=str)
def test_max_norm_is_positive(max_norm: Any) -> None:
    with pytest.raises(rr.UsageError, match=f"max_norm must be a positive number: it is {max_norm!r}"):
        fused_sgd(make_model()).clip_grad_norm_(max_norm)


# Weights


def samples_of(rank: int) -> int:
    return 0 if rank == hvd.size() - 1 and hvd.size() > 1 else 1 + 2 * rank


@pytest.mark.parametrize("manner", ["no backward", "mean of nothing"])
@pytest.mark.parametrize("clips", [False, True])
@pytest.mark.parametrize("keep", [False, True])
def test_batches_of_unequal_length(manner: str, clips: bool, keep: bool) -> None:
    """The last rank has none: it makes no backward pass, or one whose gradients are nan."""
    model, reference = double_model(), double_model()
    optimizer, plain = fused_sgd(model, keep_gradients=keep), SGD(reference.parameters(), lr=0.1, momentum=0.9)
    counts = [samples_of(rank) for rank in range(hvd.size())]
    for step in range(4):
        whole = torch.randn(sum(counts), 5, generator=generator("unequal", step)).double()
        own = whole.split(counts)[hvd.rank()]
        optimizer.zero_grad()
        plain.zero_grad()
        backward(reference, whole)
        if len(own) or manner != "no backward":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a mean of nothing
                backward(model, own)
        if clips:
            norm = optimizer.clip_grad_norm_(0.01, weight=len(own))
            wanted = nn.utils.clip_grad_norm_(reference.parameters(), 0.01)
            torch.testing.assert_close(norm, wanted, rtol=1e-12, atol=0.0)
            optimizer.step()
        else:
            optimizer.step(weight=len(own))
        plain.step()
        if keep and not clips:
            for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
                torch.testing.assert_close(ours.grad, theirs.grad, rtol=0.0, atol=1e-13)
    assert_trained_alike(model, reference)


def test_weights_scale_alike() -> None:
    """What counts is their ratio; any size of numbers goes."""
    model, reference = double_model(), double_model()
    optimizer, plain = fused_sgd(model), SGD(reference.parameters(), lr=0.1, momentum=0.9)
    for step in range(3):
        optimizer.zero_grad()
        backward(model, inputs_of(hvd.rank(), step).double())
        optimizer.step(weight=[1, 0.5, 1e-9][step])
        train(reference, plain, all_inputs(step))
    assert_trained_alike(model, reference)


@pytest.mark.parametrize("weight", [-1, float("nan"), float("inf"), "6"], ids=str)
def test_weights_are_not_negative(weight: Any) -> None:
    needs_two_ranks()
    optimizer = fused_sgd(make_model())
    for call in (lambda: optimizer.step(weight=weight), lambda: optimizer.clip_grad_norm_(1.0, weight=weight)):
        with pytest.raises(rr.UsageError, match=f"weight must be a number that is not negative.*it is {weight!r}"):
            call()


@pytest.mark.parametrize("drops", [False, True])
def test_nobody_has_samples(drops: bool) -> None:
    """All ranks get an error, whether they made a backward pass or not, and go on."""
    needs_two_ranks()
    model, reference = double_model(), double_model()
    optimizer, plain = fused_sgd(model), SGD(reference.parameters(), lr=0.1, momentum=0.9)
    for step in range(2):
        train(model, optimizer, inputs_of(hvd.rank(), step))
        train(reference, plain, all_inputs(step))
        if hvd.rank() != 0:
            backward(model, inputs_of(hvd.rank(), step).double())
        with pytest.raises(rr.UsageError, match="Weights must add up to more than 0: they add up to 0"):
            optimizer.step(weight=0)
        if drops:
            optimizer.zero_grad()
    assert_trained_alike(model, reference)


def test_weights_are_for_all_or_none() -> None:
    needs_two_ranks()
    model = double_model()
    optimizer = fused_sgd(model)
    before = copy.deepcopy(model.state_dict())
    backward(model, inputs_of(hvd.rank()).double())
    with pytest.raises(rr.MismatchError, match=r"rank\(s\) 1.* called step\(\).*rank\(s\) 0 called step\(\).*weight"):
        optimizer.step(weight=3 if hvd.rank() == 0 else None)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    train(model, optimizer, inputs_of(hvd.rank()))
    assert_same_on_all_ranks(list(model.parameters()))


# Mixed precision


@pytest.mark.parametrize("manner", ["plain", "unscale", "unscale and clip"])
@pytest.mark.parametrize("bad", [float("inf"), float("nan")], ids=str)
def test_grad_scaler_skips_on_all_ranks_or_none(manner: str, bad: float) -> None:
    """The last rank overflows in one step. The first parameter is empty, the second one has its channels last."""
    convolution = nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    parameters = [nn.Parameter(torch.zeros(0)), *convolution.parameters()]
    hvd.broadcast_parameters([(str(n), parameter) for n, parameter in enumerate(parameters)])
    twins = Twins(parameters, RULES["adamw"])
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    for step in range(4):
        own = gradients_of(hvd.rank(), step, parameters)
        scaler.scale(torch.zeros(()))
        factor = bad if step == 1 and hvd.rank() == hvd.size() - 1 else scaler.get_scale()
        twins.fused.zero_grad()
        give_gradients(parameters, [gradient * factor for gradient in own if gradient is not None])
        before = [parameter.detach().clone() for parameter in parameters]
        if manner != "plain":
            scaler.unscale_(twins.fused)
        if manner == "unscale and clip":
            twins.fused.clip_grad_norm_(1e6)
        scaler.step(twins.fused)
        scaler.update()
        moved = not all(torch.equal(old, new) for old, new in zip(before, parameters, strict=True))
        assert moved == (step != 1)
        if moved:
            for theirs, average in zip(twins.theirs, averages(own, parameters, [True] * 3), strict=True):
                theirs.grad = average
            twins.plain.step()
            twins.steps += 1
        assert scaler.get_scale() == (16.0 if step == 0 else 8.0)
        twins.check()


def test_grad_scaler_where_a_rank_has_no_gradient() -> None:
    """A scaler raises for an optimizer without gradients; the other ranks have some."""
    needs_two_ranks()
    model, reference = make_model(), make_model()
    optimizer = fused_sgd(model, lr=0.05)
    plain = SGD(reference.parameters(), lr=0.05, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    empty = hvd.size() - 1
    for step in range(4):
        optimizer.zero_grad()
        plain.zero_grad()
        scaler.scale(torch.zeros(()))
        factor = float("inf") if step == 1 and hvd.rank() == 0 else 1.0
        if hvd.rank() != empty:
            scaler.scale(model(inputs_of(hvd.rank(), step)).square().mean() * factor).backward()  # type: ignore[no-untyped-call]
        scaler.step(optimizer)
        scaler.update()
        if step == 1:
            continue
        for rank in range(empty):
            (reference(inputs_of(rank, step)).square().mean() / hvd.size()).backward()
        plain.step()
    assert scaler.get_scale() == 8.0
    assert_trained_alike(model, reference, 1e-6)


def test_autocast() -> None:
    """Gradients of parameters are float32 there; ranks that see the same do what one does."""
    model, reference = make_model(), make_model()
    optimizer, plain = fused_sgd(model), SGD(reference.parameters(), lr=0.1, momentum=0.9)
    for step in range(5):
        for net, opt in ((model, optimizer), (reference, plain)):
            opt.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = net(inputs_of(0, step)).float().square().mean()
            loss.backward()
            opt.step()
    # a bfloat16 forward pass has steps of 2^-8, which a difference in the last bit of a parameter may cross
    assert_trained_alike(model, reference, 2.0**-8)


# What a loop may do


def test_closure() -> None:
    """It sees the parameters as they were, and its loss is reduced."""
    model, reference = double_model(), double_model()
    optimizer, plain = fused_sgd(model), SGD(reference.parameters(), lr=0.1, momentum=0.9)
    for step in range(3):
        before = copy.deepcopy(model)

        def closure(net: Any, opt: Any, inputs: torch.Tensor) -> torch.Tensor:
            opt.zero_grad()
            loss: torch.Tensor = net(inputs.double()).square().mean()
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        with torch.no_grad():
            ours = optimizer.step(lambda step=step: closure(model, optimizer, inputs_of(hvd.rank(), step)))
        theirs = plain.step(lambda step=step: closure(reference, plain, all_inputs(step)))
        torch.testing.assert_close(ours, theirs, rtol=0.0, atol=1e-13)
        torch.testing.assert_close(ours, before(all_inputs(step).double()).square().mean(), rtol=0.0, atol=1e-13)
    assert optimizer.step(lambda: hvd.rank() + 0.0) == (hvd.size() - 1) / 2
    assert optimizer.step(lambda: None) is None


def test_hooks_of_optimizers_are_called() -> None:
    model, calls = double_model(), list[str]()
    optimizer = fused_sgd(model)
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    before = model[0].weight.detach().clone()
    optimizer.register_step_pre_hook(lambda *_: calls.append(str(torch.equal(model[0].weight, before))))
    optimizer.register_step_post_hook(lambda *_: calls.append(str(torch.equal(model[0].weight, before))))
    train(model, optimizer, inputs_of(hvd.rank()))
    assert calls == ["before", "True", "after", "False"]


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.layers = make_model().double()
        self.reentrant = reentrant

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.reentrant is None:
            result: torch.Tensor = self.layers(inputs)
        else:
            result = checkpoint(self.layers, inputs.requires_grad_(), use_reentrant=self.reentrant)
        return result


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant: bool) -> None:
    model, reference = Checkpointed(reentrant), Checkpointed(None)
    optimizer, plain = fused_sgd(model), SGD(reference.parameters(), lr=0.1, momentum=0.9)
    for step in range(3):
        train(model, optimizer, inputs_of(hvd.rank(), step))
        train(reference, plain, all_inputs(step))
    assert_trained_alike(model, reference)


def test_accumulation_and_no_sync() -> None:
    model, reference = double_model(), double_model()
    optimizer = fused_sgd(model, backward_passes_per_step=2)
    plain = SGD(reference.parameters(), lr=0.1, momentum=0.9)
    for step, passes in enumerate((2, 3, 1, 2)):
        optimizer.zero_grad()
        plain.zero_grad()
        for number in range(passes):
            extra = passes == 3 and number == 0
            with optimizer.no_sync() if extra else warnings.catch_warnings():
                backward(model, inputs_of(hvd.rank(), 10 * step + number).double())
            backward(reference, all_inputs(10 * step + number).double())
        optimizer.step()
        plain.step()
    assert_trained_alike(model, reference)


def test_gradients_that_came_inside_no_sync_only() -> None:
    """The last layer gets its gradient in a pass that does not count, the first one in one that does."""
    parameters = make_parameters([(3,), (4,)])
    twins = Twins(parameters, RULES["momentum"])
    for step in range(2):
        own = gradients_of(hvd.rank(), step, parameters)
        twins.fused.zero_grad()
        with twins.fused.no_sync():
            give_gradients(parameters, [None, own[1]])
        give_gradients(parameters, [own[0], None])
        twins.fused.step()
        for theirs, average in zip(twins.theirs, averages(own, parameters, [True, True]), strict=True):
            theirs.grad = average
        twins.plain.step()
        twins.steps += 1
        twins.check()


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.first, self.last = nn.Linear(5, 5), nn.Linear(5, 5)
        self.last.weight = self.first.weight

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.last(torch.tanh(self.first(inputs)))
        return result


def test_shared_parameters() -> None:
    model, reference = Tied().double(), Tied().double()
    optimizer, plain = fused_sgd(model), SGD(reference.parameters(), lr=0.1, momentum=0.9)
    for step in range(4):
        train(model, optimizer, inputs_of(hvd.rank(), step))
        train(reference, plain, all_inputs(step))
    assert model.first.weight is model.last.weight
    assert_trained_alike(model, reference)


def test_parameters_that_the_ranks_of_a_node_share() -> None:
    """What one writes its neighbours read; ranks of other nodes have a copy of their own."""
    needs_two_ranks()
    twins = Twins(make_parameters(), RULES["adamw"], share_parameters=True)
    for _ in range(3):
        twins.step()
        twins.check()
    assert_same_states(twins.fused.state_dict(), twins.plain.state_dict(), bound(1, DOUBLE, 500.0))
    with twins.fused.writable():
        if hvd.local_rank() == 0:
            twins.ours[0].data.fill_(hvd.rank())
    rr.barrier()
    assert bool((twins.ours[0] == hvd.rank() - hvd.local_rank()).all())
    rr.barrier()
    twins.fused.close()


def test_frozen_and_thawed_between_steps() -> None:
    model, reference = double_model(), double_model()
    for net in (model, reference):
        net[0].requires_grad_(False)
    optimizer, plain = fused_sgd(model), SGD(reference.parameters(), lr=0.1, momentum=0.9)
    for step in range(6):
        for net, opt, inputs in ((model, optimizer, inputs_of(hvd.rank(), step)), (reference, plain, all_inputs(step))):
            net[0].requires_grad_(step in (2, 3))
            net[2].requires_grad_(step != 3)
            train(net, opt, inputs)
    assert_trained_alike(model, reference)


def test_memory_formats() -> None:
    """Channels last, and a transposed parameter: strides stay, and gradients of any strides come to their places."""

    def make() -> nn.Sequential:
        torch.manual_seed(1)
        net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 2)).double()
        net[3].weight = nn.Parameter(net[3].weight.detach().t().contiguous().t())
        return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    def images(rank: int, step: int) -> torch.Tensor:
        made = torch.randn(2, 3, 4, 4, generator=generator("images", rank, step), dtype=DOUBLE)
        return made.contiguous(memory_format=torch.channels_last)

    model, reference = make(), make()
    before, values = [one.stride() for one in model.parameters()], copy.deepcopy(model.state_dict())
    optimizer, plain = fused_sgd(model), SGD(reference.parameters(), lr=0.1, momentum=0.9)
    assert [one.stride() for one in model.parameters()] == before
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(value, values[key]) for key, value in model.state_dict().items())
    for step in range(3):
        optimizer.zero_grad()
        plain.zero_grad()
        backward(model, images(hvd.rank(), step))
        backward(reference, torch.cat([images(rank, step) for rank in range(hvd.size())]))
        optimizer.step()
        plain.step()
    assert [one.stride() for one in model.parameters()] == before
    assert_trained_alike(model, reference)
    assert_same_states(optimizer.state_dict(), plain.state_dict(), 1e-13)


def test_sparse_gradients_become_dense() -> None:
    torch.manual_seed(0)
    model = nn.ModuleList([nn.Embedding(7, 3, sparse=True), nn.Linear(3, 1)]).double()
    reference = nn.ModuleList([nn.Embedding(7, 3), nn.Linear(3, 1)]).double()
    reference.load_state_dict(model.state_dict())
    optimizer, plain = fused_sgd(model, momentum=0.0), SGD(reference.parameters(), lr=0.1)

    def loss_of(net: nn.ModuleList, rank: int, step: int) -> torch.Tensor:
        loss: torch.Tensor = net[1](net[0](torch.tensor([rank % 7, 0, 0, (rank + step) % 7]))).square().mean()
        return loss

    for step in range(3):
        optimizer.zero_grad()
        plain.zero_grad()
        loss_of(model, hvd.rank(), step).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        (sum(loss_of(reference, rank, step) for rank in range(hvd.size())) / hvd.size()).backward()  # type: ignore[union-attr]
        plain.step()
    assert_trained_alike(model, reference)


def test_parameters_outlive_their_optimizer() -> None:
    """Its memory stays theirs; the next optimizer takes them over."""
    model, reference = double_model(), double_model()
    plain = SGD(reference.parameters(), lr=0.1)
    for _ in range(2):
        optimizer = fused_sgd(model, momentum=0.0)
        train(model, optimizer, inputs_of(hvd.rank()))
        train(reference, plain, all_inputs())
        optimizer.close()
        with pytest.raises(rr.UsageError, match=r"does not step after close\(\)"):
            optimizer.step()
        optimizer.zero_grad()
        del optimizer
    hvd.empty(1 << 16).fill_(7.0)  # would overwrite what is free
    assert_trained_alike(model, reference)


def test_two_optimizers_side_by_side() -> None:
    """They step in turns, one fused and one not; each has half of the model."""
    model, reference = double_model(), double_model()
    first = fused_sgd(model[0])
    second = hvd.DistributedOptimizer(Adam(model[2].parameters(), lr=0.01), fused=True)
    plain = [SGD(reference[0].parameters(), lr=0.1, momentum=0.9), Adam(reference[2].parameters(), lr=0.01)]
    for step in range(3):
        for opt in (first, second, *plain):
            opt.zero_grad()
        backward(model, inputs_of(hvd.rank(), step).double())
        backward(reference, all_inputs(step).double())
        for opt in (first, second, *plain):
            opt.step()
    assert_trained_alike(model, reference)
