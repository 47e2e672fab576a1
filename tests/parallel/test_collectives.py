"""The collectives on any number of ranks, against references that every rank computes from all ranks' inputs.

Every rank can make every rank's data, by seed. References follow the documented rule: values are combined in rank
order, half types in float32 and rounded once. They are met bit for bit, by one-shot and two-shot, in the arena and
outside.
"""

from __future__ import annotations

import array
import hashlib
import queue
import threading
import time
from collections.abc import Callable
from functools import lru_cache, reduce
from typing import Any

import numpy as np
import pytest
from rank_data import nodes_of_ranks

import ringred as rr
from ringred import _core

Array = Any

INTEGERS = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
REALS = ["float16", "float32", "float64"]
COMPLEXES = ["complex64", "complex128"]
OPS = [op for op in rr.Op if op != rr.Adasum]
DEFINED = [
    (dtype, op)
    for dtype in [*INTEGERS, *REALS, *COMPLEXES, "bool"]
    for op in OPS
    if not (dtype == "bool" and op == rr.Average) and not (dtype in COMPLEXES and op in (rr.Min, rr.Max))
]
DEFAULTS = {name: default for name, default, _, _ in _core.setting_table()}
ONE_SHOT_BYTES = int(DEFAULTS["RINGRED_ONE_SHOT_BYTES"].removesuffix("K")) << 10  # larger arrays go through two-shot
SLOT_BYTES = int(DEFAULTS["RINGRED_SLOT_BYTES"].removesuffix("K")) << 10  # of which there are three
MISMATCH_SECONDS = 1.0


def needs_ranks(count: int) -> None:
    if rr.size() < count:
        pytest.skip(f"needs {count} ranks")


def data(dtype: str, count: int, rank: int, seed: int = 0) -> Array:
    """What `rank` contributes: all bit patterns for integers but the widest, magnitudes apart for floats."""
    generator = np.random.default_rng([seed, rank, count])
    kind = np.dtype(dtype)
    if kind.kind == "b":
        return generator.random(count) < 0.5
    if kind.kind in "iu":
        bits = generator.integers(0, 1 << 63, count, dtype=np.int64).view(np.uint64)
        if kind.itemsize == 8:  # so that the sum of eight fits: an average of wrapped sums would mean nothing
            return (bits.view(np.int64) >> 3).astype(kind) - (1 << 59 if kind.kind == "i" else 0)
        return bits.astype(f"u{kind.itemsize}").view(kind)
    values = generator.standard_normal(count) * np.exp2(generator.integers(-6, 3, count))
    if kind.kind == "c":
        return (values + 1j * generator.standard_normal(count)).astype(kind)
    return values.astype(kind)


def accumulator_of(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """What values of this type are combined in."""
    return np.dtype(np.float32) if dtype.name in ("float16", "bfloat16") else dtype


def minimum(left: Array, right: Array) -> Array:
    return np.where((left < right) | (left != left), left, right)


def maximum(left: Array, right: Array) -> Array:
    return np.where((left > right) | (left != left), left, right)


def product(left: Array, right: Array) -> Array:
    """For complex numbers by the schoolbook rule, every operation rounded."""
    if left.dtype.kind != "c":
        return left * right
    result = np.empty_like(left)
    result.real = left.real * right.real - left.imag * right.imag
    result.imag = left.real * right.imag + left.imag * right.real
    return result


def combine(inputs: list[Array], op: rr.Op) -> Array:
    """The documented result of an allreduce of these inputs."""
    dtype = inputs[0].dtype
    if dtype.kind == "b":
        return reduce(np.logical_or if op in (rr.Sum, rr.Max) else np.logical_and, inputs)
    if op == rr.Average and dtype.kind in "iu":
        total = np.sum([one.astype(f"{dtype.kind}8") for one in inputs], axis=0, dtype=f"{dtype.kind}8")
        return (np.sign(total) * (abs(total) // len(inputs))).astype(dtype)
    rules: dict[rr.Op, Callable[[Array, Array], Array]] = {
        rr.Sum: np.add,
        rr.Average: np.add,
        rr.Min: minimum,
        rr.Max: maximum,
        rr.Product: product,
    }
    with np.errstate(over="ignore"):
        nodes = [one for one in inputs_by_node(inputs) if one]
        divides_first = op == rr.Average and len(nodes) > 1 and accumulator_of(dtype) != dtype
        sums = [reduce(rules[op], [one.astype(accumulator_of(dtype)) for one in node]) for node in nodes]
        if divides_first:
            sums = [divided(one, len(inputs)) for one in sums]
        total = reduce(rules[op], [one.astype(dtype).astype(one.dtype) if len(nodes) > 1 else one for one in sums])
        return (divided(total, len(inputs)) if op == rr.Average and not divides_first else total).astype(dtype)


def divided(total: Array, count: int) -> Array:
    """Numpy divides a complex number by a real one otherwise than part by part."""
    return (total.view(total.real.dtype) / total.real.dtype.type(count)).view(total.dtype)


def inputs_by_node(inputs: list[Array]) -> list[list[Array]]:
    """One of each rank: across nodes the sum is made of the nodes' sums, which are rounded where they are halves."""
    nodes = nodes_of_ranks()
    return [[one for one, at in zip(inputs, nodes, strict=True) if at == node] for node in sorted(set(nodes))]


def assert_same_bits(result: Array, expected: Array) -> None:
    assert result.dtype == expected.dtype and result.shape == expected.shape
    assert result.tobytes() == np.ascontiguousarray(expected).tobytes()


def assert_same_on_all_ranks(values: Array) -> None:
    digest = np.frombuffer(hashlib.blake2b(values.tobytes(), digest_size=8).digest(), np.uint64)
    assert_same_bits(rr.allreduce(digest, rr.Min), rr.allreduce(digest, rr.Max))


@lru_cache(maxsize=4)
def inputs_of(dtype: str, count: int, seed: int = 0) -> list[Array]:
    """What all ranks contribute. Kept for the next operator, as making it takes longer than its sum; so read-only."""
    inputs = [data(dtype, count, rank, seed) for rank in range(rr.size())]
    for one in inputs:
        one.flags.writeable = False
    return inputs


def in_arena(values: Array) -> Array:
    placed = rr.empty(values.shape, values.dtype)
    placed[...] = values
    return placed


PLACES: dict[str, Callable[[Array], Array]] = {
    "private": np.copy,
    "arena": in_arena,
    "mixed": lambda values: in_arena(values) if rr.rank() % 2 == 0 else values.copy(),
    "unaligned": lambda values: in_arena(np.append(values[:1], values))[1:],
}


# Values


@pytest.mark.parametrize(("dtype", "op"), DEFINED, ids=lambda value: value if isinstance(value, str) else value.name)
def test_every_dtype_and_operator(dtype: str, op: rr.Op) -> None:
    item = np.dtype(dtype).itemsize
    for count in (13, ONE_SHOT_BYTES // item, ONE_SHOT_BYTES // item + 1, 3 * SLOT_BYTES // item + 5):
        inputs = inputs_of(dtype, count)
        expected = combine(inputs, op)
        mine = inputs[rr.rank()]
        result = rr.allreduce(mine, op)
        assert_same_bits(result, expected)
        assert_same_bits(mine, data(dtype, count, rr.rank()))
        for place in PLACES.values():
            values = place(mine)
            assert rr.allreduce_(values, op) is values
            assert_same_bits(values, expected)
    assert_same_on_all_ranks(expected)


def sizes() -> list[int]:
    n = rr.size()
    slot = SLOT_BYTES // 4
    return [
        0,
        1,
        n - 1,
        n,
        n + 1,
        97,
        4093,
        4096,
        4097,
        slot - 1,
        slot,
        slot + 1,
        2 * slot,
        3 * slot + 1,
        7 * slot + 11,
    ]


@pytest.mark.parametrize("place", list(PLACES))
def test_every_size(place: str) -> None:
    for count in sizes():
        inputs = inputs_of("float32", count)
        values = PLACES[place](inputs[rr.rank()])
        rr.allreduce_(values, rr.Sum)
        assert_same_bits(values, combine(inputs, rr.Sum))
        assert_same_on_all_ranks(values)


@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (2, 3), (1, 5, 1), (4, 3, 2, 5), (3, 70_001)], ids=str)
def test_every_shape(shape: tuple[int, ...]) -> None:
    inputs = [one.reshape(shape) for one in inputs_of("float64", int(np.prod(shape)))]
    mine = inputs[rr.rank()]
    expected = combine(inputs, rr.Sum)
    assert_same_bits(rr.allreduce(mine, rr.Sum), np.asarray(expected))
    assert_same_bits(rr.broadcast(mine, rr.size() - 1), inputs[-1])


def test_strided_input_out_of_place() -> None:
    inputs = [one.reshape(60, 100) for one in inputs_of("float32", 6000)]
    mine = inputs[rr.rank()]
    for view in (lambda one: one[::3, 1::2], lambda one: one.T, lambda one: one[::-1], lambda one: one[:, 0]):
        expected = combine([view(one) for one in inputs], rr.Sum)
        assert_same_bits(rr.allreduce(view(mine), rr.Sum), expected)
        assert_same_bits(rr.broadcast(view(mine)), np.ascontiguousarray(view(inputs[0])))


def test_result_goes_where_it_is_asked_to() -> None:
    for count in (10, 50_000):
        inputs = inputs_of("float32", count)
        mine, expected = inputs[rr.rank()], combine(inputs, rr.Sum)
        for place in PLACES.values():
            out = place(np.full_like(mine, 99))
            assert rr.allreduce(mine, rr.Sum, out=out) is out
            assert_same_bits(out, expected)
        assert_same_bits(mine, data("float32", count, rr.rank()))


def test_sums_of_small_integers_wrap_and_averages_do_not() -> None:
    for dtype, value in (("int8", -128), ("uint8", 255), ("int16", -32768), ("uint16", 65535), ("int32", -(1 << 31))):
        values = np.full(1000, value, dtype)
        assert_same_bits(rr.allreduce(values, rr.Average), values)
        wrapped = np.full(1000, value, "int64") * rr.size()
        assert_same_bits(rr.allreduce(values, rr.Sum), wrapped.astype(dtype))


def test_integer_average_truncates_toward_zero() -> None:
    for value in (-7, -1, 1, 7):
        mine = np.array([value if rr.rank() == 0 else 0] * 9, "int8")
        assert rr.allreduce(mine).tolist() == [int(value / rr.size())] * 9


def test_average_is_the_default() -> None:
    assert rr.allreduce(np.array([rr.rank() + 1.0])).tolist() == [(rr.size() + 1) / 2]


@pytest.mark.parametrize("dtype", REALS)
def test_nan_wins_in_min_and_max(dtype: str) -> None:
    for place in range(rr.size()):
        values = np.array([rr.rank(), -rr.rank()], dtype)
        if rr.rank() == place:
            values[0] = np.nan
        for op, other in ((rr.Min, 1 - rr.size()), (rr.Max, 0)):
            result = rr.allreduce(values, op)
            assert np.isnan(result[0]) and result[1] == other


def test_special_values_of_half_precision() -> None:
    """Subnormals, the largest value and infinities; a sum that overflows float16 but not float32 on the way."""
    mine = np.array([6e-8, 65504, np.inf, 1e-5, -65504 if rr.rank() % 2 else 65504], "float16")
    inputs = [
        np.array([6e-8, 65504, np.inf, 1e-5, -65504 if rank % 2 else 65504], "float16") for rank in range(rr.size())
    ]
    for op in (rr.Sum, rr.Average, rr.Min, rr.Max):
        assert_same_bits(rr.allreduce(mine, op), combine(inputs, op))


def test_bfloat16_of_ml_dtypes() -> None:
    bfloat16 = np.dtype(pytest.importorskip("ml_dtypes", reason="needs ml_dtypes").bfloat16)
    for count in (1, 13, 9000, 500_000):
        inputs = [data("float32", count, rank).astype(bfloat16) for rank in range(rr.size())]
        for op in OPS:
            expected = combine(inputs, op)
            result = rr.allreduce(inputs[rr.rank()], op)
            assert_same_bits(result, expected)
            values = inputs[rr.rank()].copy()
            rr.allreduce_(values, op)
            assert_same_bits(values, expected)
    scalar = np.ones((), bfloat16)
    assert float(rr.allreduce(scalar, rr.Sum)) == rr.size()


def test_the_same_bits_from_run_to_run() -> None:
    for count in (1000, 300_000):
        mine = data("float32", count, rr.rank())
        first = rr.allreduce(mine, rr.Sum)
        for _ in range(5):
            assert_same_bits(rr.allreduce(mine, rr.Sum), first)


def test_many_calls_of_changing_size_and_kind() -> None:
    """Banks, slots and turns go round many times; ranks come at different times."""
    generator = np.random.default_rng(5)
    for step in range(300):
        count = int(generator.integers(0, 1 << int(generator.integers(1, 18))))
        values = np.full(count, rr.rank() + step, "int32")
        if step % 7 == rr.rank():
            time.sleep(0.0005)
        if step % 5 == 0:
            rr.broadcast_(values, step % rr.size())
            assert (values == step % rr.size() + step).all()
        else:
            rr.allreduce_(values, rr.Max)
            assert (values == rr.size() - 1 + step).all()
        if step % 11 == 0:
            rr.barrier()


# Other kinds of arrays


TORCH_DTYPES = ["int8", "uint8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64", "complex64"]


@pytest.mark.parametrize("dtype", [*TORCH_DTYPES, "uint16", "uint32", "uint64", "complex128", "bool"])
def test_tensors(dtype: str) -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    kind = getattr(torch, dtype)
    for shape in ((), (7,), (3, 0), (5, 7), (300, 301)):
        tensors = [torch.full(shape, rank + 1).to(kind) for rank in range(rr.size())]
        mine = tensors[rr.rank()]
        total = torch.full(shape, rr.size() * (rr.size() + 1) // 2).to(kind)
        result = rr.allreduce(mine, rr.Sum)
        assert result.dtype == kind and torch.equal(result, total)
        assert torch.equal(mine, tensors[rr.rank()])
        assert rr.allreduce_(mine, rr.Sum) is mine
        assert torch.equal(mine, total)
        root = rr.broadcast(torch.full(shape, rr.rank() + 1).to(kind), rr.size() - 1)
        assert torch.equal(root, torch.full(shape, rr.size()).to(kind))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_tensors_are_summed_in_float_and_rounded_once(dtype: str) -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    for count in (13, 9000, 500_000):
        floats = [torch.from_numpy(data("float32", count, rank)) for rank in range(rr.size())]
        inputs = [one.to(getattr(torch, dtype)) for one in floats]
        for op in (rr.Sum, rr.Average):
            nodes = [reduce(torch.add, [one.float() for one in node]) for node in inputs_by_node(inputs)]
            if op == rr.Average:
                nodes = [one / rr.size() for one in nodes]
            if len(nodes) > 1:
                nodes = [one.to(inputs[0].dtype).float() for one in nodes]
            expected = reduce(torch.add, nodes).to(inputs[0].dtype)
            result = rr.allreduce(inputs[rr.rank()], op)
            assert torch.equal(result.view(torch.int16), expected.view(torch.int16))


def test_a_tensor_meets_an_array() -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    values = np.ones(1000, "float32")
    result = rr.allreduce(values if rr.rank() % 2 else torch.from_numpy(values), rr.Sum)
    assert float(result.sum()) == 1000 * rr.size()


def test_buffers_of_the_standard_library() -> None:
    numbers = array.array("d", [rr.rank(), 1])
    assert rr.allreduce_(numbers, rr.Sum) is numbers
    assert numbers.tolist() == [rr.size() * (rr.size() - 1) / 2, rr.size()]
    octets = bytearray(b"abc" if rr.rank() == 0 else b"xyz")
    rr.broadcast_(memoryview(octets))
    assert octets == b"abc"


class OnlyDlpack:
    """An array of some library that ringred has never heard of."""

    def __init__(self, inner: Array) -> None:
        self.inner = inner

    def __dlpack__(self, **options: Any) -> Any:
        return self.inner.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.inner.__dlpack_device__()


def test_anything_with_dlpack() -> None:
    for count in (5, 100_000):
        inputs = inputs_of("float32", count)
        thing = OnlyDlpack(inputs[rr.rank()].copy())
        expected = combine(inputs, rr.Sum)
        assert_same_bits(rr.allreduce(thing, rr.Sum), expected)
        assert rr.allreduce_(thing, rr.Sum) is thing
        assert_same_bits(thing.inner, expected)


# Broadcast, barrier, plans


@pytest.mark.parametrize("place", list(PLACES))
def test_broadcast_from_each_root(place: str) -> None:
    for root in range(rr.size()):
        for count in (0, 1, 97, 5000, 3 * SLOT_BYTES // 4 + 5):
            inputs = inputs_of("float32", count, seed=root)
            values = PLACES[place](inputs[rr.rank()])
            assert rr.broadcast_(values, root) is values
            assert_same_bits(values, inputs[root])
            assert_same_bits(rr.broadcast(inputs[rr.rank()], root), inputs[root])
            assert_same_bits(inputs[rr.rank()], data("float32", count, rr.rank(), seed=root))


def test_broadcast_keeps_every_bit() -> None:
    """Signalling NaNs, negative zeros and booleans that are neither 0 nor 1."""
    bits = np.array([0x7F800001, 0x80000000, 0xFFFFFFFF], "uint32") + np.uint32(0)
    values = bits.view("float32") if rr.rank() == 0 else np.zeros(3, "float32")
    assert_same_bits(rr.broadcast(values).view("uint32"), bits)


def test_barrier_holds_everybody() -> None:
    for late in range(rr.size()):
        if rr.rank() == late:
            time.sleep(0.05)
        before = time.monotonic_ns()
        rr.barrier()
        after = np.array([time.monotonic_ns()])
        last_arrival = rr.allreduce(np.array([before]), rr.Max)
        assert int(rr.allreduce(after, rr.Min)[0]) >= int(last_arrival[0])


@pytest.mark.parametrize("place", list(PLACES))
def test_plan_reduces_what_the_array_holds(place: str) -> None:
    for count in (0, 1, 97, 5000, 3 * SLOT_BYTES // 4 + 5):
        values = PLACES[place](np.zeros(count + 1, "float32"))
        plan = rr.plan_allreduce(values, tag="plan")
        for turn in range(3):
            inputs = inputs_of("float32", count + 1, seed=turn)
            values[...] = inputs[rr.rank()]
            assert plan() is values
            assert_same_bits(values, combine(inputs, rr.Sum))


def test_plan_meets_an_ordinary_call() -> None:
    values = np.full(10, float(rr.rank()))
    plan = rr.plan_allreduce(values, rr.Max, tag="layer")
    if rr.rank() == 0:
        plan()
    else:
        rr.allreduce_(values, rr.Max, tag="layer")
    assert (values == rr.size() - 1).all()


def test_plans_side_by_side() -> None:
    arrays = [in_arena(np.full(1000 * (index + 1), float(rr.rank() + index))) for index in range(8)]
    plans = [rr.plan_allreduce(values, tag=str(index)) for index, values in enumerate(arrays)]
    for plan in reversed(plans):
        plan()
    for index, values in enumerate(arrays):
        assert (values == rr.size() * (rr.size() - 1) / 2 + index * rr.size()).all()


# Ranks that disagree


def expect_mismatch(call: Callable[[], Any], *words: str) -> None:
    """All ranks raise, within a second, with all the words; and the next calls of each kind work."""
    start = time.monotonic()
    with pytest.raises(rr.MismatchError) as caught:
        call()
    assert time.monotonic() - start < MISMATCH_SECONDS
    text = str(caught.value)
    for word in words:
        assert word in text
    assert "rank 0" in text or "ranks 0" in text
    assert rr.allreduce(np.ones(3), rr.Sum).tolist() == [rr.size()] * 3
    large = rr.empty(50_000)
    assert (rr.allreduce_(large, rr.Sum) == 0).all()
    rr.barrier()


def odd_one() -> bool:
    return rr.rank() == rr.size() - 1


MISMATCHES: dict[str, tuple[Callable[[int], Any], tuple[str, ...]]] = {
    "shape": (
        lambda n: rr.allreduce(np.ones((2, 3) if odd_one() else (3, 2)), rr.Sum),
        ("shape=[2, 3]", "shape=[3, 2]"),
    ),
    "count": (lambda n: rr.allreduce_(np.ones(n + odd_one()), rr.Sum), ("shape=[{n}]", "shape=[{more}]")),
    "dtype": (
        lambda n: rr.allreduce(np.ones(n, "int32" if odd_one() else "float32"), rr.Sum),
        ("dtype=int32", "dtype=float32"),
    ),
    "op": (lambda n: rr.allreduce(np.ones(n), rr.Min if odd_one() else rr.Max), ("op=Min", "op=Max")),
    "tag": (lambda n: rr.allreduce(np.ones(n), tag="b" if odd_one() else "a"), ("tag='a'", "tag='b'")),
    "root": (lambda n: rr.broadcast(np.ones(n), int(odd_one())), ("root_rank=0", "root_rank=1")),
    "kind": (
        lambda n: rr.broadcast(np.ones(n)) if odd_one() else rr.allreduce(np.ones(n)),
        ("broadcast(", "allreduce("),
    ),
    "barrier": (lambda n: rr.barrier() if odd_one() else rr.allreduce(np.ones(n)), ("barrier()", "allreduce(")),
    "barrier and broadcast": (
        lambda n: rr.barrier() if odd_one() else rr.broadcast(np.ones(n)),
        ("barrier()", "broadcast("),
    ),
    "plan": (lambda n: rr.plan_allreduce(np.ones(n), rr.Min if odd_one() else rr.Max)(), ("op=Min", "op=Max")),
    "small and large": (lambda n: rr.allreduce(np.ones(10 if odd_one() else 10 * n), rr.Sum), ("shape=[10]",)),
}


@pytest.mark.parametrize("count", [5, 3000, 200_000])
@pytest.mark.parametrize("what", list(MISMATCHES))
def test_mismatch_is_raised_everywhere_and_costs_nothing(what: str, count: int) -> None:
    needs_ranks(2)
    call, words = MISMATCHES[what]
    expect_mismatch(lambda: call(count), *(word.format(n=count, more=count + 1) for word in words))


def test_mismatch_names_the_ranks() -> None:
    needs_ranks(3)
    expect_mismatch(lambda: rr.allreduce(np.ones(3 if rr.rank() == 1 else 4)), "rank 1 called", "ranks 0, 2")


def test_mismatch_changes_nothing() -> None:
    needs_ranks(2)
    for place in PLACES.values():
        for count in (5, 100_000):
            values = place(np.full(count + odd_one(), 7.0))
            with pytest.raises(rr.MismatchError):
                rr.allreduce_(values, rr.Sum)
            with pytest.raises(rr.MismatchError):
                rr.broadcast_(values)
            assert (values == 7).all()


@pytest.mark.parametrize("letter", ["a", "é", "\U0001f600"], ids=["one byte", "two bytes", "four bytes"])
def test_mismatch_of_tags_longer_than_there_is_room_for(letter: str) -> None:
    """The text is cut off; what is left must be readable, whole letters, and must not say that all ranks agree."""
    needs_ranks(2)
    for shift in range(4):
        tag = "x" * shift + letter * 3000 + str(int(odd_one()))
        expect_mismatch(lambda tag=tag: rr.allreduce(np.ones(3), tag=tag), "rank", "allreduce(", letter * 10)


def test_mismatch_again_and_again() -> None:
    needs_ranks(2)
    for turn in range(100):
        with pytest.raises(rr.MismatchError):
            rr.allreduce(np.ones(5 + odd_one()), rr.Sum)
        assert rr.allreduce(np.ones(1) * turn, rr.Max)[0] == turn


def test_error_of_one_rank_alone_leaves_it_in_step() -> None:
    """A usage error starts nothing: the rank that got it still meets the others in the next call."""
    if odd_one():
        with pytest.raises(rr.UsageError):
            rr.allreduce_(np.ones(6)[::2])
    assert rr.allreduce(np.ones(2), rr.Sum).tolist() == [rr.size()] * 2


# Threads


def test_second_thread_in_a_collective_gets_a_usage_error(mpi: Any) -> None:
    """Two threads of rank 0 enter while the others wait for a message that only follows on the error of one of them."""
    needs_ranks(2)
    world = mpi.COMM_WORLD  # holds the other ranks
    if rr.rank() > 0:
        request = world.Ibarrier()
        while not request.Test():
            time.sleep(0.001)
        rr.barrier()
        rr.barrier()
        return
    outcomes: queue.Queue[BaseException | None] = queue.Queue()

    def enter() -> None:
        try:
            rr.barrier()
        except rr.UsageError as error:
            outcomes.put(error)
        else:
            outcomes.put(None)

    threads = [threading.Thread(target=enter) for _ in range(2)]
    for thread in threads:
        thread.start()
    refused = outcomes.get(timeout=30)
    world.Ibarrier().Wait()
    assert outcomes.get(timeout=30) is None
    for thread in threads:
        thread.join(30)
    assert isinstance(refused, rr.UsageError)
    assert "this one calls barrier while another is in barrier" in str(refused)
    rr.barrier()


def test_collectives_from_another_thread() -> None:
    results: queue.Queue[Array] = queue.Queue()
    for count in (3, 100_000):
        thread = threading.Thread(target=lambda count=count: results.put(rr.allreduce(np.ones(count), rr.Sum)))
        thread.start()
        thread.join(60)
        assert (results.get(timeout=1) == rr.size()).all()
