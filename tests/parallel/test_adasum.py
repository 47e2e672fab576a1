"""Adasum against the rule of its paper in float64, for any number of ranks."""

from __future__ import annotations

import hashlib
import random
from typing import Any

import numpy as np
import pytest
from rank_data import assert_all_work, needs_ranks

import ringred as rr

Array = Any

PRECISION = {"float16": 2.0**-11, "float32": 2.0**-24, "float64": 2.0**-53}


def vector(dtype: str, count: int, rank: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, rank, count]).standard_normal(count).astype(dtype)


def pair(left: Array, right: Array) -> Array:
    """The rule for two vectors."""
    product = left @ right
    factors = [1 - product / (2 * (one @ one)) if one @ one else 1.0 for one in (left, right)]
    return factors[0] * left + factors[1] * right


def expected(inputs: list[Array]) -> Array:
    """Of all ranks' vectors, in float64."""
    level = [one.astype(np.float64).reshape(-1) for one in inputs]
    while len(level) > 1:
        paired = len(level) // 2 * 2
        level = [pair(level[index], level[index + 1]) for index in range(0, paired, 2)] + level[paired:]
    return level[0].reshape(inputs[0].shape)


def assert_close(result: Array, inputs: list[Array]) -> None:
    """Each level rounds two products and a sum in the wider type; the result is rounded once to its own.

    So the error is below (1 + 4 levels) units in the last place of the largest value on the way: the factors are at
    most 1.5 each, and a level makes values at most three times as large as the larger of its two.
    """
    dtype = inputs[0].dtype
    levels = int(np.ceil(np.log2(len(inputs))))
    largest = max(float(np.abs(one).max(initial=0)) for one in inputs) * 3.0**levels
    bound = (PRECISION[dtype.name] + 4 * levels * min(PRECISION[dtype.name], PRECISION["float32"])) * largest
    assert result.dtype == dtype and result.shape == inputs[0].shape
    difference = np.abs(result.astype(np.float64) - expected(inputs))
    assert float(difference.max(initial=0)) <= bound


def assert_same_bits_everywhere(array: Array) -> None:
    digests = rr.allgather_object(hashlib.blake2b(array.tobytes()).hexdigest())
    assert len(set(digests)) == 1


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 97, 5000])
def test_against_the_rule(dtype: str, count: int) -> None:
    inputs = [vector(dtype, count, rank) for rank in range(rr.size())]
    mine = inputs[rr.rank()].copy()
    result = rr.allreduce_async(mine, rr.Adasum, name="vector").wait()
    assert_close(result, inputs)
    assert_same_bits_everywhere(result)
    assert mine.tobytes() == inputs[rr.rank()].tobytes()
    assert rr.allreduce_async_(mine, rr.Adasum).wait() is mine
    assert mine.tobytes() == result.tobytes()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_tensors(dtype: str) -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    kind = getattr(torch, dtype)
    inputs = [torch.from_numpy(vector("float32", 60, rank)).to(kind).reshape(6, 10) for rank in range(rr.size())]
    result = rr.allreduce_async(inputs[rr.rank()], rr.Adasum).wait()
    assert result.dtype == kind and result.shape == (6, 10)
    reference = torch.from_numpy(expected([one.double().numpy() for one in inputs]))
    assert torch.allclose(result.double(), reference, rtol=0, atol=30 * torch.finfo(kind).eps)
    target = inputs[rr.rank()].clone().requires_grad_()
    assert rr.allreduce_async_(target, rr.Adasum).wait() is target
    assert torch.equal(target.detach(), result)


def test_equal_vectors_are_averaged_and_orthogonal_ones_added() -> None:
    same = vector("float64", 50, 0)
    np.testing.assert_allclose(rr.allreduce_async(same, rr.Adasum).wait(), same, rtol=1e-15)
    own = np.zeros(rr.size())
    own[rr.rank()] = rr.rank() + 1.0
    assert rr.allreduce_async(own, rr.Adasum).wait().tolist() == [rank + 1.0 for rank in range(rr.size())]


def test_vectors_of_zeros() -> None:
    assert rr.allreduce_async(np.zeros(7, "float32"), rr.Adasum).wait().tolist() == [0.0] * 7
    for place in range(rr.size()):
        mine = np.arange(5.0) if rr.rank() == place else np.zeros(5)
        assert rr.allreduce_async(mine, rr.Adasum).wait().tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_opposite_vectors() -> None:
    """a and -a: both factors are 1.5, and they cancel."""
    needs_ranks(2)
    sign = 1 if rr.rank() % 2 == 0 else -1
    result = rr.allreduce_async(np.full(4, 3.0) * sign, rr.Adasum).wait()
    assert result.tolist() == ([0.0] * 4 if rr.size() % 2 == 0 else [3.0] * 4)


def test_nan_and_infinity_stay_visible() -> None:
    mine = np.ones(4, "float32")
    if rr.rank() == 0:
        mine[1] = np.nan
    assert np.isnan(rr.allreduce_async(mine, rr.Adasum).wait()[1])
    large = rr.allreduce_async(np.full(3, 60_000, "float16"), rr.Adasum).wait()
    assert large.tolist() == [60_000.0] * 3  # its square is beyond float16


def test_each_array_of_a_group_is_a_vector_of_its_own() -> None:
    shapes: list[tuple[str, tuple[int, ...]]] = [
        ("float32", (5, 7)),
        ("float64", (3,)),
        ("float16", ()),
        ("float32", (0,)),
    ]
    inputs = [
        [vector(dtype, int(np.prod(shape)), rank).reshape(shape) for rank in range(rr.size())]
        for dtype, shape in shapes
    ]
    mine = [one[rr.rank()].copy() for one in inputs]
    results = rr.grouped_allreduce(mine, rr.Adasum)
    for result, one in zip(results, inputs, strict=True):
        assert_close(result, one)
    targets = rr.grouped_allreduce_(mine, rr.Adasum, name="in place")
    assert all(target is given for target, given in zip(targets, mine, strict=True))
    for target, result in zip(targets, results, strict=True):
        assert target.tobytes() == result.tobytes()


def test_strided_arrays() -> None:
    inputs = [vector("float32", 40, rank).reshape(5, 8) for rank in range(rr.size())]
    straight = rr.allreduce_async(inputs[rr.rank()][:, ::2].copy(), rr.Adasum).wait()
    assert rr.allreduce_async(inputs[rr.rank()][:, ::2], rr.Adasum).wait().tobytes() == straight.tobytes()


def test_factors() -> None:
    inputs = [vector("float32", 10, rank) for rank in range(rr.size())]
    plain = rr.allreduce_async(inputs[rr.rank()], rr.Adasum).wait()
    scaled = rr.allreduce_async(inputs[rr.rank()], rr.Adasum, prescale_factor=0.5, postscale_factor=4.0).wait()
    assert scaled.tolist() == (plain * 2).tolist()


def test_the_same_bits_from_run_to_run() -> None:
    mine = vector("float32", 3000, rr.rank())
    first = rr.allreduce_async(mine, rr.Adasum).wait()
    for _ in range(3):
        assert rr.allreduce_async(mine, rr.Adasum).wait().tobytes() == first.tobytes()


def test_ranks_submit_and_wait_in_their_own_order() -> None:
    generator = random.Random(rr.rank())
    numbers = list(range(12))
    generator.shuffle(numbers)
    started = {}
    for number in numbers:
        mine = vector("float64", 50 + number, rr.rank(), number)
        started[number] = rr.allreduce_async(mine, rr.Adasum, name=f"chain {number}")
    generator.shuffle(numbers)
    for number in numbers:
        inputs = [vector("float64", 50 + number, rank, number) for rank in range(rr.size())]
        assert_close(started[number].wait(), inputs)


def test_it_goes_on_while_nobody_waits() -> None:
    """Rank 0 waits for the chain before it comes to the barrier, the others after it."""
    handle = rr.allreduce_async(np.ones(10), rr.Adasum, name="unattended")
    if rr.rank() == 0:
        handle.wait()
    rr.barrier_async(name="after").wait()
    assert handle.wait().tolist() == [1.0] * 10


def test_mismatch_is_raised_everywhere() -> None:
    needs_ranks(2)
    odd = rr.rank() == rr.size() - 1
    for call in (
        lambda: rr.allreduce_async(np.ones(4 if odd else 3), rr.Adasum, name="m"),
        lambda: rr.allreduce_async(np.ones((2, 3) if odd else (3, 2)), rr.Adasum, name="m"),
        lambda: rr.allreduce_async(np.ones(3), rr.Adasum, postscale_factor=2.0 if odd else 1.0, name="m"),
        lambda: rr.allreduce_async(np.ones(3, "float32" if odd else "float64"), rr.Adasum, name="m"),
        lambda: rr.allreduce_async(np.ones(3), rr.Sum if odd else rr.Adasum, name="m"),
        lambda: rr.grouped_allreduce_async([np.ones(3)] * (2 if odd else 1), rr.Adasum, name="m"),
    ):
        with pytest.raises(rr.MismatchError, match="m"):
            call().wait()
        assert_all_work()


def test_what_it_does_not_take() -> None:
    fixed = np.ones(3)
    fixed.flags.writeable = False
    for bad in (np.ones(3, "int32"), np.ones(3, bool), np.ones(3, "complex64")):
        with pytest.raises(rr.UsageError, match="Adasum"):
            rr.allreduce_async(bad, rr.Adasum)
    with pytest.raises(rr.UsageError, match="writable"):
        rr.allreduce_async_(fixed, rr.Adasum)
    with pytest.raises(rr.UsageError, match="op"):
        rr.allreduce(np.ones(3), rr.Adasum)
    with pytest.raises(rr.UsageError, match="op"):
        rr.reducescatter(np.ones(3), rr.Adasum)
    assert_all_work()
