"""Gradients that are reduced where they lie on GPUs (RINGRED_GPU=direct). The device is made up (fake_gpu.py), and so
is its communicator (fake_communicator.py), which is late, reduces what it finds, and knows when ranks differ in a call.
"""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

import ringred as rr
import ringred.torch as hvd
from ringred import environment
from ringred.devices import groups, leases, watch
from ringred.errors import SystemError
from ringred.torch.device_buckets import DeviceBucket
from ringred.torch.direct_way import DirectWay

WIDTH = 7
BUCKET_BYTES = 230  # a layer of 196 and its bias of 28, so that each branch has its own


@pytest.fixture(autouse=True)
def direct(fake: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ask for it, and leave no groups."""
    if rr.size() == 1:
        pytest.skip("is about several ranks")
    monkeypatch.setenv("RINGRED_GPU", "direct")
    groups.end("a test begins")
    yield
    groups.end("a test is over")


class Branches(nn.Module):
    """Layers whose outputs are added up, so that gradients can be made in any order, or left out."""

    def __init__(self, device: str, branches: int = 4) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(branches))
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        self.to(device)

    def backward(self, order: list[int], seed: int, scale: float = 1.0) -> None:
        """A backward pass for each of these layers, one after the other."""
        generator = torch.Generator().manual_seed(seed)
        for number in order:
            values = torch.randn(3, WIDTH, generator=generator).to(self.layers[0].weight.device)
            (self.layers[number](values).square().mean() * scale).backward()

    def values(self) -> list[torch.Tensor]:
        return [parameter.detach().cpu() for parameter in self.parameters()]


def optimizer_of(model: nn.Module, **options: Any) -> Any:
    settings: dict[str, Any] = {"bucket_bytes": BUCKET_BYTES, "overlap": "on", **options}
    return hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), **settings)


Steps = Callable[[Branches, Any], None]


def everywhere(steps: Steps, **options: Any) -> Any:
    """Do the same on the CPU and on the device, and compare what comes of it. Returns the device's optimizer."""
    results = []
    for device in ("cpu", "fake"):
        model = Branches(device)
        optimizer = optimizer_of(model, **options)
        steps(model, optimizer)
        results.append(model.values())
    for on_device, on_cpu in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(on_device, on_cpu)
    return optimizer


def ways(optimizer: Any) -> list[Any]:
    return [unit.bucket._way for unit in optimizer._exchange._units if unit.bucket is not None]


def calls_of(optimizer: Any) -> int:
    return sum(turns._group.calls for turns in optimizer._exchange._arrangement.turns)


def step(model: Branches, optimizer: Any, order: list[int], seed: int) -> None:
    optimizer.zero_grad()
    model.backward(order, seed)
    optimizer.step()


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


def test_an_error_of_the_device_comes_with_the_state_or_the_next_step() -> None:
    model = Branches("fake")
    optimizer = optimizer_of(model)
    for number in range(2):
        step(model, optimizer, [0, 1, 2, 3], number)
    optimizer.state_dict()
    turns = optimizer._exchange._arrangement.turns[0]
    communicator: Any = turns._group.communicator
    communicator._error = rr.PeerLostError("as if rank 9 had died")
    with pytest.raises(rr.PeerLostError, match="rank 9"):
        optimizer.state_dict()
    with pytest.raises(rr.PeerLostError, match="rank 9"):
        step(model, optimizer, [0, 1, 2, 3], 3)
    assert turns._group.failed


def test_errors_are_looked_for_while_the_host_is_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "SECONDS", 0.01)
    model = Branches("fake")
    optimizer = optimizer_of(model)
    for number in range(2):
        step(model, optimizer, [0, 1, 2, 3], number)
    optimizer.state_dict()
    group = optimizer._exchange._arrangement.turns[0]._group
    communicator: Any = group.communicator
    with group.used():
        communicator._error = rr.PeerLostError("as if rank 9 had died")
        time.sleep(0.05)
        assert not group.failed, "it is in use"
    deadline = time.monotonic() + 20
    while not group.failed:
        assert time.monotonic() < deadline, "nobody looks"
        time.sleep(0.01)
    (thread,) = groups._watches
    groups.end("over", grace_seconds=0)
    assert not thread._thread.is_alive() and not groups._watches


def said_lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(environment, "say", lambda text, level, _: said.append(f"{level}: {text}"))
    return said


def refuse(process_set: rr.ProcessSet, ordinal: int) -> str:
    return "the driver is made up" if rr.rank() == rr.size() - 1 else ""


def fail(process_set: rr.ProcessSet, ordinal: int) -> Any:
    raise SystemError("IPC is refused")


def wait_on_host(process_set: rr.ProcessSet, ordinal: int) -> Any:
    from fake_communicator import FakeCommunicator  # which only runs with a fake device may import

    made: Any = FakeCommunicator(process_set, ordinal)
    made.waits_on_host = rr.rank() == 0
    return made


OBSTACLES = {"ipc": fail, "host": wait_on_host}


@pytest.mark.parametrize("obstacle", ["setting", "driver", *OBSTACLES])
def test_where_a_rank_cannot_all_go_through_host_memory_and_say_why(
    obstacle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if obstacle == "setting" and rr.rank() == rr.size() - 1:
        monkeypatch.setenv("RINGRED_GPU", "staged")
    maker, against = leases.makers["fake"]
    against = refuse if obstacle == "driver" else against
    monkeypatch.setitem(leases.makers, "fake", (OBSTACLES.get(obstacle, maker), against))
    said = said_lines(monkeypatch)

    def steps(model: Branches, optimizer: Any) -> None:
        for number in range(3):
            step(model, optimizer, [0, 1, 2, 3], number + rr.rank())

    optimizer = everywhere(steps)
    assert ways(optimizer) and not any(isinstance(way, DirectWay) for way in ways(optimizer))
    assert not groups.existing
    words = {
        "setting": f"not direct on ranks [{rr.size() - 1}]",
        "driver": "driver is made up",
        "ipc": "IPC is refused",
        "host": "host would have to wait",
    }
    warnings = [line for line in said if line.startswith("warning")]
    assert len(warnings) == (1 if rr.rank() == 0 else 0) and all(words[obstacle] in line for line in warnings)


def test_groups_are_used_again_and_there_are_not_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    said = said_lines(monkeypatch)

    def made() -> Any:
        model = Branches("fake")
        optimizer = optimizer_of(model)
        step(model, optimizer, [0, 1, 2, 3], 0)
        step(model, optimizer, [0, 1, 2, 3], 1)
        return optimizer

    for _ in range(3):
        made()
        gc.collect()
    assert (
        len(groups.existing) == 1
        and groups.existing[0]._memory is not None
        and all(line.startswith("info") for line in said)
    )
    kept = [made() for _ in range(leases.MOST_GROUPS + 1)]
    assert [isinstance(ways(one)[0], DirectWay) for one in kept] == [True] * leases.MOST_GROUPS + [False]
    assert len([line for line in said if line.startswith("warning")]) == (rr.rank() == 0)


def test_join_is_refused_where_others_would_wait() -> None:
    model = Branches("fake")
    optimizer = optimizer_of(model)
    step(model, optimizer, [0, 1, 2, 3], 0)
    with pytest.raises(rr.UsageError, match="RINGRED_GPU=staged"):
        rr.join()
    del optimizer
    gc.collect()
    assert rr.join() in range(rr.size())


def test_process_sets_have_groups_of_their_own() -> None:
    evens = rr.add_process_set(range(0, rr.size(), 2))
    try:
        if evens.included():
            model = Branches("fake")
            optimizer = optimizer_of(model, process_set=evens)
            for number in range(3):
                step(model, optimizer, [0, 1, 2, 3], number)
            assert evens.size() == 1 or groups.in_use(evens)
        assert not groups.in_use(rr.global_process_set)
    finally:
        optimizer = None
        gc.collect()
        groups.end("the set goes")
        rr.remove_process_set(evens)


def test_groups_end_together_or_with_the_process() -> None:
    model = Branches("fake")
    optimizer = optimizer_of(model)
    for number in range(2):
        step(model, optimizer, [0, 1, 2, 3], number)
    communicator: Any = optimizer._exchange._arrangement.turns[0]._group.communicator
    groups.end("over")
    assert communicator.ended == "together"
    other = Branches("fake")
    alone = optimizer_of(other, overlap="off")
    step(other, alone, [0, 1, 2, 3], 0)
    left: Any = alone._exchange._arrangement.turns[0]._group.communicator
    groups.end("it died", grace_seconds=0)
    assert left.ended == "it died"
    other.backward([0], 0)
    alone.state_dict()
    with pytest.raises(rr.UsageError, match=r"ends with shutdown\(\)"):
        alone.step()
