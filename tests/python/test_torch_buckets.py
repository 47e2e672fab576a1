"""Buckets and the hooks in C++ with no communication: what is called when, and what wrong calls do."""

from __future__ import annotations

import gc
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import ringred as rr
from ringred import _core
from ringred.torch import buckets
from ringred.torch.buckets import ALONE_BYTES, FIRST_BYTES, Bucket, lay_out, pack_into_buckets, view_of
from ringred.torch.compression import Compression
from ringred.torch.parcels import Slot

sys.path.insert(0, str(Path(__file__).parent))  # with --import-mode=importlib pytest does not

from test_torch_optimizer import (
    Echo,
    backward,
    first_round,
    gradients,
    same,
    two_layers,
    wrapped_sgd,
)

ALL = ["2.bias", "2.weight", "0.bias", "0.weight"]


def in_buckets(model: nn.Module, **options: Any) -> tuple[Any, Echo]:
    """An optimizer that has made a step, so that its gradients lie in buckets now."""
    channel = Echo(buckets=True)
    optimizer = wrapped_sgd(model, channel, overlap="on", **options)
    backward(model)
    optimizer.step()
    optimizer.zero_grad()
    channel.calls.clear()
    return optimizer, channel


@pytest.fixture
def early(monkeypatch: pytest.MonkeyPatch) -> None:
    """No gradient is so small that it goes after the backward pass."""
    monkeypatch.setattr(buckets, "LATE_BYTES", 0)


@pytest.fixture(params=["early", "late"])
def early_or_late(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "early":
        monkeypatch.setattr(buckets, "LATE_BYTES", 0)


only_early = pytest.mark.usefixtures("early")
early_and_late = pytest.mark.usefixtures("early_or_late")


# Buckets


@only_early
def test_a_bucket_is_sent_when_its_last_gradient_is_there() -> None:
    model = two_layers()
    optimizer, channel = in_buckets(model)
    backward(model)
    assert channel.calls == ["bucket.0.2.bias"]
    optimizer.step()
    assert channel.calls == ["bucket.0.2.bias", "flags"]


def hooked(model: nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter._post_accumulate_grad_hooks]


def test_small_gradients_go_in_step_and_stay_where_they_are() -> None:
    model = two_layers()
    optimizer, channel = in_buckets(model)
    channel.gradients_of_others = torch.zeros_like
    assert hooked(model) == ["2.bias"]
    for step in range(4):
        channel.calls.clear()
        backward(model)
        own = [parameter.grad for parameter in model.parameters()]
        values = gradients(model)
        assert channel.calls == []
        optimizer.step()
        assert channel.calls == ["bucket.0.2.bias", "flags"]
        assert all(a is parameter.grad for a, parameter in zip(own, model.parameters(), strict=True))
        assert all(torch.equal(a / 4, b) for a, b in zip(values, gradients(model), strict=True))  # type: ignore[operator,arg-type]
        optimizer.zero_grad(set_to_none=step % 2 == 0)


def test_small_gradients_that_are_seen_between_averaging_and_step_have_hooks() -> None:
    for call in ("synchronize", "clip_grad_norm_"):
        model = two_layers()
        optimizer, _ = in_buckets(model, op=rr.Sum)
        backward(model)
        getattr(optimizer, call)(*[1.0] * (call == "clip_grad_norm_"))
        assert len(hooked(model)) == 4
        with pytest.raises(rr.UsageError, match="op=Sum"):
            backward(model)
        optimizer.close()
        assert hooked(model) == []


@pytest.mark.parametrize("options", [{"groups": 1}, {"bucket_bytes": 0}, {"compression": Compression.fp16}], ids=str)
def test_small_gradients_that_do_not_go_in_step_have_hooks(options: dict[str, Any]) -> None:
    model = two_layers()
    optimizer, _ = in_buckets(model, **options)
    assert len(hooked(model)) == 4 and optimizer is not None


def test_a_small_gradient_that_is_sparse_gets_its_hook_after_the_first_step() -> None:
    model = nn.Sequential(nn.Embedding(5, 3, sparse=True), nn.Linear(3, 3)).double()
    optimizer = wrapped_sgd(model, Echo(buckets=True), overlap="on")
    words = torch.tensor([1, 3])
    assert hooked(model) == ["1.bias"]
    for _ in range(3):
        optimizer.zero_grad()
        model(words).square().mean().backward()
        optimizer.step()
        assert hooked(model) == ["0.weight", "1.bias"]


@only_early
def test_small_buckets_hold_a_gradient_each_in_the_order_of_the_first_round() -> None:
    model = two_layers()
    optimizer, channel = in_buckets(model, bucket_bytes=1)
    backward(model)
    optimizer.step()
    names = [call.split(".", 2)[2] for call in channel.calls[:-1]]
    assert sorted(names) == sorted(ALL) and names[:2] in (ALL[:2], ALL[1::-1])


@early_and_late
def test_overlap_off_sends_in_step() -> None:
    model = two_layers()
    channel = Echo(buckets=True)
    optimizer = wrapped_sgd(model, channel, overlap="off")
    for _ in range(3):
        channel.calls.clear()
        backward(model)
        assert channel.calls == []
        optimizer.step()
        optimizer.zero_grad()
    assert channel.calls == ["bucket.0.2.bias", "flags"]


@only_early
def test_auto_tries_both_ways_and_decides_once() -> None:
    model, channel = two_layers(), Echo(buckets=True)
    optimizer = wrapped_sgd(model, channel, overlap="auto")
    early = []
    for _ in range(30):
        channel.calls.clear()
        backward(model)
        early.append(channel.calls != [])
        optimizer.step()
        optimizer.zero_grad()
        if "overlap" in channel.calls:
            decided = len(early)
    assert {True, False} == set(early[3:decided])
    assert len(set(early[decided:])) == 1


@pytest.mark.parametrize("slow", [True, False])
def test_auto_measures_from_the_first_gradient_to_the_end_of_the_step(slow: bool) -> None:
    """One way is slow; what happens between steps would hide it."""
    model, channel = two_layers(), Echo(buckets=True)
    optimizer = wrapped_sgd(model, channel, overlap="auto")
    overlap = optimizer._exchange._overlap
    for _ in range(20):
        time.sleep(0.0 if overlap.now == slow else 0.02)
        backward(model)
        time.sleep(0.005 if overlap.now == slow else 0.0)
        optimizer.step()
        optimizer.zero_grad()
    assert overlap.now != slow


def test_auto_decides_without_gradients() -> None:
    model, channel = two_layers(), Echo(buckets=True)
    optimizer = wrapped_sgd(model, channel, overlap="auto")
    for _ in range(20):
        optimizer.step()
    assert "overlap" in channel.calls and optimizer._exchange._overlap.now


@only_early
def test_gradients_become_views_of_the_bucket_and_stay_them() -> None:
    model, plain = two_layers(), two_layers()
    reference = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
    backward(plain)
    reference.step()
    optimizer, _ = in_buckets(model)
    seen = []
    for step in range(5):
        reference.zero_grad()
        backward(plain)
        backward(model)
        seen.append([parameter.grad for parameter in model.parameters()])
        optimizer.step()
        reference.step()
        optimizer.zero_grad(set_to_none=step % 2 == 0)
    assert all(all(a is b for a, b in zip(seen[0], later, strict=True)) for later in seen[1:])
    assert same(model, plain)


@early_and_late
def test_what_one_rank_does_not_use_is_zero_there_and_the_average_of_the_others() -> None:
    model = two_layers()
    model.register_parameter("unused", nn.Parameter(torch.ones(2, dtype=torch.float64)))
    optimizer, channel = in_buckets(model)
    channel.flags_of_others = torch.ones_like
    channel.gradients_of_others = torch.ones_like
    for step in range(4):  # nothing of an earlier step may be left in the place
        backward(model)
        optimizer.step()
        assert torch.equal(model.unused.grad, torch.full((2,), 0.75, dtype=torch.float64))
        optimizer.zero_grad(set_to_none=step % 2 == 0)


@early_and_late
@pytest.mark.parametrize("weight", [0, 3])
def test_weights_scale_before_the_reduction(weight: int) -> None:
    """All four ranks hold the same: their weighted mean is what each has, also after one of no samples."""
    model, channel = two_layers(), Echo(buckets=True)
    optimizer = wrapped_sgd(model, channel, overlap="off")
    for _ in range(3):
        optimizer.zero_grad()
        backward(model)
        own = gradients(model)
        if weight == 0:
            with pytest.raises(rr.UsageError, match="more than 0"):
                optimizer.step(weight=weight)
            continue
        optimizer.step(weight=weight)
        assert all(torch.equal(a, b) for a, b in zip(own, gradients(model), strict=True))  # type: ignore[arg-type]


@early_and_late
def test_clipping_takes_the_norm_of_the_reduction_unless_the_averages_were_touched() -> None:
    model = two_layers()
    optimizer, _ = in_buckets(model)
    for step in range(4):
        optimizer.zero_grad()
        backward(model)
        if step == 2:
            optimizer.synchronize()
            for parameter in model.parameters():
                parameter.grad.mul_(8)  # type: ignore[union-attr]
        flat = torch.cat([one.flatten() for one in gradients(model) if one is not None])
        assert float(optimizer.clip_grad_norm_(1e-3)) == pytest.approx(float(flat.norm()), rel=1e-12)
        assert float(optimizer.clip_grad_norm_(1.0)) == pytest.approx(1e-3, rel=1e-4)
        optimizer.step()


@early_and_late
def test_a_lazily_conjugated_gradient_is_conjugated_in_its_bucket() -> None:
    model = nn.ParameterList([nn.Parameter(torch.ones(3, dtype=torch.complex128)) for _ in range(2)])
    optimizer = wrapped_sgd(model, Echo(buckets=True), overlap="on")
    numbers = torch.tensor([1 + 2j, 3 - 1j, 2j], dtype=torch.complex128)
    for _ in range(3):
        optimizer.zero_grad()
        (model[0].conj() * numbers + model[1] * numbers).sum().real.backward()
        optimizer.step()
        assert torch.equal(model[0].grad, numbers)
        assert torch.equal(model[1].grad, numbers.conj().resolve_conj())


@early_and_late
def test_memory_assigned_to_a_view_is_taken_over_and_the_view_brought_back() -> None:
    model, plain = two_layers(), two_layers()
    reference = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
    backward(plain)
    reference.step()
    optimizer, _ = in_buckets(model)
    for step in range(6):
        optimizer.zero_grad(set_to_none=step % 2 == 0)
        reference.zero_grad(set_to_none=step % 2 == 0)
        backward(model)
        backward(plain)
        optimizer.synchronize()
        for net in (model, plain):
            for parameter in net.parameters():
                assert parameter.grad is not None
                parameter.grad.data = parameter.grad.data * 0.5
        optimizer.step()
        reference.step()
    assert same(model, plain)


@early_and_late
def test_a_newer_optimizer_takes_the_parameters() -> None:
    model = two_layers()
    first, _ = in_buckets(model)
    backward(model)
    second = wrapped_sgd(model, Echo(buckets=True), overlap="on")
    for call in (first.step, first.synchronize, lambda: first.clip_grad_norm_(1.0)):
        with pytest.raises(rr.UsageError, match=r"another one has been built on '0\.weight' since"):
            call()
    first.zero_grad()
    first.close()
    for _ in range(3):
        second.zero_grad(set_to_none=False)
        backward(model)
        second.step()


@only_early
def test_buckets_go_with_the_optimizer() -> None:
    gc.disable()
    try:
        model = two_layers()
        optimizer, _ = in_buckets(model)
        backward(model)
        optimizer.step()
        blocks = [weakref.ref(unit.bucket.block) for unit in optimizer._exchange._units]
        kept = model[0].bias.grad
        values = kept.clone()
        del optimizer
        model.zero_grad()
        assert torch.equal(kept, values)
        del kept
        assert [block() for block in blocks] == [None] * len(blocks)
    finally:
        gc.enable()


@only_early
def test_first_round_leaves_gradients_where_they_are() -> None:
    channel, model = Echo(buckets=True), two_layers()
    optimizer = wrapped_sgd(model, channel, overlap="on")
    first_round(model, optimizer, channel)
    backward(model)  # no step yet, so no buckets
    assert sorted(channel.calls) == sorted(f"gradient.{name}" for name in ALL)


# Places


def test_places_begin_on_cache_lines() -> None:
    assert lay_out([1, 16, 17, 0, 3], 4) == ([0, 16, 32, 64, 64], 80)
    assert lay_out([], 8) == ([], 0)
    assert lay_out([1, 1], 128) == ([0, 1], 2)


@pytest.mark.parametrize(
    "like",
    [
        torch.ones(()),
        torch.ones(0),
        torch.ones(2, 0, 3, dtype=torch.bfloat16),
        torch.ones(2, 3).t(),
        torch.ones(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.ones(4, 4)[:, :2],
        torch.ones(1, 3).expand(2, 3),
        torch.ones(3, dtype=torch.complex128),
    ],
    ids=lambda one: f"{tuple(one.shape)} {one.dtype}",
)
def test_views_have_shape_dtype_and_format_of_the_parameter(like: torch.Tensor) -> None:
    bucket = Bucket([like, like], Echo(buckets=True))  # type: ignore[arg-type]
    for number, view in enumerate(bucket.views):
        view.fill_(number + 1)
        assert view.shape == like.shape and view.dtype == like.dtype
        assert view.stride() == torch.empty_like(like).stride()
    assert int((bucket.flat != 0).sum()) == 2 * like.numel()
    versions = [view._version for view in bucket.views]
    bucket.views[0].zero_()
    assert bucket.views[1]._version == versions[1]


def test_a_view_at_the_end_of_a_block() -> None:
    block = np.zeros(64, np.uint8)
    assert view_of(block, 16, torch.ones(0)).shape == (0,)


def slots_of(*counts: int | tuple[int, torch.dtype]) -> list[Slot]:
    pairs = [(one, torch.float32) if isinstance(one, int) else one for one in counts]
    return [Slot(index, str(index), torch.empty(n, dtype=dtype)) for index, (n, dtype) in enumerate(pairs)]


def test_packing() -> None:
    def packed(limit: int, *counts: int | tuple[int, torch.dtype]) -> list[list[int]]:
        return [[slot.index for slot in slots] for slots in pack_into_buckets(slots_of(*counts), limit)]

    assert packed(100) == []
    assert packed(1, 1, 1, 1) == [[0], [1], [2]]
    assert packed(12, 1, 1, 1, 1) == [[0, 1, 2], [3]]
    assert packed(12, 100, 1, 2, 1) == [[0], [1, 2], [3]]
    assert packed(100, 1, (1, torch.float64), 1) == [[0], [1], [2]]
    half = FIRST_BYTES // 8
    assert packed(16 << 20, half, 1, half, half) == [[0, 1], [2, 3]]
    assert packed(16 << 20, 1, ALONE_BYTES // 4, 1, ALONE_BYTES // 4 - 1) == [[0, 2, 3], [1]]


# The hooks in C++


class Calls:
    """What Gradients called."""

    def __init__(self) -> None:
        self.unusual: list[int] = []
        self.ready: list[tuple[int, bool]] = []
        self.moved: list[int] = []

    def of(self, parameters: list[Any]) -> Any:
        return _core.Gradients(
            parameters,
            self.unusual.append,
            lambda unit, through: self.ready.append((unit, through)),
            self.move,
        )

    def move(self, index: int, gradient: torch.Tensor, place: torch.Tensor) -> None:
        self.moved.append(index)
        place.copy_(gradient.to_dense() if gradient.is_sparse else gradient)


def parameters_of(*lengths: int) -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(length)) for length in lengths]


def set_up(*lengths: int, views: bool = True) -> tuple[Any, Calls, list[nn.Parameter], list[Any]]:
    """One unit for all parameters."""
    parameters, calls = parameters_of(*lengths), Calls()
    places: list[Any] = [torch.zeros(length) if views else None for length in lengths]
    core = calls.of(parameters)
    core.arrange([list(range(len(lengths)))], places)
    return core, calls, parameters, places


def test_passes_are_counted_and_units_reported_once() -> None:
    core, calls, parameters, places = set_up(3, 4)
    core.passes = 2
    hooks = [core.hook(number) for number in range(2)]
    for _ in range(2):
        for hook, parameter in zip(hooks, parameters, strict=True):
            assert calls.ready == []
            parameter.grad = torch.ones_like(parameter) if parameter.grad is None else parameter.grad + 1
            hook(parameter)
    assert calls.ready == [(0, True)] and calls.unusual == [] and core.pending()
    assert all(parameter.grad is place for parameter, place in zip(parameters, places, strict=True))
    assert all(bool((place == 2).all()) for place in places)
    assert core.first_changed() == -1
    places[1].add_(1)
    assert core.first_changed() == 1
    core.arrive(0)
    assert calls.unusual == [0] and calls.ready == [(0, True)]
    core.clear()
    assert not core.pending() and core.first_changed() == -1 and core.passes_of(0) == 0 and core.sent(0) is None


def test_a_pause_counts_nothing() -> None:
    core, calls, parameters, places = set_up(3)
    core.paused = True
    parameters[0].grad = gradient = torch.ones(3)
    core.arrive(0)
    assert core.passes_of(0) == 0 and parameters[0].grad is gradient and not places[0].any()
    core.paused = False
    core.closed = True
    core.arrive(0)
    assert calls.unusual == [0] and parameters[0].grad is places[0]


def test_frozen_slots_count_as_through() -> None:
    core, calls, parameters, _ = set_up(3, 4, 5)
    parameters[1].requires_grad_(False)
    core.clear()
    core.arrive(0)
    assert core.is_through(0) and core.is_through(1) and not core.is_through(2)
    core.arrive(2)
    assert calls.ready == [(0, False)]
    core.fill(0, True)
    core.arrive(1)  # its unit has gone
    assert calls.unusual == [1]


def test_fill_and_deliver() -> None:
    core, _, parameters, places = set_up(2, 2, 2)
    places[1].fill_(9)
    parameters[0].grad = torch.ones(2)
    core.fill(0, True)
    assert [place.tolist() for place in places] == [[1, 1], [0, 0], [0, 0]]
    assert core.kinds([True], True) == b"\1\0\0"
    core.deliver(0, b"\1\1\0")
    assert [parameter.grad is place for parameter, place in zip(parameters, places, strict=True)] == [True, True, False]
    core.clear()
    core.fill(0, False)
    assert not any(place.any() for place in places)
    assert core.kinds([False], False) == b"\0\0\0" and core.kinds([False], True) == b"\1\1\0"


def test_late_units_are_packed_and_delivered_where_gradients_lie() -> None:
    parameters, calls = parameters_of(2, 2, 2, 2), Calls()
    places: list[Any] = [torch.full((2,), 9.0) for _ in parameters]
    core = calls.of(parameters)
    core.arrange([[0], [1, 2, 3]], places, late=[1])
    assert core.ready_units() == []
    own = [torch.full((2,), float(number)) for number in range(4)]
    for number in (0, 1, 2):
        parameters[number].grad = own[number]
        core.hook(number)(parameters[number])
    parameters[2].grad = own[2].to_sparse()
    assert calls.ready == [(0, True)] and core.ready_units() == [0, 1] and core.pending()
    assert parameters[1].grad is own[1]
    core.fill(1, True)
    assert [place.tolist() for place in places] == [[0, 0], [1, 1], [2, 2], [0, 0]] and calls.moved == [2]
    assert core.kinds([True, True], True) == b"\1\1\1\0"
    for place in places:
        place.fill_(5)
    core.deliver(1, b"\1\1\1\1")
    assert parameters[1].grad is own[1] and own[1].tolist() == [5, 5]
    assert parameters[2].grad is places[2] and parameters[3].grad is places[3]
    core.clear()
    assert core.ready_units() == [1]  # gradients that are accumulated into, without a backward pass
    core.fill(1, False)
    assert [place.tolist() for place in places[1:]] == [[0, 0]] * 3 and own[1].tolist() == [5, 5]
    core.deliver(1, b"\1\1\1\1")
    assert own[1].tolist() == [5, 5]


def test_a_late_gradient_that_is_in_a_graph_is_replaced() -> None:
    parameters, calls = parameters_of(2), Calls()
    core = calls.of(parameters)
    place: Any = torch.zeros(2)
    core.arrange([[0]], [place], late=[0])
    parameters[0].grad = gradient = (parameters[0] + 1).square()
    core.fill(0, True)
    place.fill_(7)
    core.deliver(0, b"\1")
    assert parameters[0].grad is place and gradient.tolist() == [1, 1]


def test_what_is_no_plain_copy_is_moved() -> None:
    core, calls, parameters, places = set_up(4)
    parameters[0].grad = torch.sparse_coo_tensor([[1]], [5.0], (4,), check_invariants=True)
    core.arrive(0)
    assert calls.moved == [0] and places[0].tolist() == [0, 5, 0, 0] and core.kinds([False], True) == b"\1"
    core.clear()
    assert core.sent(0) is None


@pytest.mark.parametrize("late", [[], [0]])
@pytest.mark.parametrize(
    "gradient",
    [
        torch._neg_view(torch.arange(6.0).view(2, 3)),
        torch.arange(6.0).view(3, 2).t(),
        torch.arange(12.0).view(2, 6)[:, ::2],
        torch.ones(1, 1).expand(2, 3),
        torch.arange(6.0).view(2, 3).to_sparse(),
    ],
    ids=["negated", "transposed", "strided", "expanded", "sparse"],
)
def test_gradients_of_any_layout_come_as_they_are(gradient: torch.Tensor, late: list[int]) -> None:
    parameter, calls, place = nn.Parameter(torch.zeros(2, 3)), Calls(), torch.full((2, 3), 9.0)
    core = calls.of([parameter])
    core.arrange([[0]], [place], late=late)
    parameter.grad = gradient
    core.fill(0, True)
    assert calls.moved == [0] and torch.equal(place, gradient.to_dense() if gradient.is_sparse else gradient)
    assert parameter.grad is place


@pytest.mark.parametrize("late", [[], [0]])
@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (1, 5), (3, 1, 2)])
def test_gradients_of_any_shape_are_copied(shape: tuple[int, ...], late: list[int]) -> None:
    parameter, calls, place = nn.Parameter(torch.zeros(shape)), Calls(), torch.full(shape, 9.0)
    core = calls.of([parameter])
    core.arrange([[0]], [place], late=late)
    parameter.grad = gradient = torch.randn(shape)
    core.fill(0, True)
    assert calls.moved == [] and torch.equal(place, gradient) and (parameter.grad is gradient) == bool(late)


def test_errors_of_the_calls_surface() -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    parameter = parameters_of(3)[0]
    for position in range(3):
        functions: list[Callable[..., None]] = [lambda *_: None] * 3
        functions[position] = fail
        core = _core.Gradients([parameter], *functions)
        core.arrange([[0]], [torch.zeros(3)])
        core.closed = position == 0
        parameter.grad = None if position < 2 else torch.ones(6)[::2]
        for call in (lambda core=core: core.hook(0)(parameter), lambda core=core: core.arrive(0)):
            with pytest.raises(ZeroDivisionError):
                call()
            core.clear()


def test_wrong_calls_raise() -> None:
    core, _, parameters, places = set_up(3, 4)
    hook = core.hook(0)
    for wrong in (
        lambda: hook(),
        lambda: hook(*parameters),
        lambda: hook(parameters[0], number=1),
        lambda: _core.Gradients(),
        lambda: _core.Gradients(3, print, print, print),
        lambda: core.arrange(3, places),
        lambda: core.arrange([[0, 1]], None),
        lambda: core.arrange([[-1, 1]], places),
        lambda: core.arrive("0"),
        lambda: core.arrive(-1),
        lambda: core.fill(0),
        lambda: core.kinds(3, True),
        lambda: setattr(core, "passes", "2"),
        lambda: core.deliver(0, 3),
    ):
        with pytest.raises(TypeError):
            wrong()
    for wrong in (
        lambda: core.hook(2),
        lambda: core.arrive(2),
        lambda: core.fill(1, True),
        lambda: core.deliver(1, b"\0\0"),
        lambda: core.deliver(0, b"\0"),
        lambda: core.kinds([], True),
        lambda: core.complete(2),
        lambda: core.is_through(2),
        lambda: core.passes_of(2),
        lambda: core.sent(2),
        lambda: core.arrange([[0, 1, 2]], places),
    ):
        with pytest.raises(IndexError):
            wrong()
    for units, views in (([[0]], places), ([[0, 1], [1]], places), ([[0, 1]], places[:1]), ([], [])):
        with pytest.raises(ValueError, match=r"unit|each slot"):
            core.arrange(units, views)
    core.arrive(0)  # it is as it was
    core.arrive(1)
    assert core.pending()


def test_before_units_are_arranged_calls_raise() -> None:
    core = Calls().of(parameters_of(3))
    with pytest.raises((IndexError, RuntimeError)):
        core.arrive(0)
    with pytest.raises((IndexError, RuntimeError)):
        core.hook(0)(torch.zeros(3))
    with pytest.raises(IndexError):
        core.fill(0, True)
    with pytest.raises(IndexError):
        core.kinds([], True)


class Odd:
    """Looks like a parameter, and has a gradient that looks like none."""

    requires_grad = True
    grad: object = 3


def test_what_is_no_tensor_raises() -> None:
    core = Calls().of([Odd(), 3, None])
    with pytest.raises(AttributeError):
        core.arrange([[0], [1, 2]], [None] * 3)
    core = Calls().of([Odd()])
    with pytest.raises(AttributeError):
        core.arrange([[0]], [3])
    core.arrange([[0]], [None])
    for call in (lambda: core.arrive(0), lambda: core.hook(0)(Odd()), lambda: core.hook(0)(None)):
        with pytest.raises(AttributeError):
            call()
    with pytest.raises(AttributeError):
        core.kinds([False], True)

    class Version:
        _version = "one"
        layout = torch.sparse_coo

    odd = Odd()
    odd.grad = Version()
    core = Calls().of([odd])
    core.arrange([[0]], [None])
    with pytest.raises(TypeError):
        core.arrive(0)


def test_references_stay_as_many_as_they_were() -> None:
    """Over 10 000 calls of everything, errors included."""
    core, calls, parameters, places = set_up(3, 4)
    hooks = [core.hook(number) for number in range(2)]
    own = [torch.ones_like(parameter).detach() for parameter in parameters]

    def turn() -> None:
        for hook, parameter, gradient in zip(hooks, parameters, own, strict=True):
            parameter.grad = gradient
            hook(parameter)
        core.fill(0, True)
        core.kinds([True], True)
        core.deliver(0, b"\1\1")
        core.complete_all()
        core.complete(1)
        core.first_changed()
        core.pending()
        core.is_through(0)
        core.sent(0)
        core.hook(1)
        places[0].data = places[0].data.clone()
        for wrong in (lambda: hooks[0](), lambda: hooks[0](3), lambda: core.arrive(7)):
            with pytest.raises((TypeError, AttributeError, IndexError)):
                wrong()
        core.clear()
        core.arrange([[0, 1]], places)
        for parameter in parameters:
            parameter.grad = None
        calls.ready.clear()
        calls.unusual.clear()
        calls.moved.clear()

    def counts() -> list[int]:
        singles = (None.__class__, torch.strided, torch.float32, type(hooks[0]))
        return [sys.getrefcount(one) for one in (*parameters, *places, *own, *hooks, *singles)]

    for _ in range(10):
        turn()
    gc.collect()
    before = counts()
    for _ in range(10_000 // 20):
        turn()
    gc.collect()
    assert counts() == before


def test_hooks_keep_no_parameter() -> None:
    core, _, parameters, places = set_up(3)
    hook = core.hook(0)
    parameters[0].grad = torch.ones(3)
    hook(parameters[0])
    weak = weakref.ref(parameters[0])
    del core
    parameters.clear()
    assert weak() is None
    del hook
    assert places[0].tolist() == [1, 1, 1]
