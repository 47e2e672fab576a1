"""Python objects between ranks: of any kind and size, and those that cannot be pickled on one side or the other."""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
import pytest
from rank_data import assert_all_work, needs_ranks

import ringred as rr

MISMATCH_SECONDS = 1.0


def object_of(rank: int) -> Any:
    return {"rank": rank, "list": [rank] * rank, "array": np.arange(rank), "text": "é" * rank, "none": None}


def same(left: Any, right: Any) -> bool:
    return str(left) == str(right)


def test_allgather_object() -> None:
    assert same(rr.allgather_object(object_of(rr.rank())), [object_of(rank) for rank in range(rr.size())])
    assert rr.allgather_object(None, name="none") == [None] * rr.size()


def test_broadcast_object_from_each_root() -> None:
    for root in range(rr.size()):
        mine = object_of(rr.rank())
        result = rr.broadcast_object(mine, root)
        assert same(result, object_of(root))
        assert (result is mine) == (rr.rank() == root)
    assert rr.broadcast_object("x" if rr.rank() == 0 else None, name="named") == "x"


def test_only_the_roots_object_is_pickled() -> None:
    mine = "good" if rr.rank() == rr.size() - 1 else (step for step in range(3))
    assert rr.broadcast_object(mine, rr.size() - 1) == "good"


def test_large_objects() -> None:
    mine = np.full(3_000_000 + rr.rank(), rr.rank(), "int32")
    gathered = rr.allgather_object(mine)
    for rank, one in enumerate(gathered):
        assert one.shape == (3_000_000 + rank,) and one[0] == rank and one[-1] == rank
    assert rr.broadcast_object(b"ab" * 5_000_000 if rr.rank() == 0 else b"") == b"ab" * 5_000_000


def test_what_only_cloudpickle_takes() -> None:
    pytest.importorskip("cloudpickle", reason="needs cloudpickle")
    rank = rr.rank()
    doubled = rr.broadcast_object((lambda x: 2 * x) if rank == 0 else None)
    assert doubled(21) == 42
    assert [function(1) for function in rr.allgather_object(lambda x: x + rank)] == [
        1 + one for one in range(rr.size())
    ]


class Refusing:
    """Cannot be pickled by anything."""

    def __reduce__(self) -> Any:
        raise RuntimeError("a lock holds it, on purpose")


def test_an_object_that_cannot_be_pickled_raises_everywhere() -> None:
    for bad in range(rr.size()):
        with pytest.raises(rr.UsageError, match=f"rank {bad} .*RuntimeError: a lock holds it, on purpose") as caught:
            rr.allgather_object(Refusing() if rr.rank() == bad else 1)
        assert (caught.value.__cause__ is not None) == (rr.rank() == bad)
        with pytest.raises(rr.UsageError, match=f"rank {bad} .*on purpose"):
            rr.broadcast_object(Refusing() if rr.rank() == bad else 1, bad)
        assert_all_work()


def test_without_cloudpickle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    with pytest.raises(rr.UsageError, match="pickle"):
        rr.broadcast_object(lambda x: x)
    assert rr.allgather_object(3) == [3] * rr.size()


def explode() -> None:
    raise ZeroDivisionError("while unpickling, on purpose")


class Exploding:
    """Can be pickled, and cannot be unpickled."""

    def __reduce__(self) -> Any:
        return explode, ()


def test_an_object_that_cannot_be_unpickled_is_told() -> None:
    with pytest.raises(rr.UsageError, match=r"rank 0 sent .*ZeroDivisionError: while unpickling, on purpose"):
        rr.allgather_object(Exploding() if rr.rank() == 0 else 1)
    assert_all_work()


def expect_mismatch(call: Any, *words: str) -> None:
    rr.barrier()
    start = time.monotonic()
    with pytest.raises(rr.MismatchError) as caught:
        call()
    assert time.monotonic() - start < MISMATCH_SECONDS
    for word in words:
        assert word in str(caught.value)
    assert_all_work()


def test_ranks_that_disagree() -> None:
    needs_ranks(2)
    odd = rr.rank() == rr.size() - 1
    expect_mismatch(lambda: rr.broadcast_object(1, int(odd)), "root_rank=0", "root_rank=1")
    expect_mismatch(
        lambda: rr.allgather_object(1) if odd else rr.broadcast_object(1), "allgather_object", "broadcast_object"
    )
    expect_mismatch(lambda: rr.allgather(np.ones(30, "uint8")) if odd else rr.allgather_object(1))


def test_root_out_of_range() -> None:
    for root in (-1, rr.size()):
        with pytest.raises(rr.UsageError, match="root_rank"):
            rr.broadcast_object(1, root)
    assert_all_work()


class Raising:
    """Raises this when it is pickled."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error


class MuteError(Exception):
    """Cannot say what it is."""

    def __str__(self) -> str:
        raise RuntimeError("on purpose")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("not UTF-8: \udcff"), r"RuntimeError: not UTF-8: \?"),
        (MuteError(), "MuteError, whose str"),
        (SystemExit(3), "SystemExit: 3"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
    ],
    ids=["surrogate", "mute", "exit", "interrupt"],
)
def test_peers_hear_of_any_failure(error: BaseException, words: str) -> None:
    for bad in range(rr.size()):
        mine = rr.rank() == bad
        expected = type(error) if mine and not isinstance(error, Exception) else rr.UsageError
        for call in (rr.allgather_object, lambda obj, root=bad: rr.broadcast_object(obj, root)):
            with pytest.raises(expected) as caught:
                call(Raising(error) if mine else 1)
            if expected is rr.UsageError:
                assert caught.match(f"rank {bad} cannot .*{words}")
        assert_all_work()


def test_cloudpickle_is_the_remedy_only_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stub:
        @staticmethod
        def dump(obj: Any, file: Any) -> None:
            raise RuntimeError("on purpose")

    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "cloudpickle", Stub)
        with pytest.raises(rr.UsageError, match=r"on purpose.*define __reduce__"):
            rr.allgather_object(lambda: 1)
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    with pytest.raises(rr.UsageError, match="Install cloudpickle"):
        rr.allgather_object(lambda: 1)


def test_a_users_allgather_is_never_taken_for_a_message() -> None:
    needs_ranks(2)
    odd = rr.rank() == rr.size() - 1
    for shape in ((30,), (30, 1)):
        values = np.ones(shape, "uint8")
        expect_mismatch(lambda values=values: rr.allgather(values) if odd else rr.allgather_object(1))


@pytest.mark.parametrize("call", [rr.allgather_object, rr.broadcast_object], ids=["allgather", "broadcast"])
def test_objects_refuse_other_names_sets_and_roots(call: Any) -> None:
    for name in (3, [], "\udcff"):
        with pytest.raises(rr.UsageError, match="name must be"):
            call(1, name=name)
    for process_set in (None, [0]):
        with pytest.raises(rr.UsageError, match="process_set must be a ProcessSet"):
            call(1, process_set=process_set)
    for root in (0.0, "0", None, np.array([0])):
        with pytest.raises(rr.UsageError, match=r"root_rank must be a rank of the world, an int: .* of type"):
            rr.broadcast_object(1, root)  # type: ignore[arg-type]
    assert_all_work()
