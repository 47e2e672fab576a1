"""Torch tensors in the shared arena."""

from __future__ import annotations

import pytest
import torch

import ringred as rr
import ringred.torch as hvd

ARENA_DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8]


@pytest.mark.parametrize("dtype", ARENA_DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (7, 3), (2, 0, 3)], ids=str)
def test_empty_is_zeroed_and_reduces_in_place(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = hvd.empty(*shape, dtype=dtype)
    assert tensor.shape == shape and tensor.dtype == dtype and tensor.is_contiguous()
    assert not tensor.any()
    tensor.fill_(hvd.rank() + 1)
    hvd.allreduce_(tensor, op=hvd.Sum)
    assert torch.equal(tensor, torch.full(shape, hvd.size() * (hvd.size() + 1) // 2, dtype=dtype))


def test_empty_takes_a_shape_too_and_checks_it() -> None:
    assert hvd.empty((2, 3)).shape == hvd.empty(torch.Size([2, 3])).shape == (2, 3)
    assert hvd.empty(4, dtype=torch.bool).dtype == torch.bool
    assert hvd.empty(4, dtype=torch.complex128).shape == (4,)
    with pytest.raises(rr.UsageError, match="at least 0"):
        hvd.empty(2, -1)


def test_a_view_keeps_its_memory() -> None:
    view = hvd.empty(1000)[10:20]
    view.fill_(3.0)
    others = [hvd.empty(1000) for _ in range(4)]
    for other in others:
        other.fill_(1.0)
    assert torch.equal(view, torch.full((10,), 3.0))
