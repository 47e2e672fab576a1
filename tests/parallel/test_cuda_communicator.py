"""ringred.cuda on GPUs: every rank has one, or they share one. Skipped where torch sees none."""

from __future__ import annotations

import pytest
import torch

import ringred as rr
from ringred import cuda, world

pytest.importorskip("ringred._cuda", reason="this ringred was built without CUDA")
if not torch.cuda.is_available():
    pytest.skip("torch sees no GPU", allow_module_level=True)

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32, torch.int64]
COUNTS = [1, 7, 1000, 65_537, 3_000_001]


@pytest.fixture(scope="module")
def group() -> cuda.Communicator:
    rr.init()
    if world.topology().count > 1:
        pytest.skip("ranks are on several nodes")
    torch.cuda.set_device(rr.local_rank() % torch.cuda.device_count())
    return cuda.Communicator()


def sample(count: int, dtype: torch.dtype, rank: int) -> torch.Tensor:
    return ((torch.arange(count, device="cuda") * 7 + rank * 3) % 11).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", [rr.Sum, rr.Max], ids=["sum", "max"])
def test_all_sizes_in_and_out_of_place(group: cuda.Communicator, dtype: torch.dtype, op: rr.Op) -> None:
    for count in COUNTS:
        everybody = torch.stack([sample(count, dtype, rank) for rank in range(rr.size())])
        expected = everybody.sum(0, dtype=torch.float64) if op == rr.Sum else everybody.max(0).values
        for offset in (0, 1):
            mine = sample(count + offset, dtype, rr.rank())[: count + offset]
            mine = torch.cat([mine[:offset], sample(count, dtype, rr.rank())])[offset:]
            result = group.allreduce(mine, op)
            group.wait()
            assert torch.equal(result, expected.to(dtype))
            assert group.allreduce_(mine, op) is mine
            group.wait()
            assert torch.equal(mine, expected.to(dtype))


def test_results_are_in_order_with_the_current_stream(group: cuda.Communicator) -> None:
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        values = torch.zeros(1 << 20, device="cuda")
        for step in range(20):
            values += rr.rank() + step
            group.allreduce_(values, rr.Average)
            values -= (rr.size() - 1) / 2
        total = values.double().mean()
    side.synchronize()
    group.check()
    assert total.item() == sum(range(20))


def test_calls_can_be_captured_where_memory_is_reached_directly(group: cuda.Communicator) -> None:
    values = torch.ones(5000, device="cuda")
    graph = torch.cuda.CUDAGraph()
    if not group.is_direct:
        with pytest.raises(rr.UsageError, match="captured"), torch.cuda.graph(graph):
            group.allreduce_(values, rr.Sum)
        return
    with torch.cuda.graph(graph):
        group.allreduce_(values, rr.Sum)
    for replay in range(1, 4):
        graph.replay()
        torch.cuda.synchronize()
        group.check()
        assert torch.all(values == rr.size() ** replay)


def test_a_gradient_of_another_length_is_a_mismatch(group: cuda.Communicator) -> None:
    if rr.size() == 1:
        pytest.skip("needs two ranks")
    own = cuda.Communicator()
    values = torch.ones(1000 + rr.rank(), device="cuda")
    with pytest.raises(rr.RingredError, match=r"count=10"):
        for _ in range(2):
            own.allreduce_(values, rr.Sum)
            own.wait()
