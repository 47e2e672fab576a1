"""Which optimizers have a communicator of devices (RINGRED_GPU=direct), what goes wrong in it, and how it ends."""

from __future__ import annotations

import gc
import time
from typing import Any

import pytest
from direct_training import Branches, everywhere, optimizer_of, step, ways

import ringred as rr
from ringred import environment
from ringred.devices import groups, leases, watch
from ringred.errors import SystemError
from ringred.torch.direct_way import DirectWay

pytestmark = pytest.mark.usefixtures("direct")


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
