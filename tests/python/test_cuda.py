"""Arrays on GPUs, as far as one process without a GPU can tell: what is taken, refused, and told to the core."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import ringred as rr
from ringred import cuda
from ringred.devices import addresses
from ringred.devices.addresses import View


class DeviceArray:
    """Says that it lies on a GPU."""

    def __init__(self, shape: tuple[int, ...], dtype: str = "<f4", stream: int | None = 7, **interface: Any) -> None:
        data = {"shape": shape, "typestr": dtype, "data": (0x7000, False), "version": 3, "stream": stream}
        self.__cuda_array_interface__ = data | interface


class Native:
    """Stands in for the compiled part, and keeps what it was told."""

    is_direct = True
    sentence = "direct, for a test"

    def __init__(self, **setup: Any) -> None:
        self.setup = setup
        self.calls: list[dict[str, Any]] = []
        self.ended = False

    def allreduce(self, **call: Any) -> None:
        self.calls.append(call)

    def end(self) -> None:
        self.ended = True


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    module: Any = ModuleType("ringred._cuda")
    module.Communicator = Native
    module.host_bytes = lambda size: 5000 * size
    monkeypatch.setitem(sys.modules, "ringred._cuda", module)
    rr.init()
    yield
    rr.shutdown()


def test_an_interface_is_an_address_a_length_a_dtype_and_a_stream() -> None:
    assert addresses.view(DeviceArray((3, 4), "<f2")) == View(0x7000, 12, "float16", 7)
    assert addresses.view(DeviceArray((), "<i8", None)) == View(0x7000, 1, "int64", addresses.LEGACY_STREAM)
    assert addresses.view(DeviceArray((0, 4), strides=(16, 4))).count == 0
    assert addresses.view(DeviceArray((3, 4), strides=(16, 4))).count == 12


def test_strides_that_leave_gaps_are_refused() -> None:
    with pytest.raises(rr.UsageError, match=r"must be contiguous .* shape \(3, 4\) has strides \(4, 12\)"):
        addresses.view(DeviceArray((3, 4), strides=(4, 12)))


@pytest.mark.parametrize("array", [np.zeros(3), [1.0], torch.zeros(3)], ids=["numpy", "list", "torch"])
def test_arrays_in_main_memory_are_refused_with_the_way_to_reduce_them(array: Any) -> None:
    with pytest.raises(rr.UsageError, match=r"on a GPU.*ringred.allreduce"):
        addresses.view(array)


def test_current_stream_of_cupy_orders_arrays_that_name_none(monkeypatch: pytest.MonkeyPatch) -> None:
    cupy: Any = ModuleType("cupy")
    cupy.ndarray = DeviceArray
    cupy.cuda = SimpleNamespace(get_current_stream=lambda: SimpleNamespace(ptr=99))
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    assert addresses.view(DeviceArray((2,), stream=None)).stream == 99


def test_core_is_told_what_a_call_means(native: None) -> None:
    with cuda.Communicator(device=2) as group:
        assert group.is_direct and group.device == 2 and group.how == "direct, for a test"
        array, out = DeviceArray((4,), "<f8"), DeviceArray((2, 2), "<f8", data=(0x9000, False))
        assert group.allreduce(array, rr.Max, out=out) is out
        assert group.allreduce_(array, prescale_factor=0.5, algorithm="ring") is array
    told: Native = group._native  # type: ignore[assignment]
    common = {"stream": 7, "input": 0x7000, "count": 4, "dtype": "float64"}
    plain = {"prescale": 1.0, "postscale": 1.0, "algorithm": None}
    assert told.calls[0] == common | plain | {"output": 0x9000, "op": int(rr.Max)}
    assert told.calls[1] == common | plain | {
        "output": 0x7000,
        "op": int(rr.Average),
        "prescale": 0.5,
        "algorithm": "ring",
    }
    assert told.ended
    assert (told.setup["rank"], told.setup["device"], told.setup["lifelines"]) == (0, 2, [-1])
    assert told.setup["gather"](b"mine") == [b"mine"]
    assert all(address % 4096 == 0 for address in told.setup["host_blocks"])


def test_bad_calls_start_nothing(native: None) -> None:
    group = cuda.Communicator()
    array = DeviceArray((4,))
    with pytest.raises(rr.UsageError, match=r"out must have .* float32 and 3 instead of float32 and 4"):
        group.allreduce(array, out=DeviceArray((3,)))
    with pytest.raises(rr.UsageError, match="on a GPU"):
        group.allreduce(np.zeros(4))
    with pytest.raises(rr.UsageError, match="Adasum"):
        group.allreduce_(array, rr.Adasum)
    with pytest.raises(rr.UsageError, match="prescale_factor"):
        group.allreduce_(array, prescale_factor="2")  # type: ignore[arg-type]
    with pytest.raises(rr.UsageError, match="device must be the ordinal of a GPU"):
        cuda.Communicator(device=-1)
    assert group._native.calls == []  # type: ignore[attr-defined]
    group.end()


def test_without_the_compiled_part_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ringred._cuda", None)
    with pytest.raises(rr.SystemError, match=r"no part for GPUs .*RINGRED_CUDA=ON"):
        cuda.Communicator()
