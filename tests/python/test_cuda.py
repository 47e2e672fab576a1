"""Arrays on GPUs, as far as one process without a GPU can tell: what is taken, refused, and told to the core."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import nullcontext
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
        self.waits_on_host = False

    def allreduce(self, **call: Any) -> None:
        self.calls.append(call)

    def allocate(self, bytes: int) -> int:
        self.calls.append({"bytes": bytes})
        return 0x8000

    def end(self) -> None:
        self.ended = True

    def abandon(self, reason: str) -> None:
        self.ended = reason == "no more"


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
        assert group.allreduce_(array, prescale_factor=0.5, algorithm="ring", tag="layer 3") is array
    told: Native = group._native  # type: ignore[assignment]
    common = {"stream": 7, "input": 0x7000, "count": 4, "dtype": "float64"}
    plain = {"prescale": 1.0, "postscale": 1.0, "algorithm": None, "tag": ""}
    assert told.calls[0] == common | plain | {"output": 0x9000, "op": int(rr.Max)}
    assert told.calls[1] == common | plain | {
        "output": 0x7000,
        "op": int(rr.Average),
        "prescale": 0.5,
        "algorithm": "ring",
        "tag": "layer 3",
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
    with pytest.raises(rr.UsageError, match="tag must be a str"):
        group.allreduce_(array, tag=3)  # type: ignore[arg-type]
    with pytest.raises(rr.UsageError, match="prescale_factor"):
        group.allreduce_(array, prescale_factor="2")  # type: ignore[arg-type]
    with pytest.raises(rr.UsageError, match="device must be the ordinal of a GPU"):
        cuda.Communicator(device=-1)
    assert group._native.calls == []  # type: ignore[attr-defined]
    group.end()


def test_memory_that_all_ranks_have_is_an_array_of_torch_or_cupy(native: None, monkeypatch: pytest.MonkeyPatch) -> None:
    group = cuda.Communicator(device=1)
    seen: list[Any] = []

    def as_tensor(block: Any, device: str) -> torch.Tensor:
        seen.append((block.__cuda_array_interface__, device))
        return torch.zeros(block.__cuda_array_interface__["shape"], dtype=torch.uint8)

    monkeypatch.setattr(torch, "as_tensor", as_tensor)
    tensor = group.empty((3, 5), torch.bfloat16)
    assert tensor.shape == (3, 5) and tensor.dtype == torch.bfloat16
    assert group.empty(0, torch.float32).shape == (0,)
    interface, device = seen[0]
    assert device == "cuda:1" and interface["data"] == (0x8000, False) and interface["shape"] == (30,)

    cupy: Any = ModuleType("cupy")
    cupy.asarray = lambda block: np.zeros(block.__cuda_array_interface__["shape"], np.uint8)
    cupy.cuda = SimpleNamespace(Device=lambda ordinal: nullcontext())
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    array = group.empty(7, "float64")
    assert array.shape == (7,) and array.dtype == np.float64
    assert [call["bytes"] for call in group._native.calls] == [30, 16, 56]  # type: ignore[attr-defined]
    for shape, dtype, words in ((-1, "float64", "shape must be"), (3, "text?", "dtype must be torch's")):
        with pytest.raises(rr.UsageError, match=words):
            group.empty(shape, dtype)
    group.end()


def test_one_that_is_abandoned_keeps_the_memory_that_peers_look_at(native: None) -> None:
    group = cuda.Communicator()
    blocks = group._blocks
    group.abandon("no more")
    told: Any = group._native
    assert told.ended and not group.waits_on_host
    del group
    assert cuda._left_open.pop() is blocks


def test_what_is_against_a_communicator_is_said_before_one_is_made(
    native: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check_device(device: int) -> None:
        if device == 3:
            raise rr.SystemError("the driver is too old for device 3")

    sys.modules["ringred._cuda"].check_device = check_device  # type: ignore[attr-defined]
    assert cuda.reason_against(rr.global_process_set, 0) == ""
    assert cuda.reason_against(rr.global_process_set, 3) == "the driver is too old for device 3"
    monkeypatch.setitem(sys.modules, "ringred._cuda", None)
    assert "no part for GPUs" in cuda.reason_against(rr.global_process_set, 0)


def test_without_the_compiled_part_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ringred._cuda", None)
    with pytest.raises(rr.SystemError, match=r"no part for GPUs .*RINGRED_CUDA=ON"):
        cuda.Communicator()
