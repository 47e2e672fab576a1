"""The distributed optimizer with no communication: a stand-in plays the other ranks.

`Echo` pretends that `size` ranks hold the same numbers as this one: a sum is `size` times the own value, an average is
the own value. What the other ranks hold can be set for a message, and all calls are recorded.
"""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import ringred as rr
from ringred.torch.compression import Compression
from ringred.torch.groups import form_groups
from ringred.torch.names import name_parameters
from ringred.torch.optimizer import DistributedOptimizer


class Done:
    """What the stand-in has already done."""

    def __init__(self, result: object = None) -> None:
        self.result = result
        self.squares = 0.0  # this rank's part

    def wait(self) -> object:
        return self.result


class Echo:
    """A channel whose other ranks hold what this one holds, unless the functions below say something else.

    `calls` lists what was sent, `after` what is done when somebody waits: until then nothing has come back. With
    `buckets` it offers an arena, so that gradients are gathered from the second round on.
    """

    rank = 0

    def __init__(self, size: int = 4, buckets: bool = False) -> None:
        self.size = size
        if buckets:
            self.allocate = _zeros
            self.reduce_in_place = self._reduce_in_place
            self.lends_memory = lambda: False
        self.ranks = range(size)
        self.calls: list[str] = []
        self.options: list[tuple[float, float, str]] = []
        self.flags_of_others: Callable[[torch.Tensor], torch.Tensor] = lambda flags: flags
        self.gradients_of_others: Callable[[torch.Tensor], torch.Tensor] = lambda gradients: gradients
        self.layout_of_others: Callable[[object], object] = lambda layout: layout
        self.intent_of_others: int | None = None

    def allreduce_(
        self,
        tensors: Sequence[torch.Tensor],
        op: object,
        name: str,
        prescale_factor: float = 1.0,
        postscale_factor: float = 1.0,
        wire: str = "",
    ) -> Done:
        self.calls.append(name)
        if name == "flags":
            self._exchange_flags(tensors[0])
            return Done()
        if op == rr.Max or op == rr.Adasum:
            return Done()
        self.options.append((prescale_factor, postscale_factor, wire))
        for tensor in tensors:
            assert tensor.is_contiguous() and not tensor.requires_grad
            others = self.gradients_of_others(tensor) if name.startswith("gradient") else tensor
            total = tensor + (self.size - 1) * others
            tensor.data.copy_(total / self.size if op == rr.Average else total)  # leaves no trace in the version
        return Done()

    def _reduce_in_place(self, array: torch.Tensor, op: object, name: str, norm: bool = False) -> Done:
        self.calls.append(name)
        total = array + (self.size - 1) * self.gradients_of_others(array)
        array.data.copy_(total / self.size if op == rr.Average else total)
        done = Done()
        done.squares = float(array.double().square().sum()) / self.size if norm else 0.0
        return done

    def _exchange_flags(self, flags: torch.Tensor) -> None:
        own, intents = flags[: -self.size], flags[-self.size :]
        own.copy_(torch.maximum(own, self.flags_of_others(own)))
        intents[1:] = intents[0] if self.intent_of_others is None else self.intent_of_others

    def sparse_allreduce(self, tensor: torch.Tensor, op: object, name: str) -> Done:
        self.calls.append(f"sparse {name}")
        return Done((tensor if op == rr.Average else tensor * self.size).coalesce())

    def lateness(self) -> list[float]:
        return [0.0] * self.size

    def check_replicas(self, named: object) -> None:
        """They hold what this one holds."""

    def share(self, value: object, name: str) -> list[object]:
        self.calls.append("layout")
        return [value, *[self.layout_of_others(value)] * (self.size - 1)]


def _zeros(size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.zeros(size, np.uint8)


def two_layers(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).to(dtype)


def wrapped_sgd(model: nn.Module, channel: Echo, **options: object) -> DistributedOptimizer:
    inner = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return DistributedOptimizer(inner, model.named_parameters(), channel=channel, **options)  # type: ignore[arg-type]


INPUTS = torch.arange(15, dtype=torch.float64).view(5, 3) / 10


def backward(model: nn.Module) -> torch.Tensor:
    loss: torch.Tensor = model(INPUTS).square().mean()
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def gradients(model: nn.Module) -> list[torch.Tensor | None]:
    return [None if parameter.grad is None else parameter.grad.clone() for parameter in model.parameters()]


def same(left: nn.Module, right: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left.parameters(), right.parameters(), strict=True))


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


ROUND = ["gradient.2.bias", "gradient.2.weight", "gradient.0.bias", "gradient.0.weight", "flags"]


def first_round(model: nn.Module, optimizer: DistributedOptimizer, channel: Echo) -> None:
    """Get the round over with in which ranks compare layouts; the later ones send during backward."""
    backward(model)
    optimizer.synchronize()
    optimizer.zero_grad()
    assert "layout" in channel.calls
    channel.calls.clear()


def test_gradients_are_sent_during_backward_once_layouts_are_known_to_agree() -> None:
    channel, model = Echo(), two_layers()
    optimizer = wrapped_sgd(model, channel)
    backward(model)
    assert channel.calls == []
    optimizer.step()
    assert channel.calls[:2] == ["layout", "flags"] and sorted(channel.calls[2:]) == sorted(ROUND[:-1])
    channel.calls.clear()
    optimizer.zero_grad()
    backward(model)
    assert sorted(channel.calls) == sorted(ROUND[:-1])
    optimizer.step()
    assert channel.calls[4:] == ["flags"]


def test_a_group_is_sent_when_its_last_gradient_is_there() -> None:
    channel, model = Echo(), two_layers()
    optimizer = wrapped_sgd(model, channel, groups=[[model[0].bias, model[2].weight]])
    first_round(model, optimizer, channel)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    exchange = optimizer._exchange
    assert exchange is not None
    sent = []
    for index in (2, 3, 1, 0):  # by the order of the parameters: 0.weight, 0.bias, 2.weight, 2.bias
        exchange.arrive(index)
        sent.append(list(channel.calls))
        channel.calls.clear()
    assert sent == [[], ["gradient.2.bias"], ["gradients.0.0.bias"], ["gradient.0.weight"]]
    optimizer.step()
    assert channel.calls == ["flags"]


@pytest.mark.parametrize("groups", [1, 2, 3, 100])
def test_number_of_groups(groups: int) -> None:
    channel, model = Echo(), two_layers()
    optimizer = wrapped_sgd(model, channel, groups=groups)
    first_round(model, optimizer, channel)
    backward(model)
    assert len(channel.calls) == min(groups, 4)


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
    channel, model = Echo(), two_layers()
    optimizer = wrapped_sgd(model, channel)
    first_round(model, optimizer, channel)
    backward(model)
    optimizer.synchronize()
    optimizer.synchronize()
    nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    clipped = gradients(model)
    optimizer.step()
    assert channel.calls == ROUND
    assert all(torch.equal(a, b) for a, b in zip(clipped, gradients(model), strict=True))  # type: ignore[arg-type]
    optimizer.step()
    assert channel.calls[5] == "flags" and sorted(channel.calls[5:]) == sorted(ROUND)


@pytest.mark.parametrize("in_first_round", [True, False])
def test_clipping_before_synchronize_is_an_error(in_first_round: bool) -> None:
    channel, model = Echo(), two_layers()
    optimizer = wrapped_sgd(model, channel)
    if not in_first_round:
        first_round(model, optimizer, channel)
    backward(model)
    nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    with pytest.raises(rr.UsageError, match=r"synchronize\(\) before you clip"):
        optimizer.step()
    optimizer.zero_grad()
    backward(model)
    optimizer.step()


def test_replaced_gradient_is_an_error() -> None:
    channel, model = Echo(), two_layers()
    optimizer = wrapped_sgd(model, channel)
    first_round(model, optimizer, channel)
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
    model, channel = two_layers(), Echo(size=4)
    model.register_parameter("unused", nn.Parameter(torch.ones(2, dtype=torch.float64)))
    optimizer = wrapped_sgd(model, channel)
    channel.flags_of_others = torch.ones_like
    channel.gradients_of_others = torch.ones_like
    for _ in range(2):  # nothing of the first round may be left in the buffer
        optimizer.zero_grad()
        backward(model)
        optimizer.step()
        assert torch.equal(model.unused.grad, torch.full((2,), 0.75, dtype=torch.float64))


def test_gradients_of_any_memory_format_keep_it() -> None:
    torch.manual_seed(0)
    model = nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), channel=Echo())
    model(torch.ones(1, 2, 5, 5)).sum().backward()
    own = model.weight.grad.clone()  # type: ignore[union-attr]
    optimizer.step()
    assert torch.equal(model.weight.grad, own)  # type: ignore[arg-type]


def test_compression_options() -> None:
    for compression, wire in ((Compression.none, ""), (Compression.fp16, "float16"), (Compression.bf16, "bfloat16")):
        channel, model = Echo(), two_layers()
        optimizer = wrapped_sgd(model, channel, compression=compression, gradient_predivide_factor=4.0)
        backward(model)
        optimizer.step()
        assert set(channel.options) == {(0.25, 4.0, wire)}


class Halving:
    """A compressor of the user's, an object, not a class: float32, in the opposite order, scaled."""

    def compress(self, tensor: torch.Tensor) -> tuple[torch.Tensor, float]:
        return (tensor / 2).float().reshape(-1).flip(0), 2.0

    def decompress(self, tensor: torch.Tensor, ctx: float) -> torch.Tensor:
        return tensor.flip(0).double() * ctx


def test_compressor_of_the_users() -> None:
    channel, model = Echo(), two_layers()

    class Shaped(Halving):
        def compress(self, tensor: torch.Tensor) -> tuple[torch.Tensor, object]:  # type: ignore[override]
            message, factor = super().compress(tensor)
            return message, (factor, tensor.shape)

        def decompress(self, tensor: torch.Tensor, ctx: object) -> torch.Tensor:
            factor, shape = ctx  # type: ignore[misc]
            return super().decompress(tensor, factor).view(shape)

    optimizer = wrapped_sgd(model, channel, compression=Shaped())
    for _ in range(2):
        optimizer.zero_grad()
        backward(model)
        own = gradients(model)
        optimizer.synchronize()
        for before, after in zip(own, gradients(model), strict=True):
            torch.testing.assert_close(after, before, rtol=1e-6, atol=1e-6)
            assert after is not None and after.dtype == torch.float64


def embedding() -> tuple[nn.Embedding, DistributedOptimizer, Echo]:
    torch.manual_seed(0)
    model, channel = nn.Embedding(5, 2, sparse=True), Echo(size=4)
    return model, DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.5), op=rr.Sum, channel=channel), channel


def test_sparse_gradients_travel_sparse() -> None:
    model, optimizer, channel = embedding()
    for _ in range(2):
        optimizer.zero_grad()
        channel.calls.clear()
        model(torch.tensor([1, 1, 3])).sum().backward()
        optimizer.synchronize()
        assert "sparse gradient.parameter.0.0" in channel.calls and "gradient.parameter.0.0" not in channel.calls
        expected = torch.zeros(5, 2).index_fill_(0, torch.tensor([1]), 8.0).index_fill_(0, torch.tensor([3]), 4.0)
        assert model.weight.grad is not None and model.weight.grad.is_sparse
        assert torch.equal(model.weight.grad.to_dense(), expected)
    optimizer.zero_grad()
    channel.flags_of_others = lambda flags: torch.full_like(flags, 2)
    optimizer.step()  # this rank has none, another one has a sparse one
    assert model.weight.grad is not None and model.weight.grad._nnz() == 0


def test_sparse_as_dense() -> None:
    model, channel = nn.Embedding(5, 2, sparse=True), Echo(size=4)
    inner = torch.optim.SGD(model.parameters(), lr=0.5)
    optimizer = DistributedOptimizer(inner, op=rr.Sum, sparse_as_dense=True, channel=channel)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.tensor([1, 1, 3])).sum().backward()
        optimizer.synchronize()
        assert model.weight.grad is not None and model.weight.grad.layout == torch.strided
        assert model.weight.grad.sum(1).tolist() == [0.0, 16.0, 0.0, 8.0, 0.0]
    assert not any(call.startswith("sparse") for call in channel.calls)


def test_frozen_and_thawed_parameters() -> None:
    channel, plain, model = Echo(), two_layers(), two_layers()
    for net in (plain, model):
        net[0].requires_grad_(False)
    optimizer, distributed = torch.optim.SGD(plain.parameters(), lr=0.1), wrapped_sgd(model, channel)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
    for step in range(6):
        for net, opt in ((plain, optimizer), (model, distributed)):
            net[0].requires_grad_(step in (2, 3))
            net[2].requires_grad_(step != 3)
            opt.zero_grad()
            backward(net)
            opt.step()
        trained = {
            1: ["2.bias", "2.weight"],
            2: ["0.bias", "0.weight", "2.bias", "2.weight"],
            3: ["0.bias", "0.weight"],
        }
        if step in trained:
            assert sorted(channel.calls[:-1]) == [f"gradient.{name}" for name in trained[step]]
        channel.calls.clear()
    assert same(plain, model)


# Several backward passes


def test_second_backward_is_an_error_and_zero_grad_recovers() -> None:
    channel, model = Echo(), two_layers()
    optimizer = wrapped_sgd(model, channel)
    backward(model)
    with pytest.raises(rr.UsageError, match="backward_passes_per_step"):
        backward(model)
    optimizer.zero_grad()
    assert channel.calls == ["layout", "flags"]
    for parameter in model.parameters():
        assert parameter.grad is None
    channel.calls.clear()
    backward(model)
    with pytest.raises(rr.UsageError, match="backward_passes_per_step"):
        backward(model)
    optimizer.zero_grad()
    assert channel.calls[-1] == "flags" and sorted(channel.calls) == sorted(ROUND)
    backward(model)
    optimizer.step()


@pytest.mark.parametrize("passes", [2, 3])
def test_accumulation_over_passes(passes: int) -> None:
    channel, plain, model = Echo(), two_layers(), two_layers()
    optimizer, distributed = (
        torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9),
        wrapped_sgd(model, channel, backward_passes_per_step=passes),
    )
    for count in (passes, passes, passes - 1):  # the last step has a pass less, as the end of an epoch may
        for net, opt in ((plain, optimizer), (model, distributed)):
            opt.zero_grad()
            for _ in range(count):
                backward(net)
            opt.step()
    assert same(plain, model)
    assert sorted(channel.calls[1:]) == sorted(ROUND * 3)
    distributed.zero_grad()
    for _ in range(passes):
        backward(model)
    with pytest.raises(rr.UsageError):
        backward(model)


def test_no_sync_accumulates_here_and_the_next_pass_exchanges() -> None:
    channel, plain, model = Echo(), two_layers(), two_layers()
    optimizer, distributed = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9), wrapped_sgd(model, channel)
    with distributed.no_sync():
        backward(model)
    backward(model)
    assert channel.calls == []
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
    channel, model = Echo(), two_layers()
    optimizer = wrapped_sgd(model, channel)
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
    channel, plain, model = Echo(), two_layers(), two_layers()
    optimizer, distributed = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9), wrapped_sgd(model, channel)
    for _ in range(3):
        for net, opt in ((plain, optimizer), (model, distributed)):
            backward(net)
            opt.step()
            opt.zero_grad(set_to_none=set_to_none)
    assert same(plain, model)
    assert all((gradient is None) == set_to_none for gradient in gradients(model))


def test_zero_grad_drops_a_pass_and_finishes_the_exchange() -> None:
    channel, model = Echo(), two_layers()
    optimizer = wrapped_sgd(model, channel)
    optimizer.zero_grad()
    assert channel.calls == []
    first_round(model, optimizer, channel)
    model[2](torch.ones(1, 4, dtype=torch.float64)).sum().backward()  # reaches the last layer only
    assert sorted(channel.calls) == ["gradient.2.bias", "gradient.2.weight"]
    channel.calls.clear()
    channel.flags_of_others = lambda flags: torch.ones_like(flags)  # another rank got further
    optimizer.zero_grad()
    assert channel.calls == ["flags", "gradient.0.weight", "gradient.0.bias"]


def test_a_rank_that_drops_what_others_step_on_is_told_of() -> None:
    channel, model = Echo(size=3), two_layers()
    optimizer = wrapped_sgd(model, channel)
    backward(model)
    channel.intent_of_others = 2
    with pytest.raises(rr.MismatchError, match=r"rank\(s\) 0 called step\(\).*rank\(s\) 1, 2 called zero_grad"):
        optimizer.step()
    channel.intent_of_others = None
    optimizer.zero_grad()
    backward(model)
    optimizer.step()


def test_different_layouts_are_told_of() -> None:
    channel, model = Echo(size=3), two_layers()
    channel.layout_of_others = lambda layout: "other" if isinstance(layout, str) else layout[:1]  # type: ignore[index]
    optimizer = wrapped_sgd(model, channel)
    backward(model)
    with pytest.raises(
        rr.MismatchError, match=r"entry 1 is '0.bias' of shape \(4,\), torch.float64 on rank 0; none on"
    ):
        optimizer.step()


# Closures, schedulers, state


@pytest.mark.parametrize("line_search", [None, "strong_wolfe"])
def test_lbfgs_closure(line_search: str | None) -> None:
    plain, model = two_layers(), two_layers()
    inner = torch.optim.LBFGS(model.parameters(), max_iter=5, line_search_fn=line_search)
    distributed = DistributedOptimizer(inner, channel=Echo())
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
    optimizer = DistributedOptimizer(inner, channel=Echo())
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


@pytest.mark.parametrize("manner", ["plain", "unscale", "synchronize", "skip_synchronize"])
def test_step_hooks_and_grad_scaler(manner: str) -> None:
    channel, model = Echo(), two_layers(torch.float32)
    optimizer = wrapped_sgd(model, channel)
    plain = two_layers(torch.float32)
    reference = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
    steps = []
    optimizer.register_step_post_hook(lambda *_: steps.append(1))
    scaler, other = (torch.amp.GradScaler("cpu", init_scale=8.0) for _ in range(2))
    for poison in (1.0, float("inf"), 1.0):
        for net, opt, scale in ((plain, reference, other), (model, optimizer, scaler)):
            opt.zero_grad()
            scale.scale(net(INPUTS.float()).sum() * poison).backward()  # type: ignore[no-untyped-call]
            if manner.endswith("synchronize") and opt is optimizer:
                optimizer.synchronize()
            if manner != "plain":
                scale.unscale_(opt)
                nn.utils.clip_grad_norm_(net.parameters(), 0.1)
            with optimizer.skip_synchronize() if manner == "skip_synchronize" else nullcontext():
                scale.step(opt)
            scale.update()
    assert len(steps) == 2 and channel.calls.count("flags") == 3
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    assert same(plain, model)


def test_other_ranks_overflow_is_everybodys() -> None:
    channel, model = Echo(), two_layers(torch.float32)
    optimizer = wrapped_sgd(model, channel)
    before = copy.deepcopy(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    channel.gradients_of_others = lambda gradients: torch.full_like(gradients, float("inf"))
    scaler.scale(model(INPUTS.float()).sum()).backward()  # type: ignore[no-untyped-call]
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 4.0 and same(before, model)


def test_skip_synchronize_wants_averages() -> None:
    model = two_layers()
    optimizer = wrapped_sgd(model, Echo())
    backward(model)
    with pytest.raises(rr.UsageError, match="call synchronize"), optimizer.skip_synchronize():
        optimizer.step()
    optimizer.synchronize()
    with optimizer.skip_synchronize():
        optimizer.step()


def test_fused_optimizer_inside_is_unscaled() -> None:
    plain, model = two_layers(torch.float32), two_layers(torch.float32)
    reference = torch.optim.Adam(plain.parameters(), fused=True)
    optimizer = DistributedOptimizer(torch.optim.Adam(model.parameters(), fused=True), channel=Echo())
    for net, opt in ((plain, reference), (model, optimizer)):
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        scaler.scale(net(INPUTS.float()).sum()).backward()  # type: ignore[no-untyped-call]
        scaler.step(opt)
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_passes_are_counted_anew_after_loading_and_setting() -> None:
    channel, model = Echo(), two_layers()
    optimizer = wrapped_sgd(model, channel, backward_passes_per_step=2)
    first_round(model, optimizer, channel)
    backward(model)
    optimizer.load_state_dict(optimizer.state_dict())
    backward(model)
    assert channel.calls == []
    backward(model)
    assert len(channel.calls) == 4
    for action in (
        lambda: optimizer.load_state_dict(optimizer.state_dict()),
        lambda: optimizer.set_backward_passes_per_step(1),
    ):
        with pytest.raises(rr.UsageError, match="on their way"):
            action()
    optimizer.zero_grad()
    optimizer.set_backward_passes_per_step(1)
    channel.calls.clear()
    backward(model)
    assert len(channel.calls) == 4
    with pytest.raises(ValueError, match="at least 1"):
        optimizer.set_backward_passes_per_step(0)


def test_adasum_combines_steps() -> None:
    channel, plain, model = Echo(), two_layers(), two_layers()
    optimizer = torch.optim.Adam(plain.parameters())
    distributed = DistributedOptimizer(torch.optim.Adam(model.parameters()), op=rr.Adasum, channel=channel)
    for net, opt in ((plain, optimizer), (model, distributed)):
        for _ in range(2):
            opt.zero_grad()
            backward(net)
            opt.step()
    assert channel.calls == ["layout", "deltas", "deltas"]
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
    distributed.synchronize()
    with pytest.raises(rr.UsageError, match="nothing to skip"), distributed.skip_synchronize():
        pass


def test_added_group_takes_part() -> None:
    channel, model = Echo(size=4), two_layers()
    optimizer = DistributedOptimizer(torch.optim.SGD(model[0].parameters(), lr=0.1), op=rr.Sum, channel=channel)
    backward(model)
    with pytest.raises(rr.UsageError, match="on their way"):
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
        channel, model = Echo(), two_layers()
        optimizer = wrapped_sgd(model, channel)
        backward(model)
        del optimizer
        channel.calls.clear()
        assert not any(parameter._post_accumulate_grad_hooks for parameter in model.parameters())
        backward(model)
        assert channel.calls == []
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
    channel, plain, model = Echo(size=1), two_layers(), two_layers()
    optimizer, distributed = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9), wrapped_sgd(model, channel)
    assert not any(parameter._post_accumulate_grad_hooks for parameter in model.parameters())
    for net, opt in ((plain, optimizer), (model, distributed)):
        backward(net)
        opt.step()
    with distributed.no_sync():
        distributed.synchronize()
    assert same(plain, model)
    assert channel.calls == [] and distributed.communication_seconds == 0.0


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
    with pytest.raises(ValueError, match="at least 1: it is 0"):
        DistributedOptimizer(inner, backward_passes_per_step=0, channel=Echo())
    with pytest.raises(ValueError, match="Average, Sum or Adasum"):
        DistributedOptimizer(inner, op=rr.Max, channel=Echo())
    with pytest.raises(ValueError, match="goes with op=Average"):
        DistributedOptimizer(inner, op=rr.Sum, gradient_predivide_factor=2.0, channel=Echo())
    with pytest.raises(ValueError, match="positive"):
        DistributedOptimizer(inner, gradient_predivide_factor=0.0, channel=Echo())
    with pytest.warns(DeprecationWarning, match="num_groups"):
        DistributedOptimizer(inner, num_groups=2, channel=Echo())
    with pytest.raises(ValueError, match="once; got DistributedOptimizer"):
        DistributedOptimizer(DistributedOptimizer(inner, channel=Echo()), channel=Echo())
    with pytest.raises(ValueError, match="CPU"):
        meta = nn.Linear(2, 2, device="meta")
        DistributedOptimizer(torch.optim.SGD(meta.parameters(), lr=0.1), channel=Echo())


def test_bad_groups() -> None:
    named = list(two_layers().named_parameters())
    parameters = [parameter for _, parameter in named]
    assert form_groups(named, None) == form_groups(named, 0) == []
    assert form_groups(named, 3) == [[0], [1], [2, 3]]
    assert form_groups(named, [parameters[:1], [torch.ones(1)], [parameters[3], parameters[1]]]) == [[0], [3, 1]]
    for groups in (-1, True, "text", 1.5):
        with pytest.raises(ValueError, match="non-negative number"):
            form_groups(named, groups)
    for groups in ([parameters[0]], [[1]]):
        with pytest.raises(ValueError, match="lists of parameters"):
            form_groups(named, groups)
    for groups in ([parameters[:2], parameters[1:]], [[parameters[0], parameters[0]]]):
        with pytest.raises(ValueError, match="twice"):
            form_groups(named, groups)


@pytest.mark.parametrize(
    ("option", "values", "words"),
    [
        ("backward_passes_per_step", [float("nan"), 1.5, "2", None, True, -1], "whole number, at least 1"),
        ("gradient_predivide_factor", [None, "2", 1j, float("nan"), float("inf"), 10**400], "finite real number"),
        ("compression", [None, "fp16", Compression], "compression must have"),
        ("op", [True, 1.0, rr.Min], "op must be"),
        ("groups", [[1]], "lists of parameters"),
        ("named_parameters", [two_layers(), 3], "named_parameters must hold pairs"),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_options_of_wrong_types(option: str, values: list[object], words: str) -> None:
    for value in values:
        with pytest.raises(rr.UsageError, match=words):
            DistributedOptimizer(torch.optim.SGD(two_layers().parameters()), **{option: value}, channel=Echo())  # type: ignore[arg-type]


def test_more_groups_than_parameters() -> None:
    named = list(two_layers().named_parameters())
    assert form_groups(named, 10**12) == [[index] for index in range(len(named))]


def test_weights_are_for_averages_only() -> None:
    for op in (rr.Sum, rr.Adasum):
        optimizer = wrapped_sgd(two_layers(), Echo(), op=op)
        with pytest.raises(rr.UsageError, match="Weights go with op=Average"):
            optimizer.step(weight=2)


def test_a_weight_reaches_the_exchange_with_a_closure_too() -> None:
    model, channel = two_layers(), Echo()
    optimizer = wrapped_sgd(model, channel, overlap="off")
    optimizer.step(lambda: backward(model), weight=2)
    assert "weight" in channel.calls
