"""What each rank contributes, so that every rank can make every rank's data and compute what must come out.

Values are small whole numbers: sums and products of up to eight of them are exact in every dtype but for halves, where
a product may be rounded once, as the reference is.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
import pytest

import ringred as rr
from ringred import world

Array = Any

INTEGERS = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
REALS = ["float16", "float32", "float64"]
COMPLEXES = ["complex64", "complex128"]
PATIENCE_SECONDS = 10.0
DTYPES = [*INTEGERS, *REALS, *COMPLEXES, "bool"]


def needs_ranks(count: int) -> None:
    if rr.size() < count:
        pytest.skip(f"needs {count} ranks")


def values(dtype: str, shape: tuple[int, ...], rank: int, seed: int = 0) -> Array:
    """What `rank` contributes."""
    generator = np.random.default_rng([seed, rank, *shape])
    kind = np.dtype(dtype)
    numbers = generator.integers(0 if kind.kind == "u" else -3, 4, shape)
    if kind.kind == "c":
        return np.asarray(numbers + 1j * generator.integers(-3, 4, shape), kind)
    return np.asarray(numbers % 2 == 0 if kind.kind == "b" else numbers, kind)


def everybodys(dtype: str, shape: tuple[int, ...], seed: int = 0, ranks: list[int] | None = None) -> list[Array]:
    return [values(dtype, shape, rank, seed) for rank in (range(rr.size()) if ranks is None else ranks)]


def nodes_of_ranks() -> list[int]:
    """The node of every rank."""
    return list(world.topology().nodes)


def combined(inputs: list[Array], op: rr.Op) -> Array:
    """The result of a reduction of these inputs."""
    kind = inputs[0].dtype
    if kind.kind == "b":
        return np.asarray(reduce(np.logical_or if op in (rr.Sum, rr.Max) else np.logical_and, inputs))
    if op in (rr.Sum, rr.Product, rr.Min, rr.Max):
        rule: Any = {rr.Sum: np.add, rr.Product: np.multiply, rr.Min: np.minimum, rr.Max: np.maximum}[op]
        return np.asarray(reduce(rule, inputs), kind)
    if kind.kind in "iu":
        return np.asarray(np.trunc(np.sum(inputs, axis=0, dtype=np.float64) / len(inputs)), kind)
    wide = np.dtype("float32") if kind.itemsize == 2 else kind
    nodes = nodes_of_ranks()
    if kind != wide and len(inputs) == len(nodes) and len(set(nodes)) > 1:  # each node divides and rounds
        sums = [
            sum(one.astype(wide) for one, at in zip(inputs, nodes, strict=True) if at == node) for node in set(nodes)
        ]
        shares = [np.asarray(one / wide.type(len(inputs)), kind) for one in sums]
        return np.asarray(np.sum(shares, axis=0, dtype=wide)).astype(kind)
    total = np.asarray(np.sum(inputs, axis=0, dtype=wide))
    real = total.real.dtype  # numpy divides a complex number by a real one otherwise than part by part
    return (
        (np.ascontiguousarray(total).view(real) / real.type(len(inputs))).view(wide).reshape(total.shape).astype(kind)
    )


def assert_equal(result: Array, expected: Array) -> None:
    """Same library, dtype, shape and values."""
    assert type(result) is type(expected)
    assert result.dtype == expected.dtype and tuple(result.shape) == tuple(expected.shape)
    np.testing.assert_array_equal(np.asarray(result), np.asarray(expected))


def assert_all_work() -> None:
    """The library is usable: one operation of each way in."""
    assert rr.allreduce(np.ones(3), rr.Sum).tolist() == [rr.size()] * 3
    assert rr.allreduce_async(np.ones(3), rr.Sum).wait().tolist() == [rr.size()] * 3


def in_threads(*actions: Callable[[], Any]) -> list[Any]:
    """What each action returned in a thread of its own."""
    results: list[Any] = [None] * len(actions)
    errors: queue.Queue[BaseException] = queue.Queue()

    def run(index: int) -> None:
        try:
            results[index] = actions[index]()
        except BaseException as error:
            errors.put(error)

    threads = [threading.Thread(target=run, args=(index,), daemon=True) for index in range(len(actions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    if not errors.empty():
        raise errors.get()
    assert not any(thread.is_alive() for thread in threads)
    return results
