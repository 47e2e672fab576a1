"""The named collectives on any number of ranks: values, order, handles, callbacks, and ranks that disagree."""

from __future__ import annotations

import array
import gc
import inspect
import os
import queue
import random
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from rank_data import (
    COMPLEXES,
    DTYPES,
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
from ringred import asynchronous
from ringred.handles import JoinedHandle

Array = Any

OPS = [rr.Sum, rr.Average, rr.Min, rr.Max, rr.Product]
DEFINED = [
    (dtype, op)
    for dtype in DTYPES
    for op in OPS
    if not (dtype == "bool" and op == rr.Average) and not (dtype in COMPLEXES and op in (rr.Min, rr.Max))
]
SHAPES: list[tuple[int, ...]] = [(), (1,), (3, 0), (5, 7), (13, 1009)]
TORCH_DTYPES = [*DTYPES, "bfloat16"]
MISMATCH_SECONDS = 1.0


def tensor_of(values: Array, dtype: str) -> Array:
    torch = pytest.importorskip("torch", reason="needs torch")
    return torch.from_numpy(np.ascontiguousarray(values)).to(getattr(torch, dtype))


# Allreduce


@pytest.mark.parametrize(("dtype", "op"), DEFINED, ids=lambda value: value if isinstance(value, str) else value.name)
def test_allreduce(dtype: str, op: rr.Op) -> None:
    for shape in SHAPES:
        inputs = everybodys(dtype, shape)
        mine = inputs[rr.rank()].copy()
        assert_equal(rr.allreduce_async(mine, op).wait(), combined(inputs, op))
        assert_equal(mine, inputs[rr.rank()])
        assert rr.allreduce_async_(mine, op, name="in place").wait() is mine
        assert_equal(mine, combined(inputs, op))


@pytest.mark.parametrize("dtype", TORCH_DTYPES)
def test_tensors_give_tensors(dtype: str) -> None:
    source = "float32" if dtype == "bfloat16" else dtype
    for shape in SHAPES:
        inputs = everybodys(source, shape)
        mine = tensor_of(inputs[rr.rank()], dtype).reshape(shape)
        total = tensor_of(combined(inputs, rr.Sum), dtype).reshape(shape)
        result = rr.allreduce_async(mine, rr.Sum).wait()
        assert result.dtype == total.dtype and result.shape == total.shape and bool((result == total).all())
        root = rr.broadcast_async(mine, rr.size() - 1).wait()
        assert root.dtype == total.dtype and bool((root == tensor_of(inputs[-1], dtype).reshape(shape)).all())
        if shape:
            gathered = rr.allgather(mine)
            expected = tensor_of(np.concatenate(inputs), dtype)
            assert gathered.dtype == expected.dtype and gathered.shape == expected.shape
            assert bool((gathered == expected).all())
        assert rr.allreduce_async_(mine, rr.Sum).wait() is mine
        assert bool((mine == total).all())


def test_factors() -> None:
    inputs = everybodys("float32", (100,))
    result = rr.allreduce_async(inputs[rr.rank()], rr.Sum, prescale_factor=0.5, postscale_factor=4.0).wait()
    assert_equal(result, combined(inputs, rr.Sum) * np.float32(2))
    shares = rr.reducescatter(inputs[rr.rank()].reshape(100, 1), rr.Sum, prescale_factor=0.5, postscale_factor=4.0)
    own = rows_of(100, rr.rank(), rr.size())
    assert_equal(shares, (combined(inputs, rr.Sum) * np.float32(2)).reshape(100, 1)[own])


def test_factors_of_integers_are_applied_in_float64_and_truncated() -> None:
    mine = np.array([-7, 7, 10, (1 << 53) - 2], "int64")
    result = rr.allreduce_async(mine, rr.Max, prescale_factor=0.5).wait()
    assert result.tolist() == [-3, 3, 5, (1 << 52) - 1]
    assert rr.allreduce_async(mine, rr.Min, postscale_factor=0.5).wait().tolist() == [-3, 3, 5, (1 << 52) - 1]


@pytest.mark.parametrize(("wire", "lost"), [("float16", 2.0**-12), ("bfloat16", 2.0**-9)])
def test_wire(wire: str, lost: float) -> None:
    """What the type of the wire can hold arrives; what it cannot is rounded away before the sum."""
    inputs = everybodys("float32", (5000,))
    assert_equal(rr.allreduce_async(inputs[rr.rank()], rr.Sum, wire=wire).wait(), combined(inputs, rr.Sum))
    if rr.size() > 1:
        finer = np.full(5000, 1 + lost, "float32")
        assert (rr.allreduce_async(finer, rr.Sum, wire=wire).wait() == rr.size()).all()
    whole = np.full(10, 70_001, "int64")
    assert (rr.allreduce_async(whole, rr.Max, wire=wire).wait() == 70_001).all()


def test_grouped_allreduce_of_different_dtypes() -> None:
    kinds = [("float32", (5, 7)), ("int64", ()), ("float16", (3000,)), ("float64", (0, 2)), ("float32", (1,))]
    for op in (rr.Sum, rr.Average):
        inputs = [everybodys(dtype, shape) for dtype, shape in kinds]
        mine = [one[rr.rank()].copy() for one in inputs]
        results = rr.grouped_allreduce(mine, op, name="group")
        assert isinstance(results, list)
        for result, given, source in zip(results, mine, inputs, strict=True):
            assert_equal(given, source[rr.rank()])
            assert_equal(result, combined(source, op))
        results = rr.grouped_allreduce_(mine, op)
        assert all(result is given for result, given in zip(results, mine, strict=True))
        for given, source in zip(mine, inputs, strict=True):
            assert_equal(given, combined(source, op))


# Arrays of all kinds


def test_strided_input() -> None:
    inputs = everybodys("float32", (40, 60))
    views: list[Callable[[Array], Array]] = [lambda x: x.T, lambda x: x[::3, ::2], lambda x: x[::-1]]
    for view in views:
        expected = combined([view(one) for one in inputs], rr.Sum)
        assert_equal(rr.allreduce_async(view(inputs[rr.rank()]), rr.Sum).wait(), expected)
        gathered = np.concatenate([view(one) for one in inputs])
        assert_equal(rr.allgather(view(inputs[rr.rank()])), gathered)


def test_in_place_needs_contiguous_writable_memory() -> None:
    strided, fixed = np.ones((4, 4))[:, ::2], np.ones(4)
    fixed.flags.writeable = False
    for bad in (strided, fixed):
        for call in (rr.allreduce_async_, rr.broadcast_async_, lambda one: rr.grouped_allreduce_async_([one])):
            with pytest.raises(rr.UsageError):
                call(bad)
    assert_all_work()


def test_buffers_and_dlpack() -> None:
    numbers = array.array("d", [rr.rank(), 1])
    assert rr.allreduce_async_(numbers, rr.Sum).wait() is numbers
    assert numbers.tolist() == [rr.size() * (rr.size() - 1) / 2, rr.size()]
    gathered = rr.allgather(bytearray(b"ab"))
    assert isinstance(gathered, np.ndarray) and gathered.tobytes() == b"ab" * rr.size()


def test_arrays_are_kept_alive_while_in_flight() -> None:
    if rr.rank() == 0:
        time.sleep(0.1)
    handle = rr.allreduce_async(np.full(100_000, rr.rank()), rr.Max)
    gathered = rr.allgather_async(np.full((1000, 3), rr.rank()))
    gc.collect()
    junk = [np.full(100_000, -1) for _ in range(20)]
    assert (handle.wait() == rr.size() - 1).all()
    assert_equal(gathered.wait(), np.repeat(np.arange(rr.size()), 3000).reshape(-1, 3))
    del junk


# Gathering, scattering


@pytest.mark.parametrize("dtype", DTYPES)
def test_allgather_of_different_lengths(dtype: str) -> None:
    for rows_of_rank in (lambda rank: rank, lambda rank: 3 - min(rank, 3), lambda rank: 500 * (rank == 1), lambda _: 2):
        for rest in ((), (4,), (2, 3), (0,)):
            inputs = [values(dtype, (rows_of_rank(rank), *rest), rank) for rank in range(rr.size())]
            result = rr.allgather(inputs[rr.rank()])
            assert_equal(result, np.concatenate(inputs))
            result[...] = 1  # the result is the caller's


def test_grouped_allgather() -> None:
    inputs = [everybodys("int32", (2, 3)), everybodys("float16", (0,)), everybodys("bool", (70,))]
    results = rr.grouped_allgather([one[rr.rank()] for one in inputs])
    for result, one in zip(results, inputs, strict=True):
        assert_equal(result, np.concatenate(one))


def test_rows_of_an_allgather() -> None:
    handle = asynchronous.gathered_async([np.ones((rr.rank(), 2)), np.ones(1)])
    assert [rows for _, rows in handle.wait()] == [list(range(rr.size())), [1] * rr.size()]


@pytest.mark.parametrize("dtype", DTYPES)
def test_broadcast_from_each_root(dtype: str) -> None:
    for root in range(rr.size()):
        for shape in SHAPES:
            inputs = everybodys(dtype, shape)
            mine = inputs[rr.rank()].copy()
            assert_equal(rr.broadcast_async(mine, root).wait(), inputs[root])
            assert_equal(mine, inputs[rr.rank()])
            assert rr.broadcast_async_(mine, root).wait() is mine
            assert_equal(mine, inputs[root])
    group = [np.full(3, rr.rank()), np.full((), float(rr.rank()))]
    assert rr.grouped_broadcast_async_(group, rr.size() - 1).wait() == group
    assert group[0].tolist() == [rr.size() - 1] * 3 and float(group[1]) == rr.size() - 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_alltoall(dtype: str) -> None:
    n = rr.size()
    for rest in ((), (3,), (0,)):
        inputs = [values(dtype, (2 * n, *rest), rank) for rank in range(n)]
        result = rr.alltoall(inputs[rr.rank()])
        assert_equal(result, np.concatenate([one[2 * rr.rank() : 2 * rr.rank() + 2] for one in inputs]))


def uneven_splits(rank: int) -> list[int]:
    """Rank r sends (r + k) % 3 rows to rank k: none to some."""
    return [(rank + peer) % 3 for peer in range(rr.size())]


def test_alltoall_with_splits() -> None:
    inputs = [values("float32", (sum(uneven_splits(rank)), 5), rank) for rank in range(rr.size())]
    parts = [np.split(one, np.cumsum(uneven_splits(rank))[:-1]) for rank, one in enumerate(inputs)]
    expected = np.concatenate([part[rr.rank()] for part in parts])
    received = [uneven_splits(rank)[rr.rank()] for rank in range(rr.size())]
    mine = uneven_splits(rr.rank())
    for splits, dtype in ((mine, "int64"), (np.array(mine, "int32"), "int32"), (tuple(mine), "int64")):
        result, counts = rr.alltoall(inputs[rr.rank()], splits)
        assert_equal(result, expected)
        assert_equal(counts, np.array(received, dtype))
    torch = pytest.importorskip("torch", reason="needs torch")
    result, counts = rr.alltoall(torch.from_numpy(inputs[rr.rank()]), torch.tensor(mine, dtype=torch.int32))
    assert torch.equal(result, torch.from_numpy(expected))
    assert counts.dtype == torch.int32 and counts.tolist() == received


def test_alltoall_of_nothing() -> None:
    result, counts = rr.alltoall(np.ones((0, 2), "int16"), [0] * rr.size())
    assert_equal(result, np.ones((0, 2), "int16"))
    assert counts.tolist() == [0] * rr.size()


def rows_of(rows: int, rank: int, size: int) -> slice:
    """Which of the rows a rank gets from a reducescatter."""
    counts = [rows // size + (one < rows % size) for one in range(size)]
    return slice(sum(counts[:rank]), sum(counts[: rank + 1]))


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype != "bool"])
def test_reducescatter(dtype: str) -> None:
    n = rr.size()
    for op in (rr.Sum, rr.Average):
        for rows in (0, 1, n - 1, n, n + 1, 2 * n + 1, 500 * n + 1):
            inputs = everybodys(dtype, (rows, 3))
            result = rr.reducescatter(inputs[rr.rank()], op)
            assert_equal(result, combined(inputs, op)[rows_of(rows, rr.rank(), n)])


def test_grouped_reducescatter() -> None:
    inputs = [everybodys("float32", (7, 2)), everybodys("int64", (5,)), everybodys("float16", (1, 1))]
    results = rr.grouped_reducescatter([one[rr.rank()] for one in inputs], rr.Sum)
    for result, one in zip(results, inputs, strict=True):
        assert_equal(result, combined(one, rr.Sum)[rows_of(len(one[0]), rr.rank(), rr.size())])


# Barrier and join


def test_barrier_holds_everybody_and_nothing_else() -> None:
    for late in range(rr.size()):
        other = rr.allreduce_async(np.array([rr.rank()]), rr.Max, name="meanwhile")
        if rr.rank() == late:
            assert other.wait().tolist() == [rr.size() - 1]  # before this rank's barrier
        before = time.monotonic_ns()
        rr.barrier_async(name="b").wait()
        after = time.monotonic_ns()
        latest = rr.allreduce_async(np.array([before]), rr.Max).wait()
        assert after >= latest[0]
        other.wait()


def test_join_contributes_zeros() -> None:
    """Rank r has r steps. Averages divide by all ranks."""
    for turn in range(2):
        for step in range(rr.rank()):
            total = rr.allreduce_async(np.ones(10), rr.Sum, name=f"sum {step}").wait()
            assert total.tolist() == [rr.size() - 1 - step] * 10
            mean = rr.allreduce_async(np.ones(3), name=f"mean {step}").wait()
            assert mean.tolist() == [(rr.size() - 1 - step) / rr.size()] * 3
        assert rr.join() == rr.size() - 1, turn
        assert_all_work()


def test_nothing_but_allreduce_while_a_rank_has_joined() -> None:
    needs_ranks(2)
    if rr.rank() > 0:
        rows = np.ones((rr.size(), 2))
        calls: list[Callable[[], rr.Handle[Any]]] = [
            lambda: rr.allgather_async(rows, name="gather"),
            lambda: rr.broadcast_async(rows, 1, name="cast"),
            lambda: rr.alltoall_async(rows, name="all to all"),
            lambda: rr.reducescatter_async(rows, name="scatter"),
        ]
        for call in calls:
            with pytest.raises(rr.RingredError, match="join"):
                call().wait()
        assert rr.allreduce_async(np.ones(2), rr.Sum, name="sum").wait().tolist() == [rr.size() - 1] * 2
    rr.join()
    assert_all_work()


def test_join_that_allows_all() -> None:
    needs_ranks(2)
    if rr.rank() > 0:
        assert_equal(rr.allgather(np.full((1, 2), rr.rank()), name="gather"), others(1, rr.size()))
        shares = rr.reducescatter(np.ones((rr.size(), 2)), rr.Sum, name="scatter")
        assert shares.tolist() == [[rr.size() - 1] * 2]
    assert rr.join(allow="all") in range(rr.size())
    assert_all_work()


def others(first: int, size: int) -> Array:
    return np.repeat(np.arange(first, size), 2).reshape(-1, 2)


def test_join_refuses_what_it_does_not_know() -> None:
    with pytest.raises(rr.UsageError, match="'allreduce' or 'all'"):
        rr.join(allow="everything")


# Order and threads


def mixed_operation(number: int) -> tuple[rr.Handle[Any], Array]:
    """One of several kinds, and what must come out."""
    n, name = rr.size(), f"mixed {number}"
    inputs = [values("int64", (n * (number % 7), 2), rank, seed=number) for rank in range(n)]
    mine = inputs[rr.rank()]
    kind = number % 5
    if kind == 0:
        return rr.allreduce_async(mine, rr.Sum, name=name), combined(inputs, rr.Sum)
    if kind == 1:
        return rr.allgather_async(mine, name=name), np.concatenate(inputs)
    if kind == 2:
        return rr.broadcast_async(mine, number % n, name=name), inputs[number % n]
    if kind == 3:
        own = rows_of(len(mine), rr.rank(), n)
        return rr.reducescatter_async(mine, rr.Sum, name=name), combined(inputs, rr.Sum)[own]
    rows = len(mine) // n
    parts = [one[rows * rr.rank() : rows * (rr.rank() + 1)] for one in inputs]
    return rr.alltoall_async(mine, name=name), np.concatenate(parts)


def test_each_rank_submits_and_waits_in_its_own_order() -> None:
    generator = random.Random(rr.rank())
    for _ in range(3):
        numbers = list(range(60))
        generator.shuffle(numbers)
        started = []
        for number in numbers:
            if generator.random() < 0.1:
                time.sleep(0.001)
            started.append(mixed_operation(number))
        generator.shuffle(started)
        for handle, expected in started:
            assert_equal(handle.wait(), expected)


def test_several_threads() -> None:
    def work(thread: int) -> None:
        for step in range(20):
            name = f"thread {thread} step {step}"
            result = rr.allreduce_async(np.full(100, rr.rank() + thread), rr.Max, name=name).wait()
            assert (result == rr.size() - 1 + thread).all()

    in_threads(*(partial(work, thread) for thread in range(4)))


def test_many_threads_wait_for_one_handle() -> None:
    if rr.rank() == 0:
        time.sleep(0.05)
    handle = rr.allgather_async(np.ones(3))
    results = in_threads(*[handle.wait] * 4)
    assert all(result is results[0] for result in results)


# Handles


def test_a_handle_gives_the_same_result_again() -> None:
    for handle in (
        rr.allreduce_async(np.ones(3), rr.Sum),
        rr.allgather_async(np.ones(3)),
        rr.allreduce_async(np.ones(3), rr.Adasum),
        rr.barrier_async(),
    ):
        result = rr.synchronize(handle)
        assert rr.poll(handle) and handle.poll()
        assert handle.wait() is result and handle() is result and rr.synchronize(handle) is result


def test_names() -> None:
    handle = rr.allreduce_async(np.ones(1), name="layer.weight")
    assert handle.name == "layer.weight" and "layer.weight" in repr(handle)
    unnamed = [rr.barrier_async(), rr.barrier_async()]
    assert unnamed[0].name != unnamed[1].name
    for one in (handle, *unnamed):
        one.wait()
    rr.synchronize(rr.allreduce_async(np.ones(1), name="layer.weight"))  # free again


def test_poll_says_whether_it_is_done() -> None:
    needs_ranks(2)
    if rr.rank() == 0:
        handle = rr.allreduce_async(np.ones(1), rr.Sum, name="late")
        assert not handle.poll() and not rr.poll(handle)
        rr.barrier_async(name="go").wait()
    else:
        rr.barrier_async(name="go").wait()
        handle = rr.allreduce_async(np.ones(1), rr.Sum, name="late")
    assert handle.wait().tolist() == [rr.size()]
    assert handle.poll()


def test_unknown_handles() -> None:
    for thing in (None, 3, "handle", np.ones(1)):
        with pytest.raises(rr.UsageError, match="asynchronous call"):
            rr.poll(thing)  # type: ignore[arg-type]
        with pytest.raises(rr.UsageError, match="asynchronous call"):
            rr.synchronize(thing)  # type: ignore[arg-type]


def test_then_and_joined_handles() -> None:
    calls: list[int] = []
    first, second = rr.allreduce_async(np.ones(2), rr.Sum), rr.allgather_async(np.ones(1))
    sized = first.then(lambda result: calls.append(1) or result * 2)
    joined = JoinedHandle("both", [sized, second], lambda results: [one.tolist() for one in results])
    assert joined.wait() == [[2.0 * rr.size()] * 2, [1.0] * rr.size()]
    assert joined.wait() is joined.wait() and sized.wait() is sized.wait()
    assert calls == [1] and joined.poll()


def test_an_error_is_raised_on_every_wait() -> None:
    needs_ranks(2)
    handles: list[rr.Handle[Any]] = [
        rr.allreduce_async(np.ones(3 + rr.rank()), op, name=f"differ {op.name}") for op in (rr.Sum, rr.Adasum)
    ]
    handles.append(handles[0].then(lambda result: result))
    for handle in handles:
        for _ in range(3):
            with pytest.raises(rr.MismatchError, match="differ"):
                handle.wait()
        assert handle.poll()
    assert_all_work()


def test_interrupt_ends_the_wait_and_not_the_operation() -> None:
    needs_ranks(2)
    if rr.rank() == 0:
        handle = rr.allreduce_async(np.ones(2), rr.Sum, name="interrupted")
        chained = rr.allreduce_async(np.ones(2), rr.Adasum, name="chained")
        for one in (handle, chained):
            timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
            timer.start()
            with pytest.raises(KeyboardInterrupt):
                one.wait()
            timer.join()
        rr.barrier_async(name="go").wait()
    else:
        rr.barrier_async(name="go").wait()
        handle = rr.allreduce_async(np.ones(2), rr.Sum, name="interrupted")
        chained = rr.allreduce_async(np.ones(2), rr.Adasum, name="chained")
    assert handle.wait().tolist() == [rr.size()] * 2
    assert chained.wait().tolist() == [1.0] * 2


# Callbacks


def test_callbacks_run_once_on_their_thread() -> None:
    calls: queue.Queue[tuple[Any, str]] = queue.Queue()

    def note(handle: Any) -> None:
        calls.put((handle, threading.current_thread().name))

    handles: list[rr.Handle[Any]] = [
        rr.allreduce_async(np.ones(3), rr.Sum),
        rr.allgather_async(np.ones(3)),
        rr.allreduce_async(np.ones(3), rr.Adasum),
        JoinedHandle("both", [rr.barrier_async(), rr.barrier_async()], lambda _: None),
    ]
    for handle in handles:
        handle.add_done_callback(note)
    seen = [calls.get(timeout=PATIENCE_SECONDS) for _ in handles]
    assert {id(handle) for handle, _ in seen} == {id(handle) for handle in handles}
    for handle in handles:
        assert handle.poll()
        handle.add_done_callback(note)
        assert calls.get(timeout=PATIENCE_SECONDS) == (handle, "ringred callbacks")
    assert {thread for _, thread in seen} == {"ringred callbacks"}
    assert_all_work()
    assert calls.empty()


@pytest.mark.parametrize("op", [rr.Sum, rr.Adasum], ids=lambda op: op.name)
def test_a_callback_that_raises_is_reported_and_the_others_run(op: rr.Op, capfd: pytest.CaptureFixture[str]) -> None:
    needs_ranks(2)
    ran = threading.Event()

    def fail(_: Any) -> None:
        raise ZeroDivisionError("on purpose")

    def submit() -> rr.Handle[Any]:
        return rr.allreduce_async(np.ones(3), op, name="has callbacks")

    if rr.rank() == 0:  # both callbacks are there before the operation can be done
        handle = submit()
        handle.add_done_callback(fail)
        handle.add_done_callback(lambda _: ran.set())
        rr.barrier_async(name="go").wait()
        assert ran.wait(PATIENCE_SECONDS)
        text = capfd.readouterr().err
        assert "'has callbacks'" in text and "ZeroDivisionError: on purpose" in text
    else:
        rr.barrier_async(name="go").wait()
        handle = submit()
    handle.wait()


def test_callbacks_of_operations_that_fail() -> None:
    needs_ranks(2)
    ran = threading.Event()
    handle = rr.allreduce_async(np.ones(3 + rr.rank()), rr.Sum, name="fails")
    handle.add_done_callback(lambda _: ran.set())
    assert ran.wait(PATIENCE_SECONDS)
    with pytest.raises(rr.MismatchError):
        handle.wait()


def test_a_callback_submits_the_next_operation() -> None:
    results: queue.Queue[Array] = queue.Queue()

    def again(handle: rr.Handle[Array]) -> None:
        following = rr.allreduce_async(handle.wait(), rr.Sum, name="second")
        following.add_done_callback(lambda one: results.put(one.wait()))

    rr.allreduce_async(np.ones(2), rr.Sum, name="first").add_done_callback(again)
    assert results.get(timeout=PATIENCE_SECONDS).tolist() == [rr.size() ** 2] * 2


def test_a_callback_waits_for_a_chain() -> None:
    """The callback thread drives the chain, so a wait on it must do so too."""
    results: queue.Queue[Array] = queue.Queue()

    def wait(_: Any) -> None:
        results.put(rr.allreduce_async(np.ones(4), rr.Adasum, name="in a callback").wait())

    rr.barrier_async().add_done_callback(wait)
    assert results.get(timeout=PATIENCE_SECONDS).tolist() == [1.0] * 4


def test_shutdown_with_operations_in_flight() -> None:
    """They fail by name, their callbacks still run, and a new world works."""
    needs_ranks(2)
    ran: queue.Queue[Any] = queue.Queue()
    handles: list[rr.Handle[Any]] = []
    if rr.rank() == 0:
        handles = [rr.allreduce_async(np.ones(3), op, name=f"left {op.name}") for op in (rr.Sum, rr.Adasum)]
        for handle in handles:
            handle.add_done_callback(ran.put)
    rr.barrier()
    rr.shutdown()
    for handle in handles:
        with pytest.raises(rr.RingredError, match=handle.name):
            handle.wait()
    assert {id(ran.get(timeout=PATIENCE_SECONDS)) for _ in handles} == {id(handle) for handle in handles}
    with pytest.raises(rr.UsageError, match="init"):
        rr.allreduce_async(np.ones(3))
    late = threading.Event()
    for handle in handles:
        late.clear()
        handle.add_done_callback(lambda _: late.set())
        assert late.wait(PATIENCE_SECONDS)
    rr.init()
    assert_all_work()
    for handle in handles:
        with pytest.raises(rr.RingredError, match=handle.name):
            handle.wait()


# Wrong arguments, which start nothing


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "no array": (lambda: rr.allreduce_async("text"), "array"),
    "objects": (lambda: rr.allreduce_async(np.array([None])), "dtype"),
    "op": (lambda: rr.allreduce_async(np.ones(2), "sum"), "op"),  # type: ignore[arg-type]
    "op of reducescatter": (lambda: rr.reducescatter_async(np.ones(2), rr.Max), "Sum"),
    "wire": (lambda: rr.allreduce_async(np.ones(2), wire="int8"), "wire"),
    "wire of Adasum": (lambda: rr.allreduce_async(np.ones(2), rr.Adasum, wire="float16"), "wire"),
    "root beyond": (lambda: rr.broadcast_async(np.ones(2), rr.size()), "members"),
    "negative root": (lambda: rr.broadcast_async_(np.ones(2), -1), "members"),
    "root of another type": (lambda: rr.broadcast_async(np.ones(2), 0.5), "root_rank"),  # type: ignore[arg-type]
    "empty group": (lambda: rr.grouped_allreduce([]), "empty"),
    "empty group in place": (lambda: rr.grouped_allreduce_([]), "empty"),
    "empty group to gather": (lambda: rr.grouped_allgather([]), "empty"),
    "empty group to scatter": (lambda: rr.grouped_reducescatter([]), "empty"),
    "no group": (lambda: rr.grouped_allreduce(np.ones(3)), "list"),  # type: ignore[arg-type]
    "no rows to gather": (lambda: rr.allgather(np.ones(())), "first dimension"),
    "no rows to send": (lambda: rr.alltoall(np.ones(())), "first dimension"),
    "no rows to scatter": (lambda: rr.reducescatter(np.ones(())), "first dimension"),
    "no splits": (lambda: rr.alltoall(np.ones(rr.size() + 1)), "splits"),
    "too few splits": (lambda: rr.alltoall(np.ones(3), [3] * (rr.size() - 1)), "splits"),
    "sum of splits": (lambda: rr.alltoall(np.ones(2 * rr.size()), [1] * rr.size()), "sum"),
    "negative splits": (lambda: rr.alltoall(np.ones(0), [-1, 1, *[0] * (rr.size() - 2)][: rr.size()]), "negative"),
    "splits in two dimensions": (lambda: rr.alltoall(np.ones(1), [[1]]), "one-dimensional"),
    "splits of floats": (lambda: rr.alltoall(np.ones(rr.size()), [1.0] * rr.size()), "integers"),
    "process set": (lambda: rr.allreduce_async(np.ones(1), process_set=[0]), "ProcessSet"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("what", list(WRONG))
def test_wrong_arguments(what: str) -> None:
    """On one rank only: the others are not affected, and the rank stays in step."""
    call, word = WRONG[what]
    if rr.rank() == rr.size() - 1:
        if what == "no splits" and rr.size() == 1:
            pytest.skip("one rank takes any number of rows")
        with pytest.raises(rr.UsageError, match=word) as caught:
            call()
        assert isinstance(caught.value, ValueError)
    assert_all_work()


def test_a_name_in_flight() -> None:
    needs_ranks(2)
    for op in (rr.Sum, rr.Adasum):
        if rr.rank() == 0:
            handle = rr.allreduce_async(np.ones(2), op, name="twice")
            with pytest.raises(rr.UsageError, match="twice"):
                rr.allreduce_async(np.ones(2), op, name="twice")
            rr.barrier_async(name="go").wait()
        else:
            rr.barrier_async(name="go").wait()
            handle = rr.allreduce_async(np.ones(2), op, name="twice")
        handle.wait()
        rr.allreduce_async(np.ones(2), op, name="twice").wait()


# Ranks that disagree


def odd() -> bool:
    return rr.rank() == rr.size() - 1


MISMATCHES: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "dtype": (lambda: rr.allreduce_async(np.ones(3, "int32" if odd() else "float32"), name="m"), ("int32", "float32")),
    "shape": (lambda: rr.allreduce_async(np.ones(4 if odd() else 3), name="m"), ("3", "4")),
    "op": (lambda: rr.allreduce_async(np.ones(3), rr.Min if odd() else rr.Max, name="m"), ("Min", "Max")),
    "prescale": (lambda: rr.allreduce_async(np.ones(3), prescale_factor=2.5 if odd() else 1.0, name="m"), ("2.5",)),
    "root": (lambda: rr.broadcast_async(np.ones(3), int(odd()), name="m"), ("0", "1")),
    "kind": (
        lambda: (rr.allgather_async if odd() else rr.allreduce_async)(np.ones(3), name="m"),
        ("allgather", "allreduce"),
    ),
    "rest": (lambda: rr.allgather_async(np.ones((2, 4 if odd() else 3)), name="m"), ("3", "4")),
    "dtype of rows": (
        lambda: rr.allgather_async(np.ones(2, "int8" if odd() else "uint8"), name="m"),
        ("int8", "uint8"),
    ),
    "group": (lambda: rr.grouped_allreduce_async([np.ones(2)] * (2 if odd() else 3), name="m"), ("m",)),
    "scatter": (lambda: rr.reducescatter_async(np.ones(4 if odd() else 3), name="m"), ("3", "4")),
    "unnamed": (lambda: rr.barrier_async() if odd() else rr.allreduce_async(np.ones(3)), ("barrier", "allreduce")),
}


@pytest.mark.parametrize("what", list(MISMATCHES))
def test_mismatch_is_raised_everywhere_and_costs_nothing(what: str) -> None:
    needs_ranks(2)
    call, words = MISMATCHES[what]
    rr.barrier()
    start = time.monotonic()
    handle = call()
    with pytest.raises(rr.MismatchError) as caught:
        handle.wait()
    assert time.monotonic() - start < MISMATCH_SECONDS
    for word in (*words, "rank"):
        assert word in str(caught.value)
    assert_all_work()


# The face


def test_blocking_forms_have_the_parameters_of_the_asynchronous_ones() -> None:
    for name in ("allgather", "alltoall", "reducescatter", "grouped_allreduce", "grouped_allreduce_"):
        blocking = getattr(rr, name)
        begin = getattr(rr, f"{name.removesuffix('_')}_async{'_' if name.endswith('_') else ''}")
        assert blocking.__name__ == name and blocking.__doc__
        assert list(inspect.signature(blocking).parameters) == list(inspect.signature(begin).parameters)
