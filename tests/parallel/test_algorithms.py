"""Algorithms forced one after the other in one world: the result of each, and which of them give the same bits."""

from __future__ import annotations

import numpy as np
import pytest

import ringred as rr
from ringred import world


@pytest.fixture(autouse=True)
def unforced():  # type: ignore[no-untyped-def]
    """Nothing stays forced."""
    yield
    world.communicator().force("auto")


def reduced(algorithm: str, count: int, dtype: str, op: rr.Op, private: bool = True) -> np.ndarray:
    """The result of an algorithm for numbers that are the same in every call."""
    values = np.random.default_rng([rr.rank(), count]).standard_normal(count).astype(dtype)
    array = values if private else rr.empty(count, dtype)
    array[:] = values
    world.communicator().force(algorithm)
    return np.array(rr.allreduce_(array, op))


@pytest.mark.parametrize("count", [1, 5, 4096, 30000])
def test_every_algorithm_gives_the_sum(count: int) -> None:
    values = [
        np.random.default_rng([rank, count]).standard_normal(count).astype("float32") for rank in range(rr.size())
    ]
    exact = np.sum([one.astype("float64") for one in values], axis=0)
    most = np.sum([abs(one.astype("float64")) for one in values], axis=0)
    for name in world.communicator().selection.algorithms if rr.size() > 1 else []:
        # Each of the size - 1 additions rounds once, whatever their order.
        bound = rr.size() * np.finfo("float32").eps * most
        assert (abs(reduced(name, count, "float32", rr.Sum) - exact) <= bound).all(), name


@pytest.mark.parametrize(("dtype", "op"), [("float32", rr.Sum), ("float16", rr.Average), ("float16", rr.Sum)])
def test_what_measured_costs_choose_among_gives_the_same_bits(dtype: str, op: rr.Op) -> None:
    for count in (3, 700, 5000):
        results = {
            reduced(name, count, dtype, op, private).tobytes()
            for name in ("one_shot", "hierarchical", "auto")
            for private in (True, False)
        }
        assert len(results) == 1


def test_an_algorithm_that_is_not_there_is_refused() -> None:
    with pytest.raises(rr.UsageError, match="must be auto or one that ringred has: it is 'rings'"):
        world.communicator().force("rings")
