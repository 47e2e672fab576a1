"""Gradients that are reduced where they lie on GPUs (RINGRED_GPU=direct). The device is made up (fake_gpu.py), and so
is its communicator (fake_communicator.py), which is late, reduces what it finds, and knows when ranks differ in a call.
"""

from __future__ import annotations

import itertools
import time
from typing import Any

import pytest
import torch
from direct_training import Branches, calls_of, everywhere, optimizer_of, step, ways
from torch import nn

import ringred as rr
import ringred.torch as hvd
from ringred.torch.device_buckets import DeviceBucket
from ringred.torch.direct_way import DirectWay

pytestmark = pytest.mark.usefixtures("direct")


@pytest.mark.parametrize("options", [{}, {"overlap": "off"}, {"overlap": "auto"}, {"op": hvd.Sum}], ids=str)
def test_trains_as_on_the_cpu(options: dict[str, Any]) -> None:
    def steps(model: Branches, optimizer: Any) -> None:
        for number in range(6):
            step(model, optimizer, [0, 1, 2, 3], 10 * number + rr.rank())

    optimizer = everywhere(steps, **options)
    assert len(ways(optimizer)) >= 3 and all(isinstance(way, DirectWay) for way in ways(optimizer))
    assert calls_of(optimizer) == 5 * len(ways(optimizer)), "all rounds but the first one"


def test_reductions_start_during_the_backward_pass() -> None:
    model = Branches("fake")
    optimizer = optimizer_of(model)
    step(model, optimizer, [0, 1, 2, 3], 0)  # which is the order of buckets
    for number in range(3):
        before = calls_of(optimizer)
        optimizer.zero_grad()
        model.backward([0, 1, 3], number)
        assert calls_of(optimizer) == before + 2
        model.backward([2], number)
        assert calls_of(optimizer) == before + 4
        optimizer.step()


def test_factors_and_narrow_types() -> None:
    def steps(model: Branches, optimizer: Any) -> None:
        for number in range(4):
            step(model, optimizer, [3, 2, 1, 0], 10 * number + rr.rank())

    everywhere(steps, gradient_predivide_factor=2.0)
    narrow = Branches("fake")
    optimizer = optimizer_of(narrow, compression=hvd.Compression.bf16)
    steps(narrow, optimizer)
    assert all(way._flat.dtype == torch.bfloat16 for way in ways(optimizer))
    wide = Branches("cpu")
    steps(wide, optimizer_of(wide))
    for one, other in zip(narrow.values(), wide.values(), strict=True):
        torch.testing.assert_close(one, other, atol=0.05, rtol=0.05)


def test_dtypes_side_by_side() -> None:
    """Complex gradients are none for communicators of devices."""
    results = []
    for device in ("cpu", "fake"):
        generator = torch.Generator().manual_seed(1)
        dtypes = [torch.float32, torch.float64, torch.complex64, torch.float32]
        parameters = [nn.Parameter(torch.randn(50, dtype=one, generator=generator).to(device)) for one in dtypes]
        optimizer = hvd.DistributedOptimizer(torch.optim.SGD(parameters, lr=0.1), overlap="on")
        for number in range(4):
            optimizer.zero_grad()
            for parameter in parameters if rr.rank() % 2 else reversed(parameters):
                (parameter.abs().square().sum() * (rr.rank() + number)).backward()
            optimizer.step()
        results.append([parameter.detach().cpu() for parameter in parameters])
    of_dtypes = {way._flat.dtype: isinstance(way, DirectWay) for way in ways(optimizer)}
    assert of_dtypes == {torch.float32: True, torch.float64: True, torch.complex64: False}
    for on_cpu, on_device in zip(*results, strict=True):
        torch.testing.assert_close(on_device, on_cpu)


def test_every_rank_has_its_own_order() -> None:
    orders = list(itertools.permutations(range(4)))

    def steps(model: Branches, optimizer: Any) -> None:
        for number in range(6):
            step(model, optimizer, list(orders[(5 * number + 7 * rr.rank()) % len(orders)]), number)

    assert calls_of(everywhere(steps)) > 0


def test_gradients_that_some_ranks_lack_or_all() -> None:
    lacking = [[], [1, 3], [0], [0, 1, 2, 3], [2, 0]]

    def steps(model: Branches, optimizer: Any) -> None:
        step(model, optimizer, [0, 1, 2, 3], rr.rank())
        for number in range(10):
            step(model, optimizer, lacking[(number + rr.rank()) % len(lacking)], number)
        for _ in range(2):
            step(model, optimizer, [3, 1] if rr.rank() % 2 else [1, 3], rr.rank())  # on no rank the others

    everywhere(steps)


@pytest.mark.parametrize("overlap", ["on", "off"])
def test_a_round_that_is_dropped_does_not_reach_the_next(overlap: str) -> None:
    """Its sums are late: they must not go into memory that holds the next gradients."""

    def steps(model: Branches, optimizer: Any) -> None:
        step(model, optimizer, [0, 1, 2, 3], rr.rank())
        for number in range(4):
            optimizer.zero_grad()
            # As by an exception, after which all drop the pass. On the CPU a small gradient may go unnoticed.
            broke_off = rr.rank() == 0 and number % 2 and not model.layers[0].weight.is_cpu
            model.backward([2] if broke_off else [0, 1, 2, 3], number, 100.0)
            step(model, optimizer, [3, 2, 1, 0], 50 + number + rr.rank())

    everywhere(steps, op=hvd.Sum, overlap=overlap)


def test_what_is_packed_late_is_waited_for(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pack = DeviceBucket._pack

    def late(bucket: DeviceBucket, slots: Any, own: bool) -> None:
        fake.current_stream().enqueue(lambda: time.sleep(0.02), delay=False)
        pack(bucket, slots, own)

    monkeypatch.setattr(DeviceBucket, "_pack", late)
    model = Branches("fake")
    optimizer = optimizer_of(model)
    step(model, optimizer, [0, 1, 2, 3], 0)
    optimizer.zero_grad()
    model.backward([0, 1, 2, 3], 1, scale=float(rr.rank()))
    mine = [parameter.grad.clone() for parameter in model.parameters()]
    optimizer.synchronize()
    share = sum(range(rr.size())) / rr.size()
    for parameter, own in zip(model.parameters(), mine, strict=True):
        if rr.rank() > 0:
            torch.testing.assert_close(parameter.grad.cpu(), own.cpu() / rr.rank() * share)
        else:
            assert not own.cpu().any() and bool(parameter.grad.cpu().any())


def test_averages_are_there_for_what_comes_after(fake: Any) -> None:
    """Read at once, while the communicator is still at work; the host has not waited for it."""
    model = Branches("fake")
    optimizer = optimizer_of(model)
    step(model, optimizer, [0, 1, 2, 3], 0)
    for turn in range(3):
        optimizer.zero_grad()
        model.backward([0, 1, 2, 3], turn, scale=rr.rank() + 1.0)
        mine = [parameter.grad.clone() for parameter in model.parameters()]
        optimizer.synchronize()
        read = [parameter.grad.clone() for parameter in model.parameters()]
        for one, own in zip(read, mine, strict=True):
            share = (rr.size() + 1) / 2 / (rr.rank() + 1)
            torch.testing.assert_close(one.cpu(), own.cpu() * share)


def test_accumulation_clipping_and_several_rounds_a_step() -> None:
    def steps(model: Branches, optimizer: Any) -> None:
        for number in range(4):
            optimizer.zero_grad()
            with optimizer.no_sync():
                model.backward([0, 1, 2, 3], number)
            model.backward([2, 3, 0, 1], rr.rank())
            optimizer.clip_grad_norm_(0.3)
            optimizer.synchronize()
            model.backward([1], number)
            optimizer.step()

    everywhere(steps)


def test_several_optimizers_at_once_do_not_depend_on_each_others_order() -> None:
    results = []
    for device in ("cpu", "fake"):
        models = [Branches(device), Branches(device)]
        optimizers = [optimizer_of(model) for model in models]
        for number in range(5):
            for which in (0, 1) if rr.rank() % 2 else (1, 0):
                models[which].backward([0, 1, 2, 3], 7 * number + which + rr.rank())
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        results.append([*models[0].values(), *models[1].values()])
    assert len({id(turns._group) for one in optimizers for turns in one._exchange._arrangement.turns}) == 2
    for on_cpu, on_device in zip(*results, strict=True):
        torch.testing.assert_close(on_device, on_cpu)


def test_a_bucket_out_of_order_is_an_error_and_never_a_wrong_sum() -> None:
    model = Branches("fake")
    optimizer = optimizer_of(model)
    step(model, optimizer, [0, 1, 2, 3], 0)
    first, second = ways(optimizer)[1:3]
    if rr.rank() == 0:
        first._number, second._number = second._number, first._number
    with pytest.raises(rr.MismatchError, match="bucket"):
        for number in range(3):
            step(model, optimizer, [0, 1, 2, 3], number)
            optimizer.state_dict()
