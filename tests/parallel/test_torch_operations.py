"""The torch collectives with Horovod's arguments: results, gradients, handles, errors. Numbers are small integers, so
that sums are exact in every dtype and results can be compared bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from rank_data import nodes_of_ranks

import ringred.torch as hvd
from ringred.errors import MismatchError, UsageError

INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64]
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
COMPLEX = [torch.complex64, torch.complex128]
SHAPES = [(), (0,), (1,), (17,), (2, 3, 5)]


def own(shape: tuple[int, ...], dtype: torch.dtype, rank: int | None = None) -> torch.Tensor:
    """Small integers that tell rank and place; what this rank holds, unless another one is given."""
    number = hvd.rank() if rank is None else rank
    count = torch.Size(shape).numel()
    return (torch.arange(count) % 5 + number + 1).view(shape).to(dtype)


def everybody(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Shape (rank, *shape), int64: what all ranks hold."""
    kind = torch.int64 if dtype in COMPLEX else dtype
    return torch.stack([own(shape, kind, rank).to(torch.int64) for rank in range(hvd.size())])


def close_to(result: torch.Tensor, expected: torch.Tensor) -> bool:
    return result.shape == expected.shape and bool(torch.equal(result.double(), expected.double()))


# Allreduce


@pytest.mark.parametrize("dtype", INTEGERS + FLOATS + COMPLEX, ids=str)
def test_allreduce_of_every_dtype_and_shape(dtype: torch.dtype) -> None:
    for shape in SHAPES:
        total = hvd.allreduce(own(shape, dtype), op=hvd.Sum)
        assert total.dtype == dtype
        assert torch.equal(total, everybody(shape, dtype).sum(0).to(dtype))
        if dtype not in COMPLEX:
            assert torch.equal(hvd.allreduce(own(shape, dtype), op=hvd.Max), own(shape, dtype, hvd.size() - 1))
            assert torch.equal(hvd.allreduce(own(shape, dtype), op=hvd.Min), own(shape, dtype, 0))


def test_booleans() -> None:
    here = torch.tensor([hvd.rank() == 0, True, False])
    assert hvd.allreduce(here, op=hvd.Sum).tolist() == [True, True, False]
    assert hvd.allreduce(here, op=hvd.Min).tolist() == [hvd.size() == 1, True, False]
    assert hvd.allgather(here).tolist()[:3] == [True, True, False]
    assert hvd.broadcast(here, hvd.size() - 1).tolist() == [hvd.size() == 1, True, False]


def test_averages() -> None:
    expected = everybody((7,), torch.float64).double().mean(0)
    torch.testing.assert_close(hvd.allreduce(own((7,), torch.float64)), expected)
    torch.testing.assert_close(hvd.allreduce(own((7,), torch.float64), average=True), expected)
    assert torch.equal(hvd.allreduce(own((7,), torch.float64), False), everybody((7,), torch.float64).sum(0).double())
    truncated = everybody((7,), torch.int32).sum(0) // hvd.size()
    assert torch.equal(hvd.allreduce(-own((7,), torch.int32)), -truncated.int())


def test_products_and_scale_factors() -> None:
    assert torch.equal(hvd.allreduce(own((4,), torch.int64), op=hvd.Product), everybody((4,), torch.int64).prod(0))
    scaled = hvd.allreduce(own((4,), torch.float32), op=hvd.Sum, prescale_factor=0.5, postscale_factor=4.0)
    assert close_to(scaled, 2 * everybody((4,), torch.float32).sum(0))


@pytest.mark.parametrize(
    "make", [lambda t: t.t(), lambda t: t[::2], lambda t: t.expand(3, 2, 4)[1], lambda t: t[:, :1]]
)
def test_tensors_that_are_not_contiguous(make: Callable[[torch.Tensor], torch.Tensor]) -> None:
    given = make(own((2, 4), torch.float32).clone())
    expected = sum(make(own((2, 4), torch.float32, rank)) for rank in range(hvd.size()))
    assert torch.equal(hvd.allreduce(given, op=hvd.Sum), expected)
    strides = given.stride()
    for result in (hvd.allreduce_(given, op=hvd.Sum), hvd.broadcast_(given, 0)):
        assert result is given and given.stride() == strides and torch.equal(given, expected)
    assert hvd.allgather(given).shape == (hvd.size() * given.shape[0], *given.shape[1:])
    assert hvd.reducescatter(given).shape[1:] == given.shape[1:]


def test_conjugates() -> None:
    given = torch.full((3,), complex(1, hvd.rank())).conj()
    total = complex(hvd.size(), -sum(range(hvd.size())))
    assert torch.equal(hvd.allreduce(given, op=hvd.Sum), torch.full((3,), total))
    assert hvd.allreduce_(given, op=hvd.Sum) is given
    assert torch.equal(given, torch.full((3,), total))


def test_in_place_forms_return_what_they_were_given() -> None:
    parameter = torch.nn.Parameter(own((3,), torch.float32))
    other = own((2, 2), torch.int64)
    total = everybody((3,), torch.float32).sum(0)
    assert hvd.allreduce_(parameter, op=hvd.Sum) is parameter and close_to(parameter.detach(), total)
    results = hvd.grouped_allreduce_([parameter, other], op=hvd.Max)
    assert (
        results[0] is parameter and results[1] is other and torch.equal(other, own((2, 2), torch.int64, hvd.size() - 1))
    )
    handle = hvd.broadcast_async_(parameter, 0)
    assert hvd.synchronize(handle) is parameter and hvd.poll(handle)
    assert parameter.requires_grad and parameter.is_leaf


def test_grouped_allreduce_of_mixed_dtypes() -> None:
    dtypes = [torch.float32, torch.int64, torch.float32, torch.bfloat16, torch.bool]
    given = [own((3,), dtype) for dtype in dtypes]
    handle = hvd.grouped_allreduce_async(given, name="mixed", op=hvd.Sum)
    for results in (hvd.synchronize(handle), hvd.grouped_allreduce(given, op=hvd.Sum)):
        for result, dtype in zip(results, dtypes, strict=True):
            assert torch.equal(result, everybody((3,), dtype).sum(0).to(dtype))
    assert torch.equal(given[0], own((3,), torch.float32))


def test_submission_in_another_order_on_every_rank() -> None:
    names = [f"tensor {number}" for number in range(20)]
    order = torch.randperm(20, generator=torch.Generator().manual_seed(hvd.rank())).tolist()
    handles = {}
    for number in order:
        tensor = own((number + 1,), torch.float32)
        handles[number] = hvd.allreduce_async_(tensor, name=names[number], op=hvd.Sum)
    for number in order[::-1]:
        assert close_to(hvd.synchronize(handles[number]), everybody((number + 1,), torch.float32).sum(0))


@pytest.mark.parametrize("compression", [hvd.Compression.fp16, hvd.Compression.bf16])
def test_built_in_compression(compression: Any) -> None:
    for dtype in (torch.float32, torch.float64, torch.float16, torch.int32):
        result = hvd.allreduce(own((9,), dtype), compression=compression, op=hvd.Sum)
        assert result.dtype == dtype and close_to(result, everybody((9,), dtype).sum(0))
        rows = hvd.reducescatter(own((hvd.size(), 2), dtype), compression=compression, op=hvd.Sum)
        assert rows.dtype == dtype and close_to(rows[0], everybody((hvd.size(), 2), dtype).sum(0)[hvd.rank()])
    mixed = hvd.grouped_allreduce(
        [own((3,), torch.float32), own((3,), torch.int64)], compression=compression, op=hvd.Sum
    )
    assert [tensor.dtype for tensor in mixed] == [torch.float32, torch.int64]
    assert torch.equal(mixed[1], everybody((3,), torch.int64).sum(0))
    exact = 1.0 + 2.0**-12  # needs more bits than either half has
    rounded = hvd.allreduce(torch.full((3,), exact), compression=compression)
    assert torch.equal(rounded, torch.ones(3))


def test_compressor_of_the_users() -> None:
    class Doubled(hvd.Compressor):
        @staticmethod
        def compress(tensor: torch.Tensor) -> tuple[torch.Tensor, str]:
            return 2 * tensor.double(), "context"

        @staticmethod
        def decompress(tensor: torch.Tensor, ctx: str) -> torch.Tensor:
            assert ctx == "context"
            return (tensor / 2).float()

    given = own((5,), torch.float32).requires_grad_()
    total = hvd.allreduce(given, compression=Doubled, op=hvd.Sum)
    assert total.dtype == torch.float32 and close_to(total.detach(), everybody((5,), torch.float32).sum(0))
    total.sum().backward()  # type: ignore[no-untyped-call]
    assert torch.equal(given.grad, torch.full((5,), float(hvd.size())))  # type: ignore[arg-type]


def test_adasum() -> None:
    same = torch.arange(1.0, 5.0)
    torch.testing.assert_close(hvd.allreduce(same, op=hvd.Adasum), same)  # of equal vectors it is the average
    apart = torch.zeros(hvd.size())
    apart[hvd.rank()] = 2.0
    torch.testing.assert_close(hvd.allreduce(apart, op=hvd.Adasum), torch.full((hvd.size(),), 2.0))  # here the sum
    half = hvd.allreduce(apart, op=hvd.Adasum, compression=hvd.Compression.fp16)
    torch.testing.assert_close(half, torch.full((hvd.size(),), 2.0))
    assert hvd.allreduce_(apart, op=hvd.Adasum) is apart
    torch.testing.assert_close(apart, torch.full((hvd.size(),), 2.0))


# Sparse


@pytest.mark.parametrize("op", [hvd.Sum, hvd.Average])
def test_sparse_allreduce(op: hvd.Op) -> None:
    rank, size = hvd.rank(), hvd.size()
    indices = torch.tensor([[rank, 0, rank]])  # a duplicate, for ranks after the first one three
    given = torch.sparse_coo_tensor(indices, own((3, 2), torch.float64), (size + 1, 2), check_invariants=False)
    dense = hvd.allreduce(given.to_dense(), op=op)
    handle = hvd.sparse_allreduce_async(given, "sparse", op)
    for result in (handle(), hvd.synchronize(handle), hvd.allreduce(given, op=op)):
        assert result.is_coalesced()
        torch.testing.assert_close(result.to_dense(), dense)
    assert not given.is_coalesced()


def test_sparse_allreduce_where_some_ranks_have_nothing() -> None:
    given = torch.eye(4, dtype=torch.int32).to_sparse() * (1 if hvd.rank() == 0 else 0)
    if hvd.rank() != 0:
        given = torch.sparse_coo_tensor(torch.empty((2, 0)), torch.empty(0).int(), (4, 4), check_invariants=False)
    assert torch.equal(hvd.allreduce(given, op=hvd.Sum).to_dense(), torch.eye(4).int())


def test_sparse_allreduce_refuses() -> None:
    with pytest.raises(UsageError, match="COO"):
        hvd.sparse_allreduce_async(torch.ones(3), "dense", hvd.Sum)
    with pytest.raises(UsageError, match="Sum or Average"):
        hvd.sparse_allreduce_async(torch.eye(3).to_sparse(), "max", hvd.Max)
    with pytest.raises(UsageError, match="scale"):
        hvd.allreduce(torch.eye(3).to_sparse(), prescale_factor=2.0)
    if hvd.size() > 1:
        with pytest.raises(MismatchError, match=r"\[?\(?3.*rank 0|3.*rank"):
            hvd.allreduce(torch.eye(3 + hvd.rank()).to_sparse())


# Allgather, broadcast, alltoall, reducescatter


@pytest.mark.parametrize("dtype", [torch.bool, *INTEGERS, *FLOATS, *COMPLEX], ids=str)
def test_other_collectives_of_every_dtype(dtype: torch.dtype) -> None:
    rank, size = hvd.rank(), hvd.size()
    gathered = hvd.allgather(own((rank + 1, 2), dtype))
    assert torch.equal(gathered, torch.cat([own((other + 1, 2), dtype, other) for other in range(size)]))
    for shape in SHAPES:
        for root in {0, size - 1}:
            assert torch.equal(hvd.broadcast(own(shape, dtype), root), own(shape, dtype, root))
    sent = own((2 * size, 3), dtype)
    came = torch.cat([own((2 * size, 3), dtype, other)[2 * rank : 2 * rank + 2] for other in range(size)])
    assert torch.equal(hvd.alltoall(sent), came)
    if dtype != torch.bool:
        rows = hvd.reducescatter(own((size + 1, 2), dtype), op=hvd.Sum)
        mine = slice(0, 2) if rank == 0 else slice(rank + 1, rank + 2)
        assert torch.equal(rows, everybody((size + 1, 2), dtype).sum(0).to(dtype)[mine])


def test_alltoall_with_splits() -> None:
    rank, size = hvd.rank(), hvd.size()
    splits = [(rank + other) % 3 for other in range(size)]
    given = torch.full((sum(splits), 2), float(rank))
    expected = [(rank + other) % 3 for other in range(size)]
    for told in (splits, torch.tensor(splits, dtype=torch.int32), torch.tensor(splits)):
        rows, received = hvd.alltoall(given, told)
        assert received.dtype == torch.int32 and received.tolist() == expected
        assert torch.equal(rows[:, 0], torch.arange(float(size)).repeat_interleave(torch.tensor(expected)))
    rows, received = hvd.synchronize(hvd.alltoall_async(given, splits, name="splits"))
    assert received.tolist() == expected


def test_grouped_forms() -> None:
    rank, size = hvd.rank(), hvd.size()
    given = [own((rank + 1,), torch.float32), own((2, 2), torch.int8)]
    for results in (hvd.grouped_allgather(given), hvd.grouped_allgather_async(given, name="grouped").wait()):
        assert torch.equal(results[0], torch.cat([own((other + 1,), torch.float32, other) for other in range(size)]))
        assert results[1].shape == (2 * size, 2)
    given = [own((size,), torch.float32), own((2 * size, 2), torch.float64)]
    first, second = hvd.grouped_reducescatter(given, op=hvd.Sum)
    assert close_to(first, everybody((size,), torch.float32).sum(0)[rank : rank + 1])
    assert close_to(second, everybody((2 * size, 2), torch.float64).sum(0)[2 * rank : 2 * rank + 2])


# Gradients: of the sum over ranks of the losses, each a weighted sum of what the rank got, with weights of its own.


def weights(shape: torch.Size | tuple[int, ...], rank: int) -> torch.Tensor:
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(17 + rank), dtype=torch.float64)


def gradient_of(function: Callable[[torch.Tensor], torch.Tensor], shape: tuple[int, ...]) -> torch.Tensor:
    given = weights(shape, 100 + hvd.rank()).requires_grad_()
    result = function(given)
    (result * weights(result.shape, hvd.rank())).sum().backward()  # type: ignore[no-untyped-call]
    assert given.grad is not None
    return given.grad


def total_weights(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.stack([weights(shape, rank) for rank in range(hvd.size())]).sum(0)


@pytest.mark.parametrize("op", [hvd.Sum, hvd.Average])
def test_gradient_of_allreduce(op: hvd.Op) -> None:
    divisor = hvd.size() if op == hvd.Average else 1
    expected = total_weights((3, 2)) / divisor
    torch.testing.assert_close(gradient_of(lambda x: hvd.allreduce(x, op=op, name="reduced"), (3, 2)), expected)
    torch.testing.assert_close(gradient_of(lambda x: hvd.allreduce(x.t(), op=op).t(), (3, 2)), expected)
    scaled = gradient_of(lambda x: hvd.allreduce(x, op=op, prescale_factor=3.0, postscale_factor=0.5), (3, 2))
    torch.testing.assert_close(scaled, 1.5 * expected)
    two = gradient_of(
        lambda x: torch.cat(hvd.grouped_allreduce([x[:1], x[1:], torch.ones(2).int()], op=op)[:2]), (3, 2)
    )
    torch.testing.assert_close(two, expected)


def test_gradient_of_allgather() -> None:
    """Average over ranks, as Horovod has it, would be 1 / size of it."""
    rank, size = hvd.rank(), hvd.size()
    total = total_weights((size * (size + 1) // 2, 2))
    start = rank * (rank + 1) // 2
    expected = total[start : start + rank + 1]
    torch.testing.assert_close(gradient_of(hvd.allgather, (rank + 1, 2)), expected)
    grouped = gradient_of(lambda x: hvd.grouped_allgather([torch.ones(1), x], name="grouped")[1], (rank + 1, 2))
    torch.testing.assert_close(grouped, expected)


def test_gradient_of_broadcast() -> None:
    root = hvd.size() - 1
    expected = total_weights((4,)) if hvd.rank() == root else torch.zeros(4, dtype=torch.float64)
    torch.testing.assert_close(gradient_of(lambda x: hvd.broadcast(x, root), (4,)), expected)


@pytest.mark.parametrize("with_splits", [True, False])
def test_gradient_of_alltoall(with_splits: bool) -> None:
    rank, size = hvd.rank(), hvd.size()

    def exchange(x: torch.Tensor) -> torch.Tensor:
        return hvd.alltoall(x, [2] * size)[0] if with_splits else hvd.alltoall(x)

    expected = torch.cat([weights((2 * size, 3), other)[2 * rank : 2 * rank + 2] for other in range(size)])
    torch.testing.assert_close(gradient_of(exchange, (2 * size, 3)), expected)


@pytest.mark.parametrize("op", [hvd.Sum, hvd.Average])
def test_gradient_of_reducescatter(op: hvd.Op) -> None:
    size = hvd.size()
    rows = [2 if rank == 0 else 1 for rank in range(size)]
    expected = torch.cat([weights((count, 2), rank) for rank, count in enumerate(rows)])
    expected = expected / size if op == hvd.Average else expected
    scatter = {"op": op, "prescale_factor": 2.0}
    torch.testing.assert_close(gradient_of(lambda x: hvd.reducescatter(x, **scatter), (size + 1, 2)), 2 * expected)
    grouped = gradient_of(lambda x: hvd.grouped_reducescatter([x, torch.ones(3)], **scatter)[0], (size + 1, 2))
    torch.testing.assert_close(grouped, 2 * expected)


def test_second_derivatives() -> None:
    given = own((3,), torch.float64).requires_grad_()
    cubes = hvd.allreduce(given**3, op=hvd.Sum)
    (first,) = torch.autograd.grad(cubes.sum(), given, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), given)
    assert torch.equal(first, hvd.size() * 3 * given**2)
    assert torch.equal(second, hvd.size() * 6 * given)


@pytest.mark.parametrize("op", [hvd.Min, hvd.Max, hvd.Product, hvd.Adasum])
def test_ops_without_a_gradient_say_so(op: hvd.Op) -> None:
    given = torch.ones(3, requires_grad=True)
    result = hvd.allreduce(given, op=op)
    with pytest.raises(UsageError, match=op.name):
        result.sum().backward()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        assert not hvd.allreduce(given, op=op).requires_grad


# Process sets, join, barrier


def test_process_sets() -> None:
    if hvd.size() < 2:
        pytest.skip("needs two ranks")
    last = hvd.size() - 1
    pair = hvd.add_process_set([0, last])
    try:
        if pair.included():
            assert hvd.allreduce(own((3,), torch.float64), process_set=pair).tolist() == [
                1 + last / 2,
                2 + last / 2,
                3 + last / 2,
            ]
            assert hvd.allgather(torch.tensor([hvd.rank()]), process_set=pair).tolist() == [0, last]
            assert hvd.broadcast(torch.tensor(hvd.rank()), last, process_set=pair).item() == last
            assert hvd.reducescatter(torch.ones(2), op=hvd.Sum, process_set=pair).tolist() == [2.0]
            assert hvd.alltoall(torch.tensor([0, last]), process_set=pair).tolist() == [hvd.rank()] * 2
            sparse = hvd.allreduce(torch.eye(2).to_sparse(), process_set=pair)
            assert torch.equal(sparse.to_dense(), torch.eye(2))
            given = torch.ones(2, requires_grad=True)
            hvd.allgather(given, process_set=pair).sum().backward()
            assert given.grad is not None and given.grad.tolist() == [2.0, 2.0]
            hvd.barrier(pair)
        else:
            with pytest.raises(ValueError, match="member"):
                hvd.allreduce(torch.ones(1), process_set=pair)
        if last > 1 and pair.included():
            with pytest.raises(ValueError, match="root_rank"):
                hvd.broadcast(torch.ones(1), 1, process_set=pair)
    finally:
        hvd.barrier()
        hvd.remove_process_set(pair)


def test_join() -> None:
    """Rank r has r batches more than rank 0; the others' averages still divide by all ranks."""
    for batch in range(hvd.rank() + 1):
        total = hvd.allreduce(torch.ones(2), op=hvd.Sum, name="batch")
        assert total.tolist() == [hvd.size() - batch] * 2
    assert 0 <= hvd.join() < hvd.size()
    hvd.barrier()


# Errors


def test_bad_arguments() -> None:
    tensor = torch.ones(3)
    with pytest.raises(ValueError, match="op replaces"):
        hvd.allreduce(tensor, average=True, op=hvd.Sum)
    with pytest.raises(ValueError, match="average is True or False"):
        hvd.allreduce(tensor, hvd.Sum)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"op must be Average, Sum, .* it is"):
        hvd.allreduce(tensor, op=17)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Sum or Average"):
        hvd.reducescatter(tensor, op=hvd.Max)
    for call in (hvd.allgather, hvd.alltoall, hvd.reducescatter):
        with pytest.raises(ValueError, match="reshape"):
            call(torch.tensor(1.0))  # type: ignore[operator]
    with pytest.raises(ValueError, match="splits"):
        hvd.alltoall(tensor, [1] * (hvd.size() + 1))
    with pytest.raises(ValueError, match="root_rank"):
        hvd.broadcast(tensor, hvd.size())
    with pytest.raises(ValueError, match="dense"):
        hvd.allreduce_(torch.eye(2).to_sparse())
    for call in (hvd.grouped_allreduce, hvd.grouped_allreduce_, hvd.grouped_allgather, hvd.grouped_reducescatter):
        for bad in ([], torch.ones(2, 2, requires_grad=True)):
            with pytest.raises(ValueError, match="list"):
                call(bad)  # type: ignore[operator]
    for function in (hvd.allreduce, hvd.allreduce_, hvd.allgather, hvd.alltoall, hvd.reducescatter):
        with pytest.raises(ValueError, match="torch tensors"):
            function(np.ones(3))  # type: ignore[operator]
    for function in (hvd.allreduce, hvd.allreduce_async, hvd.allreduce_, hvd.allgather):
        with pytest.raises(ValueError, match=r"(?i)cpu|device"):
            function(torch.ones(2, device="meta"))  # type: ignore[operator]
    with pytest.raises(ValueError, match="asynchronous call"):
        hvd.synchronize(3)  # type: ignore[arg-type]


def test_name_in_flight() -> None:
    if hvd.size() == 1:
        pytest.skip("needs two ranks")
    if hvd.rank() != 0:
        hvd.barrier()  # rank 0's operation waits for this one's until then
    handle = hvd.allreduce_async(torch.ones(1000), name="twice")
    if hvd.rank() == 0:
        with pytest.raises(ValueError, match="twice"):
            hvd.allreduce_async(torch.ones(1000), name="twice")
        hvd.barrier()
    assert torch.equal(hvd.synchronize(handle), torch.ones(1000))


def test_mismatch_is_raised_everywhere_and_the_next_call_works() -> None:
    if hvd.size() == 1:
        pytest.skip("needs two ranks")
    odd = hvd.rank() == hvd.size() - 1
    with pytest.raises(hvd.HorovodInternalError):
        hvd.allreduce(torch.ones(3 if odd else 4), name="shapes")
    with pytest.raises(RuntimeError):
        hvd.allreduce(torch.ones(3, dtype=torch.float64 if odd else torch.float32))
    assert hvd.allreduce(torch.ones(1), op=hvd.Sum).item() == hvd.size()


def test_questions_about_the_build() -> None:
    assert hvd.mpi_built() in (True, False) and hvd.mpi_enabled() in (True, False)
    assert not (hvd.gloo_built() or hvd.gloo_enabled() or hvd.nccl_built() or hvd.cuda_built() or hvd.rocm_built())
    assert not (hvd.ccl_built() or hvd.ddl_built())
    assert hvd.mpi_threads_supported() in (True, False)
    nodes = nodes_of_ranks()
    assert hvd.is_homogeneous() == (len({nodes.count(node) for node in nodes}) == 1)


def test_functions_in_place_tell_autograd() -> None:
    for call in (
        hvd.allreduce_,
        lambda tensor: hvd.synchronize(hvd.allreduce_async_(tensor)),
        lambda tensor: hvd.grouped_allreduce_([tensor]),
        lambda tensor: hvd.synchronize(hvd.grouped_allreduce_async_([tensor])),
        lambda tensor: hvd.broadcast_(tensor, 0),
        lambda tensor: hvd.synchronize(hvd.broadcast_async_(tensor, 0)),
        lambda tensor: hvd.broadcast_parameters({"tensor": tensor}),
    ):
        factor, weight = torch.ones(3), torch.ones(3, requires_grad=True)
        product = (factor * weight).sum()
        call(factor)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            product.backward()  # type: ignore[no-untyped-call]
    with torch.inference_mode():
        tensor = torch.ones(3)
    assert hvd.allreduce_(tensor) is tensor


def test_expanded_tensors_have_no_place_for_a_result() -> None:
    expanded = torch.ones(1).expand(3)
    for call in (
        lambda: hvd.allreduce_(expanded),
        lambda: hvd.broadcast_(expanded, 0),
        lambda: hvd.broadcast_parameters({"expanded": expanded if hvd.rank() == 0 else torch.ones(1).expand(3)}),
    ):
        with pytest.raises(UsageError, match=r"this one is expanded.*clone"):
            call()


def test_sparse_tensors_with_different_ops() -> None:
    tensor = torch.eye(3).to_sparse()
    if hvd.size() > 1:
        with pytest.raises(MismatchError):
            hvd.allreduce(tensor, op=hvd.Sum if hvd.rank() == 0 else hvd.Average)
    assert torch.equal(hvd.allreduce(tensor, op=hvd.Average).to_dense(), torch.eye(3))
    with pytest.raises(UsageError, match="Booleans have no average"):
        hvd.allreduce(tensor.bool())


def test_arguments_of_wrong_types() -> None:
    tensor, watched = torch.ones(3), torch.ones(3, requires_grad=True)
    for op in (True, False, 1.0):
        for call in (hvd.allreduce, hvd.allreduce_, hvd.reducescatter):
            with pytest.raises(UsageError, match="op must be"):
                call(tensor, op=op)  # type: ignore[operator]
    assert torch.equal(hvd.allreduce(tensor, op=np.int64(1)), tensor * hvd.size())  # type: ignore[arg-type]
    for compression in (None, "fp16", hvd.Compression):
        for call in (hvd.allreduce, hvd.reducescatter):
            with pytest.raises(UsageError, match="compression must have"):
                call(tensor, compression=compression)  # type: ignore[operator]
    for process_set in (None, [0]):
        for one in (tensor, watched):
            for call in (hvd.allreduce, hvd.allgather, hvd.alltoall, hvd.reducescatter):
                with pytest.raises(UsageError, match="process_set must be"):
                    call(one, process_set=process_set)  # type: ignore[operator]
            with pytest.raises(UsageError, match="process_set must be"):
                hvd.broadcast(one, 0, process_set=process_set)  # type: ignore[arg-type]
    for root in (0.0, "0", torch.tensor(0)):
        with pytest.raises(UsageError, match="root_rank must be a rank of the world, an int"):
            hvd.broadcast(tensor, root)  # type: ignore[arg-type]
    for arguments, options in ((("ab",), {}), ((2.5,), {}), ((2,), {"dtype": "float32"})):
        with pytest.raises(UsageError, match="must be"):
            hvd.empty(*arguments, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("process_set", [None, [0]], ids=repr)
def test_functions_of_the_torch_face_refuse_what_is_no_set(process_set: Any) -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for call in (
        lambda: hvd.broadcast_parameters(model.state_dict(), process_set=process_set),
        lambda: hvd.broadcast_optimizer_state(optimizer, process_set=process_set),
        lambda: hvd.DistributedOptimizer(optimizer, process_set=process_set),
        lambda: hvd.SyncBatchNorm(3, process_set=process_set),
    ):
        with pytest.raises(UsageError, match="process_set must be"):
            call()


def test_what_is_no_optimizer_and_no_model() -> None:
    with pytest.raises(UsageError, match="optimizer must be a torch optimizer"):
        hvd.broadcast_optimizer_state(None)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="takes a torch module"):
        hvd.SyncBatchNorm.convert_sync_batchnorm(None)  # type: ignore[arg-type]
