"""The distributed optimizer with no communication: a stand-in plays the other ranks.

`Echo` pretends that `size` ranks hold the same numbers as this one: a sum is `size` times the own value, an average is
the own value. What the other ranks hold can be set for a message, and all calls are recorded.
"""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import nn

import ringred as rr
from ringred.torch.buckets import build_buckets, lay_out
from ringred.torch.names import name_parameters
from ringred.torch.optimizer import DistributedOptimizer


class Echo:
    """A reducer whose other ranks hold what this one holds, plus `others[kind]` for messages of that kind."""

    def __init__(self, size: int = 4) -> None:
        self.size = size
        self.calls: list[str] = []
        self.tags: list[str] = []
        self.flags_of_others: Callable[[torch.Tensor], torch.Tensor] = lambda flags: flags
        self.gradients_of_others: Callable[[torch.Tensor], torch.Tensor] = lambda gradients: gradients

    def empty(self, length: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(length, dtype=dtype)

    def plan(self, tensor: torch.Tensor, op: object, tag: str) -> Callable[[], object]:
        self.tags.append(tag)
        short = tag.split(" (")[0]

        def reduce() -> None:
            self.calls.append(short)
            if op == rr.Max:
                tensor.copy_(torch.maximum(tensor, self.flags_of_others(tensor)))
                return
            others = self.gradients_of_others(tensor) if short.startswith("gradient") else tensor
            total = tensor + (self.size - 1) * others
            tensor.copy_(total / self.size if op == rr.Average else total)

        return reduce


def two_layers(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).to(dtype)


def wrapped_sgd(model: nn.Module, reducer: Echo, **options: object) -> DistributedOptimizer:
    inner = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return DistributedOptimizer(inner, model.named_parameters(), reducer=reducer, **options)  # type: ignore[arg-type]


INPUTS = torch.arange(15, dtype=torch.float64).view(5, 3) / 10


def backward(model: nn.Module) -> torch.Tensor:
    loss: torch.Tensor = model(INPUTS).square().mean()
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def gradients(model: nn.Module) -> list[torch.Tensor | None]:
    return [None if parameter.grad is None else parameter.grad.clone() for parameter in model.parameters()]


def same(left: nn.Module, right: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left.parameters(), right.parameters(), strict=True))


# Layout


def test_layout_groups_by_dtype_and_bytes_and_orders_by_last_tensor() -> None:
    tensors = [torch.zeros(4), torch.zeros(2, dtype=torch.float64), torch.zeros(4), torch.zeros(1), torch.zeros(100)]
    assert lay_out(tensors, 32) == [[1], [0, 2], [3], [4]]
    assert lay_out(tensors, 1 << 20) == [[1], [0, 2, 3, 4]]
    assert lay_out([], 32) == []


def test_buckets_hold_parameters_in_reverse_order_and_tags_tell_layouts_apart() -> None:
    reducer = Echo()
    named = list(two_layers().named_parameters())
    buckets = build_buckets(named, reducer, rr.Average, limit_bytes=40)
    assert [[slot.name for slot in bucket.slots] for bucket in buckets] == [
        ["2.bias", "2.weight"],
        ["0.bias"],
        ["0.weight"],
    ]
    assert [tag.split(" (")[0] for tag in reducer.tags] == [
        "gradient bucket 0",
        "gradient bucket 1",
        "gradient bucket 2",
    ]
    first_tags, reducer.tags = reducer.tags, []
    build_buckets([("other" + name, parameter) for name, parameter in named], reducer, rr.Average, limit_bytes=40)
    assert all(a != b for a, b in zip(first_tags, reducer.tags, strict=True))


# Rounds


def test_step_matches_the_plain_optimizer() -> None:
    plain, model = two_layers(), two_layers()
    optimizer, distributed = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9), wrapped_sgd(model, Echo())
    for _ in range(4):
        for net, opt in ((plain, optimizer), (model, distributed)):
            opt.zero_grad()
            backward(net)
            opt.step()
    assert same(plain, model)


def test_buckets_are_reduced_in_backward_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_buckets, "__defaults__", (40,))
    reducer, model = Echo(), two_layers()
    optimizer = wrapped_sgd(model, reducer)
    exchange = optimizer._exchange
    assert exchange is not None
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    # Slots in order: 2.bias and 2.weight (bucket 0), 0.bias (1), 0.weight (2).
    seen = []
    for index in (3, 2, 1, 0):
        exchange.arrive(index)
        seen.append(len(reducer.calls))
    assert seen == [0, 0, 0, 3]
    optimizer.step()
    assert reducer.calls == ["gradient bucket 0", "gradient bucket 1", "gradient bucket 2", "gradient flags, step"]
    reducer.calls.clear()
    optimizer.zero_grad()
    backward(model)
    assert reducer.calls == ["gradient bucket 0", "gradient bucket 1", "gradient bucket 2"]


@pytest.mark.parametrize(("op_name", "factor"), [("Average", 1.0), ("Sum", 4.0)])
def test_ops(op_name: str, factor: float) -> None:
    model = two_layers()
    optimizer = wrapped_sgd(model, Echo(size=4), op=getattr(rr, op_name))
    backward(model)
    own = gradients(model)
    optimizer.synchronize()
    for before, after in zip(own, gradients(model), strict=True):
        assert before is not None and after is not None
        assert torch.equal(before * factor, after)


def test_synchronize_then_step_exchanges_once() -> None:
    reducer, model = Echo(), two_layers()
    optimizer = wrapped_sgd(model, reducer)
    backward(model)
    optimizer.synchronize()
    optimizer.synchronize()
    nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    clipped = gradients(model)
    optimizer.step()
    assert reducer.calls == ["gradient bucket 0", "gradient flags, step"]
    assert all(torch.equal(a, b) for a, b in zip(clipped, gradients(model), strict=True))  # type: ignore[arg-type]
    optimizer.step()
    assert reducer.calls == ["gradient bucket 0", "gradient flags, step"] * 2


def test_clipping_before_synchronize_is_an_error() -> None:
    model = two_layers()
    optimizer = wrapped_sgd(model, Echo())
    backward(model)
    nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    with pytest.raises(rr.UsageError, match=r"synchronize\(\) before you clip"):
        optimizer.step()
    optimizer.zero_grad()
    backward(model)
    optimizer.step()


def test_replaced_gradient_is_an_error() -> None:
    model = two_layers()
    optimizer = wrapped_sgd(model, Echo())
    backward(model)
    model[0].bias.grad = torch.zeros_like(model[0].bias)
    with pytest.raises(rr.UsageError, match=r"0\.bias"):
        optimizer.step()


def test_unused_parameter_stays_none_when_no_rank_used_it() -> None:
    model = two_layers()
    model.register_parameter("unused", nn.Parameter(torch.ones(2, dtype=torch.float64)))
    optimizer = wrapped_sgd(model, Echo())
    backward(model)
    optimizer.step()
    assert model.unused.grad is None
    assert torch.equal(model.unused.detach(), torch.ones(2, dtype=torch.float64))


def test_parameter_unused_here_gets_the_average_of_the_others() -> None:
    model, reducer = two_layers(), Echo(size=4)
    model.register_parameter("unused", nn.Parameter(torch.ones(2, dtype=torch.float64)))
    optimizer = wrapped_sgd(model, reducer)
    reducer.flags_of_others = torch.ones_like
    reducer.gradients_of_others = torch.ones_like
    for _ in range(2):  # nothing of the first round may be left in the buffer
        optimizer.zero_grad()
        backward(model)
        optimizer.step()
        assert torch.equal(model.unused.grad, torch.full((2,), 0.75, dtype=torch.float64))


def test_gradients_of_any_memory_format_keep_it() -> None:
    torch.manual_seed(0)
    model = nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), reducer=Echo())
    model(torch.ones(1, 2, 5, 5)).sum().backward()
    own = model.weight.grad.clone()  # type: ignore[union-attr]
    optimizer.step()
    assert torch.equal(model.weight.grad, own)  # type: ignore[arg-type]


def test_mixed_dtypes_travel_in_buckets_of_their_own() -> None:
    reducer = Echo()
    parameters = [
        nn.Parameter(torch.ones(3, dtype=dtype)) for dtype in (torch.float32, torch.bfloat16, torch.complex64)
    ]
    optimizer = DistributedOptimizer(torch.optim.SGD(parameters, lr=0.1), reducer=reducer)
    sum((parameter.abs().float() * 2).sum() for parameter in parameters).backward()  # type: ignore[union-attr]
    optimizer.step()
    assert [name for name in reducer.calls if "bucket" in name] == [f"gradient bucket {k}" for k in range(3)]


# Several backward passes


def test_second_backward_is_an_error_and_zero_grad_recovers() -> None:
    reducer, model = Echo(), two_layers()
    optimizer = wrapped_sgd(model, reducer)
    backward(model)
    with pytest.raises(rr.UsageError, match="backward_passes_per_step"):
        backward(model)
    optimizer.zero_grad()
    assert reducer.calls == ["gradient bucket 0", "gradient flags, dropped"]
    backward(model)
    optimizer.step()


@pytest.mark.parametrize("passes", [2, 3])
def test_accumulation_over_passes(passes: int) -> None:
    reducer, plain, model = Echo(), two_layers(), two_layers()
    optimizer, distributed = (
        torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9),
        wrapped_sgd(model, reducer, backward_passes_per_step=passes),
    )
    for count in (passes, passes, passes - 1):  # the last step has a pass less, as the end of an epoch may
        for net, opt in ((plain, optimizer), (model, distributed)):
            opt.zero_grad()
            for _ in range(count):
                backward(net)
            opt.step()
    assert same(plain, model)
    assert reducer.calls == ["gradient bucket 0", "gradient flags, step"] * 3
    distributed.zero_grad()
    for _ in range(passes):
        backward(model)
    with pytest.raises(rr.UsageError):
        backward(model)


def test_no_sync_accumulates_here_and_the_next_pass_exchanges() -> None:
    reducer, plain, model = Echo(), two_layers(), two_layers()
    optimizer, distributed = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9), wrapped_sgd(model, reducer)
    with distributed.no_sync():
        backward(model)
    assert reducer.calls == []
    backward(model)
    assert reducer.calls == ["gradient bucket 0"]
    with pytest.raises(rr.UsageError), distributed.no_sync():
        backward(model)
    distributed.zero_grad()
    with distributed.no_sync():
        backward(model)
        backward(model)
    distributed.step()
    backward(plain)
    backward(plain)
    optimizer.step()
    assert same(plain, model)


def test_backward_after_synchronize_is_right_for_average_and_refused_for_sum() -> None:
    reducer, model = Echo(), two_layers()
    optimizer = wrapped_sgd(model, reducer)
    backward(model)
    once = gradients(model)
    optimizer.synchronize()
    backward(model)
    optimizer.synchronize()
    for before, after in zip(once, gradients(model), strict=True):
        assert before is not None and after is not None
        assert torch.equal(2 * before, after)
    model = two_layers()
    optimizer = wrapped_sgd(model, Echo(), op=rr.Sum)
    backward(model)
    optimizer.synchronize()
    with pytest.raises(rr.UsageError, match="op=Sum"):
        backward(model)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad(set_to_none: bool) -> None:
    reducer, plain, model = Echo(), two_layers(), two_layers()
    optimizer, distributed = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9), wrapped_sgd(model, reducer)
    for _ in range(3):
        for net, opt in ((plain, optimizer), (model, distributed)):
            backward(net)
            opt.step()
            opt.zero_grad(set_to_none=set_to_none)
    assert same(plain, model)
    assert all((gradient is None) == set_to_none for gradient in gradients(model))


def test_zero_grad_drops_a_pass_and_finishes_the_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_buckets, "__defaults__", (40,))
    reducer, model = Echo(), two_layers()
    optimizer = wrapped_sgd(model, reducer)
    optimizer.zero_grad()
    assert reducer.calls == []
    model[2](torch.ones(1, 4, dtype=torch.float64)).sum().backward()  # reaches the first bucket only
    assert reducer.calls == ["gradient bucket 0"]
    optimizer.zero_grad()
    assert reducer.calls == [f"gradient bucket {k}" for k in range(3)] + ["gradient flags, dropped"]


# Closures, schedulers, state


@pytest.mark.parametrize("line_search", [None, "strong_wolfe"])
def test_lbfgs_closure(line_search: str | None) -> None:
    plain, model = two_layers(), two_layers()
    inner = torch.optim.LBFGS(model.parameters(), max_iter=5, line_search_fn=line_search)
    distributed = DistributedOptimizer(inner, reducer=Echo())
    optimizer = torch.optim.LBFGS(plain.parameters(), max_iter=5, line_search_fn=line_search)
    losses = []
    for net, opt in ((plain, optimizer), (model, distributed)):

        def closure(net: nn.Module = net, opt: torch.optim.Optimizer = opt) -> torch.Tensor:
            opt.zero_grad()
            return backward(net)

        losses.append([float(opt.step(closure)) for _ in range(3)])  # type: ignore[arg-type]
    assert losses[0] == losses[1]
    assert same(plain, model)


def test_closure_sees_exchanged_gradients_and_its_loss_is_reduced() -> None:
    model = two_layers()
    optimizer = wrapped_sgd(model, Echo(size=4), op=rr.Sum)
    losses = []

    def closure() -> float:
        optimizer.zero_grad()
        losses.append(float(backward(model)))
        return losses[-1]

    before = copy.deepcopy(model)
    own = gradients_of(before)
    assert optimizer.step(closure) == pytest.approx(4 * losses[0])
    for old, new, gradient in zip(before.parameters(), model.parameters(), own, strict=True):
        torch.testing.assert_close(new.detach(), old.detach() - 0.1 * 4 * gradient)
    assert optimizer.step(lambda: None) is None


def gradients_of(model: nn.Module) -> list[torch.Tensor]:
    backward(model)
    return [gradient for gradient in gradients(model) if gradient is not None]


@pytest.mark.filterwarnings("error")
def test_schedulers_see_an_optimizer() -> None:
    model = two_layers()
    optimizer = wrapped_sgd(model, Echo())
    assert isinstance(optimizer, torch.optim.Optimizer)
    schedulers = [
        torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5),
        torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.2, total_steps=5),
    ]
    backward(model)
    optimizer.step()
    for scheduler in schedulers:
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == schedulers[-1].get_last_lr()[0]
    assert optimizer._inner.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]


def test_state_dict_round_trip() -> None:
    model, other = two_layers(), two_layers()
    first, second = wrapped_sgd(model, Echo()), wrapped_sgd(other, Echo())
    for _ in range(2):
        first.zero_grad()
        backward(model)
        first.step()
    other.load_state_dict(model.state_dict())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    plain = torch.optim.SGD(two_layers().parameters(), lr=0.3)
    plain.load_state_dict(first.state_dict())
    assert plain.param_groups[0]["lr"] == 0.1
    for net, optimizer in ((model, first), (other, second)):
        optimizer.zero_grad()
        backward(net)
        optimizer.step()
    assert same(model, other)


def test_composed_face() -> None:
    model = two_layers()
    inner = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer = DistributedOptimizer(inner, reducer=Echo())
    assert optimizer.param_groups is inner.param_groups
    assert optimizer.defaults is inner.defaults
    assert "SGD" in repr(optimizer)
    assert optimizer.__getstate__()["param_groups"] is inner.param_groups
    backward(model)
    optimizer.step()
    assert optimizer.state is inner.state and len(optimizer.state) == 4
    for action in (pickle.dumps, copy.deepcopy):
        with pytest.raises(rr.UsageError, match="state_dict"):
            action(optimizer)  # type: ignore[operator]
    with pytest.raises(AttributeError):
        _ = optimizer.no_such_attribute


def test_step_hooks_and_grad_scaler() -> None:
    model = two_layers(torch.float32)
    optimizer = wrapped_sgd(model, Echo())
    steps = []
    optimizer.register_step_post_hook(lambda *_: steps.append(1))
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for poison in (1.0, float("inf"), 1.0):
        optimizer.zero_grad()
        scaler.scale(model(INPUTS.float()).sum() * poison).backward()
        optimizer.synchronize()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        scaler.step(optimizer)
        scaler.update()
    assert len(steps) == 2
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_added_group_takes_part() -> None:
    reducer, model = Echo(size=4), two_layers()
    optimizer = DistributedOptimizer(torch.optim.SGD(model[0].parameters(), lr=0.1), op=rr.Sum, reducer=reducer)
    backward(model)
    with pytest.raises(rr.UsageError, match="between"):
        optimizer.add_param_group({"params": model[2].parameters()})
    optimizer.zero_grad()
    optimizer.add_param_group({"params": list(model[2].parameters()), "lr": 0.5})
    model.zero_grad()
    backward(model)
    own = gradients(model)
    optimizer.synchronize()
    for before, after in zip(own, gradients(model), strict=True):
        assert before is not None and after is not None
        assert torch.equal(4 * before, after)


# Lifetime, size 1, communication time


def test_hooks_go_with_the_optimizer_and_nothing_keeps_the_model() -> None:
    gc.disable()
    try:
        reducer, model = Echo(), two_layers()
        optimizer = wrapped_sgd(model, reducer)
        backward(model)
        del optimizer
        reducer.calls.clear()
        assert not any(parameter._post_accumulate_grad_hooks for parameter in model.parameters())
        backward(model)
        assert reducer.calls == []
        weak = weakref.ref(model[0].weight)
        del model
        assert weak() is None
    finally:
        gc.enable()


def test_closed_optimizer_does_not_step() -> None:
    model = two_layers()
    optimizer = wrapped_sgd(model, Echo())
    optimizer.close()
    optimizer.close()
    backward(model)
    with pytest.raises(rr.UsageError, match="close"):
        optimizer.step()


def test_single_process_has_no_hooks() -> None:
    reducer, plain, model = Echo(size=1), two_layers(), two_layers()
    optimizer, distributed = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9), wrapped_sgd(model, reducer)
    assert not any(parameter._post_accumulate_grad_hooks for parameter in model.parameters())
    for net, opt in ((plain, optimizer), (model, distributed)):
        backward(net)
        opt.step()
    with distributed.no_sync():
        distributed.synchronize()
    assert same(plain, model)
    assert reducer.tags == [] and distributed.communication_seconds == 0.0


def test_communication_seconds_grow() -> None:
    model = two_layers()
    optimizer = wrapped_sgd(model, Echo())
    assert optimizer.communication_seconds == 0.0
    backward(model)
    optimizer.step()
    first = optimizer.communication_seconds
    assert first > 0.0
    optimizer.step()
    assert optimizer.communication_seconds > first


# Validation


def test_names() -> None:
    model = two_layers()
    groups = torch.optim.SGD(model.parameters(), lr=0.1).param_groups
    assert [name for name, _ in name_parameters(groups, None)] == [f"parameter.0.{k}" for k in range(4)]
    named = list(model.named_parameters())
    assert [name for name, _ in name_parameters(groups, named)] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    with pytest.raises(rr.UsageError, match=r"more than once: 0\.weight"):
        name_parameters(groups, [*named, named[0]])
    with pytest.raises(rr.UsageError, match="entry 0 is Parameter"):
        name_parameters(groups, model.parameters())  # type: ignore[arg-type]
    with pytest.raises(rr.UsageError, match=r"entry 1 is \(Parameter, str\)"):
        name_parameters(groups, [named[0], named[1][::-1]])  # type: ignore[list-item]
    with pytest.raises(rr.UsageError, match=r"1 have no name: group 0 index 3 of shape \(1,\)"):
        name_parameters(groups, named[:3])


def test_bad_arguments() -> None:
    model = two_layers()
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        DistributedOptimizer(inner, backward_passes_per_step=0, reducer=Echo())
    with pytest.raises(ValueError, match="Average or Sum"):
        DistributedOptimizer(inner, op=rr.Max, reducer=Echo())
    with pytest.raises(ValueError, match="once; got DistributedOptimizer"):
        DistributedOptimizer(DistributedOptimizer(inner, reducer=Echo()), reducer=Echo())
    with pytest.raises(ValueError, match="CPU"):
        meta = nn.Linear(2, 2, device="meta")
        DistributedOptimizer(torch.optim.SGD(meta.parameters(), lr=0.1), reducer=Echo())


def test_sparse_gradient_is_refused() -> None:
    model = nn.Embedding(4, 2, sparse=True)
    _optimizer = DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), reducer=Echo())
    with pytest.raises(rr.UsageError, match="sparse=False"):
        model(torch.tensor([1])).sum().backward()


def test_frozen_parameters_are_left_out_and_unfreezing_is_noticed() -> None:
    model = two_layers()
    model[0].requires_grad_(False)
    optimizer = wrapped_sgd(model, Echo())
    backward(model)
    optimizer.step()
    assert model[0].weight.grad is None
    optimizer.zero_grad()
    model[0].requires_grad_(True)
    backward(model)
    with pytest.raises(rr.UsageError, match=r"0\.weight.*after unfreezing"):
        optimizer.step()


def test_unscaling_before_the_exchange_is_an_error() -> None:
    """GradScaler changes gradients in place without a trace in the version counter."""
    model = two_layers(torch.float32)
    optimizer = DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), reducer=Echo())
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    scaler.scale(model(torch.ones(2, 3)).sum()).backward()
    with pytest.raises(rr.UsageError, match=r"may not change.*synchronize\(\).*GradScaler"):
        scaler.step(optimizer)
    optimizer.zero_grad()
    scaler.scale(model(torch.ones(2, 3)).sum()).backward()
    optimizer.synchronize()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    scaler.step(optimizer)
    assert any(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
