"""Arrays on GPUs: what crosses, when, and what does not. The devices are made up (fake_gpu.py, fake_cupy.py).

That results are those of the CPU, whole files of tests show that run with RINGRED_TEST_DEVICE; here is what is
particular to devices.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from rank_data import everybodys
from torch import nn

import ringred as rr
import ringred.torch as hvd
from ringred import environment
from ringred.devices import crossing, library, recognition


@pytest.fixture
def cupy() -> Iterator[Any]:
    """The library like CuPy, for one test."""
    import fake_cupy

    names = ("cupy", "cupyx", "ringred.devices.of_cupy")
    before = {name: sys.modules.pop(name, None) for name in names}
    recognition.cupy_library.cache_clear()
    yield fake_cupy.install()
    recognition.cupy_library.cache_clear()
    for name in names:
        sys.modules.pop(name, None)
    sys.modules.update({name: module for name, module in before.items() if module is not None})


# CuPy


def test_cupy_arrays(cupy: Any) -> None:
    for dtype in ("float32", "int16", "complex128"):
        inputs = everybodys(dtype, (3, 1000))
        total = np.sum(inputs, axis=0, dtype=dtype)
        given = cupy.asarray(inputs[rr.rank()])
        results = [
            rr.allreduce(given, rr.Sum),
            rr.allreduce_async(given, rr.Sum).wait(),
            rr.grouped_allreduce([given, np.ones(3)], rr.Sum)[0],
        ]
        assert all(type(one) is cupy.ndarray for one in results)
        for one in results:
            np.testing.assert_array_equal(one.get(), total)
        np.testing.assert_array_equal(rr.allgather(given).get(), np.concatenate(inputs))
        np.testing.assert_array_equal(rr.broadcast(given, rr.size() - 1).get(), inputs[-1])
        assert rr.allreduce_(given, rr.Sum) is given
        np.testing.assert_array_equal(given.get(), total)


def test_cupy_arrays_without_dimensions_or_elements(cupy: Any) -> None:
    assert rr.allreduce(cupy.asarray(np.float64(rr.rank())), rr.Sum).get() == sum(range(rr.size()))
    assert rr.allreduce(cupy.asarray(np.ones((0, 3))), rr.Sum).shape == (0, 3)


def test_cupy_arrays_in_a_narrow_type_and_by_a_plan(cupy: Any) -> None:
    given = cupy.asarray(np.full(1000, 1 + 2**-12, np.float32))  # which float16 rounds to 1
    result = rr.allreduce_async(given, rr.Sum, wire="float16").wait()
    assert result.dtype == np.float32 and (result.get() == rr.size()).all()
    plan = rr.plan_allreduce(given, rr.Average)
    for _ in range(3):
        assert plan() is given
        np.testing.assert_array_equal(given.get(), np.float32(1 + 2**-12))


# torch


def test_ranks_with_tensors_on_gpus_and_on_cpus(fake: Any) -> None:
    on_gpu = rr.rank() % 2 == 0
    given = torch.full((5000,), float(rr.rank() + 1), device="fake" if on_gpu else "cpu")
    total = float(sum(range(1, rr.size() + 1)))
    for result in (rr.allreduce(given, rr.Sum), hvd.allreduce(given, op=hvd.Sum), hvd.allreduce_(given, op=hvd.Sum)):
        assert result.device == given.device and torch.equal(result.cpu(), torch.full((5000,), total))
    mixed = [torch.ones(3, device="fake"), torch.ones(4)]
    assert [one.device.type for one in hvd.grouped_allreduce(mixed)] == ["fake", "cpu"]


def model_of(device: str) -> nn.Sequential:
    generator = torch.Generator().manual_seed(5)
    model = nn.Sequential(nn.Linear(6, 40), nn.Tanh(), nn.Linear(40, 3), nn.Tanh(), nn.Linear(3, 1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model.to(device)


def trained(places: list[str], steps: int = 5, **options: Any) -> list[torch.Tensor]:
    """The parameters of a model whose first layer is on the first device, and the rest on the other one."""
    model = model_of("cpu")
    model[0].to(places[0])
    for layer in list(model)[1:]:
        layer.to(places[-1])
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), **options)
    generator = torch.Generator().manual_seed(rr.rank())
    for _ in range(steps):
        optimizer.zero_grad()
        hidden = model[0](torch.randn(4, 6, generator=generator).to(places[0]))
        model[1:](hidden.to(places[-1])).square().mean().backward()
        optimizer.clip_grad_norm_(0.5)
        optimizer.step()
    optimizer.close()
    return [parameter.detach().cpu() for parameter in model.parameters()]


@pytest.mark.parametrize("overlap", ["on", "off"])
def test_models_on_several_devices_train_as_on_the_cpu(fake: Any, overlap: str) -> None:
    alike = trained(["cpu"], overlap=overlap)
    by_layer = ["fake", "cpu"]
    by_rank = ["fake" if rr.rank() % 2 else "cpu"]
    for places in (["fake"], by_layer, by_rank):
        for one, other in zip(trained(places, overlap=overlap), alike, strict=True):
            torch.testing.assert_close(one, other)


def test_small_buckets(fake: Any) -> None:
    for one, other in zip(trained(["fake"], bucket_bytes=200), trained(["cpu"]), strict=True):
        torch.testing.assert_close(one, other)


def test_half_the_bytes_cross_with_compression(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    crossed: list[torch.dtype] = []
    kept = recognition.torch_library("fake")
    copy_out = kept.copy_out

    def noted(array: Any, host: Any) -> None:
        crossed.append(host.dtype)
        copy_out(array, host)

    monkeypatch.setattr(kept, "copy_out", noted)
    given = torch.full((1000,), 1 + 2**-12, device="fake")
    assert torch.equal(hvd.allreduce(given, compression=hvd.Compression.fp16).cpu(), torch.ones(1000))
    if rr.size() > 1:
        trained(["fake"], compression=hvd.Compression.fp16)
        assert set(crossed[1:]) == {torch.float16, torch.float32}  # the first comparison of parameters is in float32
        assert crossed[-1] == torch.float16
    assert crossed[0] == torch.float16


def test_a_result_is_there_for_the_stream_of_whoever_gets_it(fake: Any) -> None:
    """Also of those who get it after somebody else, on whose stream it is still being copied."""
    handle = rr.allreduce_async(torch.ones(4000, device="fake"), rr.Sum)
    own, other = fake.Stream(), fake.Stream()
    module = torch.get_device_module("fake")
    with module.stream(own):
        own.enqueue(lambda: time.sleep(0.05))
        handle.wait()
    with module.stream(other):
        assert torch.equal(handle.wait().cpu(), torch.full((4000,), float(rr.size())))
    with module.stream(own):
        assert torch.equal(handle.wait().cpu(), torch.full((4000,), float(rr.size())))


def test_a_process_says_once_that_arrays_go_through_host_memory(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[str, str]] = []
    monkeypatch.setattr(environment, "say", lambda text, level, _: said.append((text, level)))
    crossing._say_once.cache_clear()
    for _ in range(3):
        rr.allreduce(torch.ones(3, device="fake"))
    rr.allreduce(torch.ones(3))
    assert [level for _, level in said] == ["info"] and "go through host memory" in said[0][0]


def test_what_is_enqueued_before_the_call_is_in_it(fake: Any) -> None:
    for turn in range(5):
        given = torch.zeros(2000, device="fake")
        for _ in range(20):
            given.add_(1.0 + turn)
        result = rr.allreduce(given, rr.Average)
        given.fill_(-1.0)
        assert torch.equal(result.cpu(), torch.full((2000,), 20.0 * (1 + turn)))


@pytest.mark.parametrize("function", [rr.allreduce_, rr.allreduce_async_])
def test_in_place_takes_what_lies_in_one_piece(fake: Any, function: Any) -> None:
    with pytest.raises(rr.UsageError, match=r"contiguous .* of shape \(4, 3\) on fake:0"):
        function(torch.ones(3, 4, device="fake").t())


def test_devices_that_are_none_of_these(fake: Any) -> None:
    with pytest.raises(rr.UsageError, match=r"main memory or on a GPU.*meta"):
        rr.allreduce(torch.ones(3, device="meta"))
    with pytest.raises(rr.UsageError, match=r"main memory or on a GPU.*parameter\.0\.0.*meta"):
        hvd.DistributedOptimizer(torch.optim.SGD(nn.Linear(2, 2, device="meta").parameters(), lr=0.1))
    if rr.size() > 1:
        with pytest.raises(rr.UsageError, match="fused=True works on the CPU only"):
            parameters = nn.Linear(2, 2, device="fake").parameters()
            hvd.DistributedOptimizer(torch.optim.SGD(parameters, lr=0.1), fused=True)


def test_arrays_of_other_libraries_need_one_that_copies_them(monkeypatch: pytest.MonkeyPatch) -> None:
    class OfNobody:
        __cuda_array_interface__ = {"shape": (3,), "typestr": "<f4", "data": (4096, False), "version": 3}  # noqa: RUF012

    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(rr.UsageError, match=r"copied by torch or CuPy.*OfNobody, and neither is installed"):
        rr.allreduce(OfNobody())


def test_a_wait_for_a_device_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    class Never:
        def passed(self) -> bool:
            return False

        def precede(self) -> None: ...

    monkeypatch.setenv("RINGRED_TIMEOUT_SECONDS", "0.05")
    began = time.monotonic()
    with pytest.raises(rr.TimeoutError, match=r"has not come to the end within 0\.05 s"):
        library.wait_for([Never()], "the end")
    assert time.monotonic() - began < 5
