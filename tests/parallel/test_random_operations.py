"""Random sequences of operations, over overlapping process sets, submitted in another order on each rank and with
delays, have the results that numpy computes.

All ranks draw the same examples (hypothesis without a database and without chance); what differs between ranks, order
and delays, comes from a generator seeded by the example and the rank.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import ringred as rr

DTYPES = ("float32", "float64", "int32", "int64", "uint8", "float16")
KINDS = ("allreduce", "grouped", "allgather", "broadcast", "alltoall", "reducescatter", "barrier")
OPS = (rr.Sum, rr.Min, rr.Max)


@dataclass(frozen=True)
class Planned:
    """One operation of the example. Its arrays follow from `seed` and the rank."""

    kind: str
    members: int  # which process set
    dtype: str
    op: rr.Op
    rows: int
    columns: int
    seed: int

    def array(self, rank: int, extra_rows: int = 0) -> np.ndarray[Any, Any]:
        generator = np.random.default_rng([self.seed, rank])
        shape = (self.rows + extra_rows, self.columns)
        return generator.integers(0, 5, shape).astype(self.dtype)


PLANS = st.builds(
    Planned,
    st.sampled_from(KINDS),
    st.integers(0, 2),
    st.sampled_from(DTYPES),
    st.sampled_from(OPS),
    st.one_of(st.integers(0, 5), st.integers(0, 3000)),
    st.integers(1, 7),
    st.integers(0, 10**6),
)


@pytest.fixture(scope="module")
def sets() -> Iterator[list[rr.ProcessSet]]:
    """All ranks; the first and the last; all but the first. Of them overlapping ones, where there are ranks enough."""
    size = rr.size()
    several = [[0, size - 1], list(range(1, size))] if size > 2 else []
    added = [rr.add_process_set(ranks) for ranks in several]
    yield [rr.global_process_set, *added]
    for one in added:
        rr.remove_process_set(one)


def submit(plan: Planned, name: str, members: rr.ProcessSet) -> rr.Handle:
    mine, rank = plan.array(rr.rank()), members.rank()
    if plan.kind == "allreduce":
        return rr.allreduce_async_(mine, plan.op, name=name, process_set=members)
    if plan.kind == "grouped":
        return rr.grouped_allreduce_async([mine, mine[:1].copy()], plan.op, name=name, process_set=members)
    if plan.kind == "allgather":
        return rr.allgather_async(plan.array(rr.rank(), rank), name=name, process_set=members)
    if plan.kind == "broadcast":
        return rr.broadcast_async_(mine, members.ranks[-1], name=name, process_set=members)
    if plan.kind == "alltoall":
        return rr.alltoall_async(mine, splits_of(plan, members), name=name, process_set=members)
    if plan.kind == "reducescatter":
        return rr.reducescatter_async(mine, rr.Sum, name=name, process_set=members)
    return rr.barrier_async(name=name, process_set=members)


def splits_of(plan: Planned, members: rr.ProcessSet) -> list[int]:
    """Everything but a remainder goes to the last member, so the parts are as unequal as can be."""
    size = members.size()
    each = plan.rows // (2 * size)
    return [each] * (size - 1) + [plan.rows - each * (size - 1)]


def combined(plan: Planned, arrays: list[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    function = {rr.Sum: np.add, rr.Min: np.minimum, rr.Max: np.maximum}[plan.op]
    result = arrays[0]
    for array in arrays[1:]:
        result = function(result, array)
    return result


def check(plan: Planned, members: rr.ProcessSet, result: Any) -> None:
    arrays, rank, size = [plan.array(peer) for peer in members.ranks], members.rank(), members.size()
    if plan.kind == "allreduce":
        np.testing.assert_array_equal(result, combined(plan, arrays))
    elif plan.kind == "grouped":
        np.testing.assert_array_equal(result[0], combined(plan, arrays))
        np.testing.assert_array_equal(result[1], combined(plan, arrays)[:1])
    elif plan.kind == "allgather":
        expected = [plan.array(peer, place) for place, peer in enumerate(members.ranks)]
        np.testing.assert_array_equal(result, np.concatenate(expected))
    elif plan.kind == "broadcast":
        np.testing.assert_array_equal(result, arrays[-1])
    elif plan.kind == "alltoall":
        splits = splits_of(plan, members)
        start = sum(splits[:rank])
        expected = [array[start : start + splits[rank]] for array in arrays]
        np.testing.assert_array_equal(result[0], np.concatenate(expected))
        assert list(result[1]) == [splits[rank]] * size
    elif plan.kind == "reducescatter":
        whole = np.add.reduce(np.stack(arrays)).astype(plan.dtype)
        np.testing.assert_array_equal(result, np.array_split(whole, size)[rank])


@settings(max_examples=40, deadline=None, derandomize=True, database=None, phases=[Phase.generate])
@given(plans=st.lists(PLANS, max_size=14), seed=st.integers(0, 10**6))
def test_any_order_gives_the_results_of_numpy(sets: list[rr.ProcessSet], plans: list[Planned], seed: int) -> None:
    mine = random.Random(seed * 1000 + rr.rank())
    numbered = list(enumerate(plans))
    mine.shuffle(numbered)
    pending = []
    for number, plan in numbered:
        members = sets[plan.members % len(sets)]
        if not members.included():
            continue
        if mine.random() < 0.2:
            time.sleep(mine.random() * 0.002)
        pending.append((plan, members, submit(plan, f"operation.{number}", members)))
    mine.shuffle(pending)
    for plan, members, handle in pending:
        if mine.random() < 0.1:
            time.sleep(mine.random() * 0.002)
        check(plan, members, handle.wait())


@settings(max_examples=15, deadline=None, derandomize=True, database=None, phases=[Phase.generate])
@given(
    wrong=st.integers(0, 9), kinds=st.lists(st.sampled_from(("shape", "dtype", "op", "kind")), min_size=1, max_size=4)
)
def test_a_mismatch_among_others_fails_alone(wrong: int, kinds: list[str]) -> None:
    if rr.size() == 1:
        pytest.skip("one rank agrees with itself")
    odd = rr.rank() == wrong % rr.size()
    good = [rr.allreduce_async(np.full(10, rr.rank() + 1.0), rr.Sum, name=f"good.{i}") for i in range(3)]
    bad = []
    for i, kind in enumerate(kinds):
        array = np.ones(5 if odd and kind == "shape" else 4, "float64" if odd and kind == "dtype" else "float32")
        if odd and kind == "kind":
            bad.append(rr.allgather_async(array, name=f"bad.{i}"))
        else:
            bad.append(rr.allreduce_async(array, rr.Max if odd and kind == "op" else rr.Sum, name=f"bad.{i}"))
    for handle in bad:
        with pytest.raises(rr.MismatchError, match=rf"'{handle.name}' they differ"):
            handle.wait()
    for handle in good:
        np.testing.assert_array_equal(handle.wait(), np.full(10, sum(range(1, rr.size() + 1)), float))
