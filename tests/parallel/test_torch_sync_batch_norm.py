"""SyncBatchNorm on all ranks against one process that has their concatenated batches, in float64.

Distances: 1e-12 is 4500 eps; the values are about 1, and each comes from some hundred roundings. A wrong count, a rank
left out or a biased variance moves them by more than 1e-3.
"""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

import ringred.torch as hvd
from ringred.errors import MismatchError

CHANNELS = 3
TOLERANCE = {"rtol": 0.0, "atol": 1e-12}
SHAPES = [(), (5,), (4, 3), (2, 2, 2)]
BATCH_NORMS = [nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d]


def batch_of(rank: int, shape: tuple[int, ...], step: int = 0) -> torch.Tensor:
    """Shape (rank + 2, CHANNELS, *shape), and an empty one on the third rank; far from mean 0 and variance 1."""
    length = 0 if rank == 2 else rank + 2
    generator = torch.Generator().manual_seed(100 * step + rank)
    return torch.randn(length, CHANNELS, *shape, generator=generator, dtype=torch.float64) * (rank + 1) + 3 * rank + 1


def whole_batch(shape: tuple[int, ...], step: int = 0) -> torch.Tensor:
    return torch.cat([batch_of(rank, shape, step) for rank in range(hvd.size())])


def rows_of(rank: int) -> slice:
    lengths = [len(batch_of(other, ())) for other in range(hvd.size())]
    return slice(sum(lengths[:rank]), sum(lengths[: rank + 1]))


def randomised(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        parameter.data.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
    return module.double()


@pytest.mark.parametrize("momentum", [0.1, 0.7, None])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dimensions", range(4))
def test_equals_one_process_on_the_whole_batch(dimensions: int, affine: bool, momentum: float | None) -> None:
    shape, rows = SHAPES[dimensions], rows_of(hvd.rank())
    ours = randomised(hvd.SyncBatchNorm(CHANNELS, momentum=momentum, affine=affine))
    theirs = randomised(BATCH_NORMS[dimensions](CHANNELS, momentum=momentum, affine=affine))
    for step in range(3):
        whole = whole_batch(shape, step).requires_grad_()
        own = batch_of(hvd.rank(), shape, step).requires_grad_()
        ours.zero_grad()
        theirs.zero_grad()
        results = ours(own), theirs(whole)
        torch.testing.assert_close(results[0], results[1][rows], **TOLERANCE)
        weights = torch.randn(whole.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
        (results[0] * weights[rows]).sum().backward()
        (results[1] * weights).sum().backward()
        assert own.grad is not None and whole.grad is not None
        torch.testing.assert_close(own.grad, whole.grad[rows], **TOLERANCE)
        for mine, all_of_it in zip(ours.parameters(), theirs.parameters(), strict=True):
            total = hvd.allreduce(mine.grad, op=hvd.Sum)  # type: ignore[arg-type]
            torch.testing.assert_close(total, all_of_it.grad, rtol=1e-12, atol=1e-12)
        for mine, all_of_it in zip(ours.buffers(), theirs.buffers(), strict=True):
            torch.testing.assert_close(mine, all_of_it, **TOLERANCE)
    hvd.check_replicas(ours)
    ours.eval()
    theirs.eval()
    if hvd.rank() == 0:  # no other rank takes part
        torch.testing.assert_close(ours(whole_batch(shape)), theirs(whole_batch(shape)), **TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_other_dtypes(dtype: torch.dtype) -> None:
    """Halves are added in float32: what is left is the rounding of input and output."""
    module, reference = hvd.SyncBatchNorm(CHANNELS), nn.BatchNorm2d(CHANNELS)
    whole = whole_batch((4, 3)).to(dtype)
    own = batch_of(hvd.rank(), (4, 3)).to(dtype).requires_grad_()
    result = module(own)
    assert result.dtype == dtype
    eps = torch.finfo(dtype).eps
    expected = reference(whole.float())[rows_of(hvd.rank())]
    torch.testing.assert_close(result.float(), expected, rtol=2 * eps, atol=20 * eps)
    result.sum().backward()
    assert own.grad is not None and own.grad.dtype == dtype
    assert module.weight.grad is not None and module.weight.grad.dtype == torch.float32


def test_without_running_statistics() -> None:
    module = hvd.SyncBatchNorm(CHANNELS, track_running_stats=False).double()
    reference = nn.BatchNorm1d(CHANNELS, track_running_stats=False).double()
    result = module(batch_of(hvd.rank(), (5,)))
    torch.testing.assert_close(result, reference(whole_batch((5,)))[rows_of(hvd.rank())], **TOLERANCE)
    assert module.running_mean is None and not list(module.buffers())


def test_conversion() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Sequential(nn.BatchNorm2d(2, affine=False)))
    model[1].eval()
    first, inner = model[1], model[2][0]
    converted = hvd.SyncBatchNorm.convert_sync_batchnorm(model)
    assert converted is model
    assert type(model[1]) is type(model[2][0]) is hvd.SyncBatchNorm
    assert model[1].weight is first.weight and model[1].running_var is first.running_var and not model[1].training
    assert model[2][0].weight is None and model[2][0].running_mean is inner.running_mean and model[2][0].training
    assert list(model.state_dict()) == list(nn.Sequential(nn.Conv2d(1, 2, 3), first, nn.Sequential(inner)).state_dict())
    again = hvd.SyncBatchNorm.convert_sync_batchnorm(model)
    assert again[1] is model[1]  # type: ignore[index]
    alone = hvd.SyncBatchNorm.convert_sync_batchnorm(nn.BatchNorm1d(4))
    assert isinstance(alone, hvd.SyncBatchNorm)


def test_copies_and_files() -> None:
    module = hvd.SyncBatchNorm(CHANNELS).double()
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    own = batch_of(hvd.rank(), (5,))
    expected = module(own)
    for other in (copy.deepcopy(module), torch.load(file, weights_only=False)):
        torch.testing.assert_close(other.train()(own), expected, **TOLERANCE)


def test_training_with_the_distributed_optimizer() -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, CHANNELS), nn.BatchNorm1d(CHANNELS), nn.Linear(CHANNELS, 1)).double()
    reference = copy.deepcopy(model)
    converted = hvd.SyncBatchNorm.convert_sync_batchnorm(model)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(converted.parameters(), lr=0.1), op=hvd.Sum)
    plain = torch.optim.SGD(reference.parameters(), lr=0.1)
    whole = torch.randn(6 * hvd.size(), 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for _ in range(3):
        for net, opt, inputs in ((converted, optimizer, whole[hvd.rank() :: hvd.size()]), (reference, plain, whole)):
            opt.zero_grad()
            (net(inputs).square().sum() / len(whole)).backward()
            opt.step()
    for ours, theirs in zip(converted.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, **TOLERANCE)
    optimizer.close()


def test_process_set() -> None:
    if hvd.size() < 2:
        pytest.skip("needs two ranks")
    last = hvd.size() - 1
    pair = hvd.add_process_set([0, last])
    try:
        if pair.included():
            module = hvd.SyncBatchNorm(CHANNELS, process_set=pair).double()
            whole = torch.arange(24.0, dtype=torch.float64).view(8, CHANNELS)
            own = whole[:3] if hvd.rank() == 0 else whole[3:]
            expected = nn.BatchNorm1d(CHANNELS).double()(whole)
            torch.testing.assert_close(module(own), expected[:3] if hvd.rank() == 0 else expected[3:], **TOLERANCE)
            assert copy.deepcopy(module).process_set is pair
    finally:
        hvd.barrier()
        hvd.remove_process_set(pair)


def test_bad_inputs() -> None:
    module = hvd.SyncBatchNorm(CHANNELS)
    with pytest.raises(ValueError, match="dimension"):
        module(torch.ones(CHANNELS))
    with pytest.raises(ValueError, match="more than"):
        module(torch.ones(1 if hvd.rank() == 0 else 0, CHANNELS))
    if hvd.size() > 1:
        other = hvd.SyncBatchNorm(CHANNELS + (hvd.rank() == 0))
        with pytest.raises(MismatchError):
            other(torch.ones(4, CHANNELS + (hvd.rank() == 0)))
