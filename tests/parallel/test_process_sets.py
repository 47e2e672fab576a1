"""Process sets: registered with all ranks, overlapping, concurrent, removed, and what is refused."""

from __future__ import annotations

import copy
import os
import pickle
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from rank_data import (
    PATIENCE_SECONDS,
    assert_all_work,
    assert_equal,
    combined,
    everybodys,
    in_threads,
    needs_ranks,
    values,
)

import ringred as rr
from ringred import process_sets, world
from ringred.registrar import Registrar

MISMATCH_SECONDS = 10.0
"""At once, on machines with more ranks than cores; the deadline is far beyond."""


@pytest.fixture(autouse=True)
def none_left() -> Iterator[None]:
    """Every test removes its sets, and leaves a library that works."""
    yield
    assert rr.process_set_ids() == [0]
    assert_all_work()


# What a set is


def test_a_set_knows_its_ranks() -> None:
    chosen = rr.ProcessSet(iter([rr.size() + 2, 1, 0]))
    assert chosen.ranks == [0, 1, rr.size() + 2] and chosen.size() == 3
    assert chosen.process_set_id is None and chosen.mpi_comm is None
    assert chosen.included() == (rr.rank() < 2)
    assert repr(chosen) == f"ProcessSet(process_set_id=None, ranks=[0, 1, {rr.size() + 2}], mpi_comm=None)"
    if rr.rank() < 2:
        assert chosen.rank() == rr.rank()
    else:
        with pytest.raises(rr.UsageError, match="members"):
            chosen.rank()


def test_the_global_set() -> None:
    everybody = rr.global_process_set
    assert everybody.process_set_id == 0 and everybody.ranks == list(range(rr.size()))
    assert everybody.size() == rr.size() and everybody.rank() == rr.rank() and everybody.included()
    assert rr.remove_process_set(everybody) is False
    assert str(rr.size()) in repr(everybody)


@pytest.mark.parametrize("ranks", [[], [0, 0], [-1], [0.5], "01", 3, None], ids=str)
def test_no_ranks(ranks: Any) -> None:
    with pytest.raises(rr.UsageError, match="process set"):
        rr.ProcessSet(ranks)


def test_of_mpi(mpi: Any) -> None:
    halves = mpi.COMM_WORLD.Split(rr.rank() % 2, -rr.rank())
    chosen = rr.ProcessSet(halves)
    assert chosen.ranks == list(range(rr.rank() % 2, rr.size(), 2)) and chosen.mpi_comm is halves
    assert rr.ProcessSet(halves.Get_group()).ranks == chosen.ranks
    for none in (mpi.COMM_NULL, mpi.GROUP_NULL):
        with pytest.raises(rr.UsageError, match="NULL"):
            rr.ProcessSet(none)
    everybody = rr.add_process_set(mpi.COMM_WORLD)
    assert everybody.ranks == list(range(rr.size()))
    assert rr.allreduce_async(np.ones(2), rr.Sum, process_set=everybody).wait().tolist() == [rr.size()] * 2
    assert rr.remove_process_set(everybody)
    halves.Free()


# Adding and removing


def test_add_and_remove() -> None:
    needs_ranks(2)
    first = rr.add_process_set([0])
    second = rr.ProcessSet(range(rr.size()))
    assert rr.add_process_set(second) is second
    assert [first.process_set_id, second.process_set_id] == [1, 2] and rr.process_set_ids() == [0, 1, 2]
    assert rr.remove_process_set(first) is True
    assert first.process_set_id is None and rr.process_set_ids() == [0, 2]
    assert rr.remove_process_set(first) is False
    third = rr.add_process_set([rr.size() - 1])
    assert third.process_set_id == 1  # a number that was removed
    assert rr.allreduce_async(np.ones(1), rr.Sum, process_set=second).wait()[0] == rr.size()
    if third.included():
        assert rr.allreduce_async(np.ones(1), rr.Sum, process_set=third).wait()[0] == 1
    assert rr.remove_process_set(third) and rr.remove_process_set(second)
    assert rr.add_process_set(first) is first and first.process_set_id == 1
    assert rr.remove_process_set(first)


def test_a_set_is_registered_once() -> None:
    chosen = rr.add_process_set([0])
    for again in (chosen, [0], rr.ProcessSet([0])):
        with pytest.raises(rr.UsageError, match="once"):
            rr.add_process_set(again)
    with pytest.raises(rr.UsageError, match="once"):
        process_sets.register_static([[rr.size() - 1], [rr.size() - 1]])
    with pytest.raises(ValueError, match="within the world"):
        rr.add_process_set([0, rr.size()])
    assert rr.remove_process_set(chosen)


def test_many_sets_one_after_the_other() -> None:
    for turn in range(30):
        chosen = rr.add_process_set(range(1 + turn % rr.size()))
        if chosen.included():
            total = rr.allreduce_async(np.full(10, turn), rr.Sum, process_set=chosen).wait()
            assert total.tolist() == [turn * chosen.size()] * 10
        assert rr.remove_process_set(chosen)


def test_static_sets() -> None:
    sets = [rr.ProcessSet([0]), rr.ProcessSet(range(rr.size()))] if rr.size() > 1 else [rr.ProcessSet([0])]
    process_sets.register_static(sets)
    assert [one.process_set_id for one in sets] == list(range(1, len(sets) + 1))
    assert process_sets.describe([*sets, [0]]) == str([*(one.ranks for one in sets), [0]])
    process_sets.register_static([])
    for one in sets:
        assert rr.remove_process_set(one)


@pytest.mark.parametrize("what", ["ranks", "kind"])
def test_ranks_that_ask_for_different_sets(what: str) -> None:
    needs_ranks(2)
    odd = rr.rank() == rr.size() - 1
    there = rr.add_process_set([0])
    rr.barrier()
    start = time.monotonic()
    with pytest.raises(rr.MismatchError) as caught:
        if odd and what == "kind":
            rr.remove_process_set(there)
        else:
            rr.add_process_set([0, 1] if odd else [1])
    assert time.monotonic() - start < MISMATCH_SECONDS
    for word in ("[1] on rank 0", "remove_process_set of number 1" if what == "kind" else "[0, 1]"):
        assert word in str(caught.value)
    assert f"rank {rr.size() - 1}" in str(caught.value)
    assert rr.process_set_ids() == [0, 1]
    assert rr.remove_process_set(there)


def test_threads_add_and_remove_different_sets() -> None:
    """In each rank's own order, so that ranks ask for different ones at first."""
    needs_ranks(2)
    wishes = [[0], [rr.size() - 1], list(range(rr.size()))]

    def add(index: int) -> rr.ProcessSet:
        time.sleep(0.03 * ((index + rr.rank()) % 3))
        return rr.add_process_set(wishes[index])

    added = in_threads(*(lambda index=index: add(index) for index in range(3)))
    numbers = [one.process_set_id for one in added]
    assert sorted(numbers) == [1, 2, 3]
    assert rr.allgather_object(numbers) == [numbers] * rr.size()
    removed = in_threads(*(lambda one=one: rr.remove_process_set(one) for one in added))
    assert removed == [True] * 3


def test_interrupted_while_adding() -> None:
    """The rank stays in the rounds: the set is added all the same, on all ranks."""
    needs_ranks(2)
    chosen = rr.ProcessSet(range(rr.size()))
    if rr.rank() == 0:
        timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            rr.add_process_set(chosen)
        rr.barrier_async(name="go").wait()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while chosen.process_set_id is None and time.monotonic() < deadline:
            time.sleep(0.001)
    else:
        rr.barrier_async(name="go").wait()
        rr.add_process_set(chosen)
    assert chosen.process_set_id == 1
    assert rr.remove_process_set(chosen)


class Failing:
    """The engine, on one rank without memory for groups."""

    def __init__(self, engine: Any, method: str, rank: int) -> None:
        self._engine, self._method, self._rank = engine, method, rank

    def __getattr__(self, name: str) -> Any:
        if name == self._method and self._engine.rank == self._rank:
            return self._fail
        return getattr(self._engine, name)

    def _fail(self, *_: Any) -> None:
        raise rr.SystemError("there is no memory, on purpose")


@pytest.mark.parametrize("method", ["prepare_group", "connect_group"])
def test_a_rank_without_memory_is_told_to_all(method: str) -> None:
    last = rr.size() - 1
    engine: Any = Failing(world.engine(), method, last)
    registrar = Registrar(engine)
    chosen = rr.ProcessSet(range(rr.size()))
    with pytest.raises(rr.SystemError, match=f"rank {last} could not .* on purpose"):
        registrar.add([chosen])
    assert registrar.numbers() == [] and chosen.process_set_id is None
    assert rr.add_process_set(chosen).process_set_id == 1  # the number is free everywhere
    assert rr.allreduce_async(np.ones(1), rr.Sum, process_set=chosen).wait()[0] == rr.size()
    assert rr.remove_process_set(chosen)


# Using


def members() -> list[int]:
    """All ranks but the first, in worlds of more than one: no member's number is its rank."""
    return list(range(1, rr.size())) or [0]


def test_every_collective_in_a_set() -> None:
    chosen = rr.add_process_set(members())
    ranks, n = chosen.ranks, chosen.size()
    if chosen.included():
        inputs = everybodys("float32", (4 * n + 1, 3), ranks=ranks)
        mine, me = inputs[chosen.rank()], chosen.rank()
        assert_equal(rr.allreduce_async(mine, process_set=chosen).wait(), combined(inputs, rr.Average))
        target = mine.copy()
        assert rr.grouped_allreduce_([target], rr.Sum, process_set=chosen)[0] is target
        assert_equal(target, combined(inputs, rr.Sum))
        assert_equal(rr.allgather(mine, process_set=chosen), np.concatenate(inputs))
        for root in ranks:
            result = rr.broadcast_async(mine, root, process_set=chosen).wait()
            assert_equal(result, values("float32", (4 * n + 1, 3), root))
        sent = [one[: 4 * n] for one in inputs]
        expected = np.concatenate([one[4 * me : 4 * me + 4] for one in sent])
        assert_equal(rr.alltoall(sent[me], process_set=chosen), expected)
        own = slice(0, 5) if me == 0 else slice(4 * me + 1, 4 * me + 5)
        assert_equal(rr.reducescatter(mine, rr.Sum, process_set=chosen), combined(inputs, rr.Sum)[own])
        rr.barrier_async(process_set=chosen).wait()
        assert rr.allgather_object(rr.rank(), process_set=chosen) == ranks
        assert rr.broadcast_object([rr.rank()], ranks[-1], process_set=chosen) == [ranks[-1]]
        same = rr.allreduce_async(np.ones(5), rr.Adasum, process_set=chosen).wait()
        assert same.tolist() == [1.0] * 5
        assert rr.join(process_set=chosen) in ranks
    assert rr.remove_process_set(chosen)


def test_sets_that_overlap_in_a_ring() -> None:
    """Sets {0,1}, {1,2}, ... {n-1,0}: each rank waits in both of its sets, in an order that closes a cycle."""
    needs_ranks(3)
    n = rr.size()
    sets = [rr.add_process_set([rank, (rank + 1) % n]) for rank in range(n)]
    right, left = sets[rr.rank()], sets[rr.rank() - 1]
    for turn in range(20):
        if turn % 3 == rr.rank():
            time.sleep(0.001)
        both = (right, left) if turn % 2 else (left, right)
        sums = [rr.allreduce_async(np.full(50, rr.rank()), rr.Sum, name="ring", process_set=one) for one in both]
        rows = [rr.allgather_async(np.full((1, 2), rr.rank()), process_set=one) for one in both[::-1]]
        assert [handle.wait().tolist() for handle in rows] == [[[rank] * 2 for rank in one.ranks] for one in both[::-1]]
        assert [handle.wait().tolist() for handle in sums] == [[sum(one.ranks)] * 50 for one in both]
    for one in sets:
        assert rr.remove_process_set(one)


def test_one_sets_stall_delays_no_other() -> None:
    needs_ranks(2)
    slow, fast = (
        rr.add_process_set([0, rr.size() - 1]),
        rr.add_process_set(range(rr.size())[:2]) if rr.size() > 2 else None,
    )
    if rr.rank() == 0:
        stalled = rr.allreduce_async(np.ones(3), rr.Sum, process_set=slow)
    for _ in range(5):
        assert_all_work()
        if fast is not None and fast.included():
            rr.barrier_async(process_set=fast).wait()
    if rr.rank() == 0:
        assert not stalled.poll()
    rr.barrier()
    if rr.rank() == rr.size() - 1:
        stalled = rr.allreduce_async(np.ones(3), rr.Sum, process_set=slow)
    if slow.included():
        assert stalled.wait().tolist() == [2.0] * 3
    for one in (slow, fast):
        assert one is None or rr.remove_process_set(one)


def test_the_same_name_in_two_sets() -> None:
    chosen = rr.add_process_set(members())
    handle = rr.allreduce_async(np.ones(2), rr.Sum, name="weight")
    if chosen.included():
        other = rr.allreduce_async(np.ones(3), rr.Sum, name="weight", process_set=chosen)
        assert other.wait().tolist() == [chosen.size()] * 3
    assert handle.wait().tolist() == [rr.size()] * 2
    assert rr.remove_process_set(chosen)


# What is refused


def test_only_members_use_a_set() -> None:
    needs_ranks(2)
    chosen = rr.add_process_set(members())
    if not chosen.included():
        for call in (rr.allreduce_async, rr.allgather_async, rr.reducescatter_async, rr.allgather_object):
            with pytest.raises(rr.UsageError, match="members"):
                call(np.ones(3), process_set=chosen)
        for cast in (rr.broadcast_async, rr.broadcast_async_, rr.broadcast_object):
            with pytest.raises(rr.UsageError, match="members"):
                cast(np.ones(3), 1, process_set=chosen)
        with pytest.raises(rr.UsageError, match="members"):
            rr.join(process_set=chosen)
    else:
        for cast in (rr.broadcast_async, rr.broadcast_async_, rr.broadcast_object):
            with pytest.raises(rr.UsageError, match=r"root_rank is rank 0 .* members|members.*root_rank is rank 0"):
                cast(np.ones(3), 0, process_set=chosen)
    assert rr.remove_process_set(chosen)


def test_a_set_that_is_not_registered() -> None:
    never = rr.ProcessSet(range(rr.size()))
    with pytest.raises(rr.UsageError, match="registered"):
        rr.allreduce_async(np.ones(3), process_set=never)
    rr.add_process_set(never)
    assert rr.allreduce_async(np.ones(3), process_set=never).wait().tolist() == [1.0] * 3
    rr.remove_process_set(never)
    for call in (rr.allreduce_async, rr.alltoall_async, rr.allgather_object):
        with pytest.raises(rr.UsageError, match="registered"):
            call(np.ones(rr.size()), process_set=never)


def test_operations_in_flight_fail_when_their_set_is_removed() -> None:
    needs_ranks(2)
    chosen = rr.add_process_set([0, 1])
    if rr.rank() == 0:
        handle = rr.allreduce_async(np.ones(3), rr.Sum, name="left alone", process_set=chosen)
    rr.barrier()
    assert rr.remove_process_set(chosen)
    if rr.rank() == 0:
        with pytest.raises(rr.RingredError, match="left alone"):
            handle.wait()
        with pytest.raises(rr.RingredError, match="removed"):
            handle.wait()


def test_a_mismatch_in_a_set_leaves_the_others_alone() -> None:
    needs_ranks(2)
    chosen = rr.add_process_set([0, 1])
    meanwhile = rr.allreduce_async(np.ones(2), rr.Sum, name="of all")
    if chosen.included():
        with pytest.raises(rr.MismatchError):
            rr.allreduce_async(np.ones(2 + rr.rank()), process_set=chosen).wait()
        assert rr.allreduce_async(np.ones(2), rr.Sum, process_set=chosen).wait().tolist() == [2.0] * 2
    assert meanwhile.wait().tolist() == [rr.size()] * 2
    assert rr.remove_process_set(chosen)


# Worlds


def test_sets_end_with_their_world() -> None:
    chosen = rr.add_process_set([0])
    rr.barrier()
    rr.shutdown()
    assert chosen.process_set_id is None and "all ranks" in repr(rr.global_process_set)
    for call in (lambda: rr.add_process_set([0]), rr.process_set_ids, chosen.included, rr.global_process_set.size):
        with pytest.raises(rr.UsageError, match="init"):
            call()
    with pytest.raises(rr.UsageError, match="init"):
        rr.allreduce_async(np.ones(1), process_set=chosen)
    rr.init(process_sets=[chosen])
    assert chosen.process_set_id == 1 and rr.process_set_ids() == [0, 1]
    assert rr.remove_process_set(chosen)


def test_init_compares_the_sets_of_all_ranks() -> None:
    needs_ranks(2)
    rank = rr.rank()
    rr.barrier()
    rr.shutdown()
    with pytest.raises(rr.MismatchError, match="process_sets"):
        rr.init(process_sets=[[rank]])
    with pytest.raises(ValueError, match="process set"):
        rr.init(process_sets=[[0], []])
    rr.init(process_sets="dynamic")


def test_copies_are_the_same_set_and_pickles_name_the_ranks() -> None:
    chosen = rr.ProcessSet([0])
    assert copy.deepcopy(chosen) is chosen and copy.copy(chosen) is chosen
    assert pickle.loads(pickle.dumps(chosen)).ranks == [0]
    assert pickle.loads(pickle.dumps(rr.global_process_set)) is rr.global_process_set
