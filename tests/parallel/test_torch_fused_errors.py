"""What the fused step refuses: texts name the rule, the values and a remedy, on all ranks, and training goes on."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fused_data import Twins, averages, give_gradients, gradients_of, make_parameters
from torch import nn
from torch.optim import SGD, Adam, AdamW
from training_data import assert_same_on_all_ranks, backward, inputs_of, make_model

import ringred as rr
import ringred.torch as hvd

DOUBLE, SINGLE = torch.float64, torch.float32


@pytest.fixture(autouse=True)
def several_ranks() -> None:
    """A single process is left alone: there it is torch that refuses, or nothing is wrong."""
    if hvd.size() == 1:
        pytest.skip("needs two ranks")


def fused(model: nn.Module, **options: Any) -> hvd.DistributedOptimizer:
    inner = SGD(model.parameters(), lr=0.1, momentum=0.9)
    return hvd.DistributedOptimizer(inner, model.named_parameters(), fused=True, **options)


def assert_goes_on(model: nn.Module, optimizer: hvd.DistributedOptimizer) -> None:
    """The next step works, and leaves the same everywhere."""
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer.zero_grad()
    backward(model, inputs_of(hvd.rank()).to(next(model.parameters()).dtype))
    optimizer.step()
    assert not any(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    assert_same_on_all_ranks(list(model.parameters()))


# At construction


@pytest.mark.parametrize(
    "make",
    [torch.optim.Adagrad, torch.optim.RMSprop, torch.optim.NAdam, type("MySGD", (SGD,), {})],
    ids=lambda make: make.__name__,
)
def test_other_optimizers(make: Callable[[Any], Any]) -> None:
    text = rf"fused=True takes SGD, Adam or AdamW of torch.optim: this is {make.__name__}. Use fused=False"
    with pytest.raises(rr.UsageError, match=text):
        hvd.DistributedOptimizer(make(make_model().parameters()), fused=True)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"op": hvd.Adasum}, "op=Adasum"),
        ({"compression": hvd.Compression.fp16}, "compression"),
        ({"groups": 2}, "groups"),
        ({"gradient_predivide_factor": 2.0}, "gradient_predivide_factor"),
        ({"groups": 1, "compression": hvd.Compression.bf16}, "compression, groups"),
    ],
    ids=["Adasum", "compression", "groups", "predivide", "two"],
)
def test_options_that_do_not_go_with_it(options: dict[str, Any], text: str) -> None:
    with pytest.raises(rr.UsageError, match=f"fused=True does not go with {text}. Leave it out, or use fused=False"):
        fused(make_model(), **options)


def test_keep_gradients_goes_with_it() -> None:
    with pytest.raises(rr.UsageError, match=r"keep_gradients.* fused=True"):
        hvd.DistributedOptimizer(SGD(make_model().parameters(), lr=0.1), keep_gradients=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.complex64], ids=str)
def test_dtypes(dtype: torch.dtype) -> None:
    parameters = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3, dtype=dtype))]
    named = list(zip(("wide", "other"), parameters, strict=True))
    text = f"dense float32 and float64 parameters: 'other' is {dtype}, torch.strided. Use fused=False"
    with pytest.raises(rr.UsageError, match=text):
        hvd.DistributedOptimizer(SGD(parameters, lr=0.1), named, fused=True)


@pytest.mark.parametrize("option", ["differentiable", "capturable"])
def test_options_of_torch(option: str) -> None:
    with pytest.raises(rr.UsageError, match=f"{option}=True. Use fused=False, or leave it out"):
        hvd.DistributedOptimizer(Adam(make_model().parameters(), **{option: True}), fused=True)


def test_decoupled_decay_is_that_of_adamw() -> None:
    with pytest.raises(rr.UsageError, match=r"decoupled weight decay from AdamW: use torch.optim.AdamW"):
        hvd.DistributedOptimizer(Adam(make_model().parameters(), decoupled_weight_decay=True), fused=True)


def test_an_optimizer_that_has_a_state() -> None:
    model = make_model()
    plain = Adam(model.parameters())
    backward(model, inputs_of(0))
    plain.step()
    with pytest.raises(rr.UsageError, match=r"has made no step: this one has a state.*load_state_dict\(\)"):
        hvd.DistributedOptimizer(plain, fused=True)
    optimizer = hvd.DistributedOptimizer(Adam(model.parameters()), fused=True)
    optimizer.load_state_dict(plain.state_dict())
    assert_goes_on(model, optimizer)


# Ranks that differ


@pytest.mark.parametrize(
    ("option", "values", "texts"),
    [
        ("lr", (0.25, 0.5), ("lr=0.25", "lr=0.5")),
        ("weight_decay", (0.25, 0.5), ("weight_decay=0.25", "weight_decay=0.5")),
        ("amsgrad", (True, False), ()),
        ("betas", ((0.5, 0.9), (0.9, 0.9)), ()),
        ("eps", (1e-3, 1e-4), ()),
        ("maximize", (True, False), ()),
        ("lr", (float("nan"), 0.5), ("lr=nan", "lr=0.5")),
    ],
)
@pytest.mark.parametrize("clips", [False, True])
def test_rates_that_differ(option: str, values: tuple[Any, Any], texts: tuple[str, ...], clips: bool) -> None:
    """All ranks get the error, nothing changes, and the same gradients step once rates are equal."""
    twins = Twins([*make_parameters(), *make_parameters([(5,)], SINGLE)], lambda given: Adam(given, lr=0.01))
    twins.step()
    group = twins.fused.param_groups[0]
    right = group[option]
    group[option] = values[0] if hvd.rank() == 0 else values[1]
    before = [parameter.detach().clone() for parameter in twins.ours]
    own = gradients_of(hvd.rank(), 1, twins.ours)
    twins.fused.zero_grad()
    give_gradients(twins.ours, own)
    if clips:
        twins.fused.clip_grad_norm_(1e9)
    with pytest.raises(rr.MismatchError, match="rule=Adam") as raised:
        twins.fused.step()
    assert all(text in str(raised.value) for text in texts)
    assert "rank 0" in str(raised.value) or "rank(s) 0" in str(raised.value)
    assert all(torch.equal(old, new) for old, new in zip(before, twins.ours, strict=True))
    group[option] = right
    twins.fused.step()
    for theirs, average in zip(twins.theirs, averages(own, twins.theirs, [True] * len(own)), strict=True):
        theirs.grad = average
    twins.plain.step()
    twins.steps += 1
    twins.check()
    twins.step()
    twins.check()


def test_rates_of_one_group_that_differ() -> None:
    """It is the last group, and of another dtype: the others do not step either. The first momentum is still one."""
    parameters = [*make_parameters([(5,), (3,)]), *make_parameters([(5,)], SINGLE)]

    def make(given: list[nn.Parameter]) -> SGD:
        groups = [{"params": given[:2]}, {"params": given[2:]}]
        return SGD(groups, lr=0.05, momentum=0.9, dampening=0.5)

    twins = Twins(parameters, make)
    before = [parameter.detach().clone() for parameter in parameters]
    twins.fused.param_groups[1]["lr"] = 0.25 + hvd.rank()
    give_gradients(parameters, gradients_of(hvd.rank(), 0, parameters))
    with pytest.raises(rr.MismatchError, match=r"lr=0.25.*lr=1.25"):
        twins.fused.step()
    assert all(torch.equal(old, new) for old, new in zip(before, parameters, strict=True))
    twins.fused.param_groups[1]["lr"] = 0.05
    for _ in range(3):
        twins.step()
        twins.check()


def test_norms_that_differ() -> None:
    model = make_model()
    optimizer = fused(model)
    before = copy.deepcopy(model.state_dict())
    backward(model, inputs_of(hvd.rank()))
    optimizer.clip_grad_norm_(1e-3 * (1 + hvd.rank()))
    with pytest.raises(rr.MismatchError, match="factor="):
        optimizer.step()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert_goes_on(model, optimizer)


@pytest.mark.parametrize("makes", [(Adam, AdamW), (Adam, SGD)], ids=["AdamW", "SGD"])
def test_rules_that_differ(makes: tuple[Any, Any]) -> None:
    model = make_model()
    optimizer = hvd.DistributedOptimizer(makes[hvd.rank() != 0](model.parameters(), lr=0.1), fused=True)
    backward(model, inputs_of(hvd.rank()))
    with pytest.raises(rr.MismatchError, match=f"rule={makes[0].__name__},.*rule={makes[1].__name__},"):
        optimizer.step()
    optimizer.close()


def test_one_is_fused_and_one_is_not() -> None:
    model = make_model()
    options: dict[str, Any] = {"fused": True} if hvd.rank() == 0 else {"bucket_bytes": 0, "sparse_as_dense": True}
    optimizer = hvd.DistributedOptimizer(SGD(model.parameters(), lr=0.1), **options)
    backward(model, inputs_of(hvd.rank()))
    with pytest.raises(rr.MismatchError):
        optimizer.step()
    optimizer.close()


@pytest.mark.parametrize("steps_before", [0, 1])
def test_a_rank_that_drops_a_step(steps_before: int) -> None:
    model = make_model()
    optimizer = fused(model)
    for _ in range(steps_before):
        assert_goes_on(model, optimizer)
        optimizer.zero_grad()
    before = copy.deepcopy(model.state_dict())
    backward(model, inputs_of(hvd.rank()))
    with pytest.raises(rr.MismatchError, match=r"rank\(s\) 1.* called step\(\).*rank\(s\) 0 called zero_grad"):
        optimizer.zero_grad() if hvd.rank() == 0 else optimizer.step()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert_goes_on(model, optimizer)


def test_different_models() -> None:
    parameter = nn.Parameter(torch.ones(3 + (hvd.rank() == 0)))
    optimizer = hvd.DistributedOptimizer(SGD([parameter], lr=0.5), [("p", parameter)], fused=True)
    parameter.sum().backward()
    with pytest.raises(rr.MismatchError, match=r"'p' of shape \(4,\), torch.float32 on rank 0; .*\(3,\).* on rank 1"):
        optimizer.step()
    assert hvd.allreduce(torch.ones(1), op=hvd.Sum).item() == hvd.size()
    optimizer.close()


# Parameters and gradients that are not where they were


def cast(model: nn.Module) -> None:
    model.double()


def replace(model: Any) -> None:
    model[2].weight.data = model[2].weight.detach().clone()


def resize(model: Any) -> None:
    model[2].weight.data = torch.zeros(3, 7)


@pytest.mark.parametrize("change", [cast, replace, resize], ids=lambda change: change.__name__)
@pytest.mark.parametrize("moment", ["before backward", "before step", "before clipping"])
def test_parameters_with_other_memory(change: Callable[[nn.Module], None], moment: str) -> None:
    model = make_model()
    optimizer = fused(model)
    assert_goes_on(model, optimizer)
    optimizer.zero_grad()
    if moment != "before backward":
        backward(model, inputs_of(hvd.rank()))
    change(model)
    name = "0.weight" if change is cast else "2.weight"
    text = rf"parameters stay where the optimizer has put them: '{name}' has other memory.*parameter.data.copy_"
    with pytest.raises(rr.UsageError, match=text):
        if moment == "before backward" and change is not resize:
            backward(model, inputs_of(hvd.rank()).to(next(model.parameters()).dtype))
        optimizer.clip_grad_norm_(1.0) if moment == "before clipping" else optimizer.step()
    optimizer.close()


def test_values_that_are_copied_in_place_are_fine() -> None:
    model, other = make_model(), make_model(seed=8)
    optimizer = fused(model)
    assert_goes_on(model, optimizer)
    model.load_state_dict(other.state_dict())
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in model.state_dict().items())
    model[0].weight.data.copy_(torch.ones(7, 5))
    assert_goes_on(model, optimizer)


def edit(gradient: torch.Tensor) -> torch.Tensor:
    return gradient.mul_(2.0)


def exchange(gradient: torch.Tensor) -> torch.Tensor:
    return gradient * 2.0


@pytest.mark.parametrize("change", [edit, exchange], ids=lambda change: change.__name__)
@pytest.mark.parametrize("clips", [False, True])
def test_gradients_that_are_edited(change: Callable[[torch.Tensor], torch.Tensor], clips: bool) -> None:
    model = make_model()
    optimizer = fused(model)
    for _ in range(2):
        optimizer.zero_grad()
        backward(model, inputs_of(hvd.rank()))
        assert model[2].bias.grad is not None
        model[2].bias.grad = change(model[2].bias.grad)
        with pytest.raises(rr.UsageError, match=r"may not change between backward\(\) and the exchange.*'2.bias'"):
            optimizer.clip_grad_norm_(1.0) if clips else optimizer.step()
        assert_goes_on(model, optimizer)


@pytest.mark.parametrize("change", [edit, exchange, lambda gradient: None], ids=["edit", "exchange", "drop"])
def test_gradients_that_are_edited_after_unscaling(change: Callable[[torch.Tensor], torch.Tensor | None]) -> None:
    """There they may be: each rank its own."""
    twins = Twins(make_parameters([(5,), (3,)]), lambda given: SGD(given, lr=0.05, momentum=0.9))
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    scaler.scale(torch.zeros(()))
    for step in range(3):
        own: list[Any] = gradients_of(hvd.rank(), step, twins.ours)
        twins.fused.zero_grad()
        give_gradients(twins.ours, own)
        scaler.unscale_(twins.fused)
        assert twins.ours[1].grad is not None
        twins.ours[1].grad = change(twins.ours[1].grad)
        scaler.step(twins.fused)
        scaler.update()
        own[1] = change(own[1].clone())
        for theirs, average in zip(twins.theirs, averages(own, twins.theirs, [True, own[1] is not None]), strict=True):
            theirs.grad = average
        twins.plain.step()
        twins.steps += 1
        twins.check()


# Calls that it does not take


def test_synchronize() -> None:
    model = make_model()
    optimizer = fused(model)
    backward(model, inputs_of(hvd.rank()))
    text = r"averaged inside step\(\), which leaves each rank its own. Clip with optimizer.clip_grad_norm_"
    with pytest.raises(rr.UsageError, match=text):
        optimizer.synchronize()
    assert_goes_on(model, optimizer)


def test_add_param_group() -> None:
    model = make_model()
    optimizer = fused(model)
    with pytest.raises(rr.UsageError, match=r"parameters are given at construction: save state_dict\(\)"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    assert_goes_on(model, optimizer)


@pytest.mark.parametrize("clips", [False, True])
def test_one_backward_pass_too_many(clips: bool) -> None:
    model = make_model()
    optimizer = fused(model)
    for _ in range(2):
        optimizer.zero_grad()
        backward(model, inputs_of(hvd.rank()))
        if clips:
            optimizer.clip_grad_norm_(1.0)
        with pytest.raises(rr.UsageError, match=r"after 1 backward pass\(es\) a step; parameter '.*' got one more"):
            backward(model, inputs_of(hvd.rank()))
        assert_goes_on(model, optimizer)


def test_a_parameter_belongs_to_one_optimizer() -> None:
    model = make_model()
    first = fused(model)
    assert_goes_on(model, first)
    second = fused(model)
    first.zero_grad()
    with pytest.raises(rr.UsageError, match=r"belongs to one DistributedOptimizer at a time|has other memory"):
        backward(model, inputs_of(hvd.rank()))
        first.step()
    first.close()
    del first
    second.zero_grad()
    assert_goes_on(model, second)
