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
