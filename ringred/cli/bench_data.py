"""What the benchmark reduces, and what has to come out: small whole numbers, of which every result is exact."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ringred.errors import UsageError
from ringred.ops import Op

DTYPES = ("int8", "uint8", "int32", "uint32", "int64", "uint64", "half", "float", "double", "bfloat16")
"""The element types by the names that nccl-tests gives them."""

OPS = {"sum": "Sum", "prod": "Product", "min": "Min", "max": "Max", "avg": "Average"}


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The numpy dtype of a name in DTYPES. bfloat16 needs the package ml_dtypes."""
    if name == "bfloat16":
        try:
            import ml_dtypes  # type: ignore[import-not-found, unused-ignore]
        except ImportError:
            raise UsageError("-d bfloat16 needs the package ml_dtypes: install it with pip.") from None
        kind: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return kind
    return np.dtype({"half": "float16", "float": "float32", "double": "float64"}.get(name, name))


def source(count: int, rank: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """A rank's array: 1 or 2, so that the product of seven ranks still fits into an int8."""
    return (1 + (np.arange(count, dtype=np.int64) + rank) % 5 // 3).astype(dtype)


def expected(count: int, ranks: int, dtype: np.dtype[Any], op: Op) -> NDArray[Any]:
    """The result on every rank: exact in float64, then rounded once, or wrapped as integers wrap."""
    values = [source(count, rank, np.dtype(np.float64)) for rank in range(ranks)]
    combine = {Op.Product: np.multiply, Op.Min: np.minimum, Op.Max: np.maximum}.get(op, np.add)
    result = values[0]
    for value in values[1:]:
        result = combine(result, value)
    if op == Op.Average:
        result = np.trunc(result / ranks) if dtype.kind in "iu" else result / ranks
    return result.astype(np.int64).astype(dtype) if dtype.kind in "iu" else result.astype(dtype)
