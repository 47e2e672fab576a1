"""Array arguments in one process: what is taken, what is refused with which words, and arrays in the arena."""

from __future__ import annotations

import array
import copy
import ctypes
import gc
import pickle
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ringred as rr

IN_PLACE: list[Callable[[Any], Any]] = [rr.allreduce_, rr.broadcast_, rr.plan_allreduce]
OUT_OF_PLACE: list[Callable[[Any], Any]] = [rr.allreduce, rr.broadcast]
ALL = IN_PLACE + OUT_OF_PLACE


@pytest.fixture(autouse=True)
def world() -> Iterator[None]:
    rr.init()
    yield
    rr.shutdown()


def name_of(function: Callable[..., Any]) -> str:
    return function.__name__


class OnlyDlpack:
    """An array of some library that ringred has never heard of."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __dlpack__(self, **options: Any) -> Any:
        return self.inner.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.inner.__dlpack_device__()


class OldDlpack(OnlyDlpack):
    """An array of a library that does not know DLPack 1.0, whose capsules say whether they are read-only."""

    def __dlpack__(self) -> Any:  # type: ignore[override]
        return self.inner.__dlpack__()


# What is refused


@pytest.mark.parametrize("call", ALL, ids=name_of)
@pytest.mark.parametrize("thing", [[1.0, 2.0], None, 1.5, "text", {}, object()], ids=repr)
def test_what_is_no_array_is_named(call: Callable[[Any], Any], thing: Any) -> None:
    with pytest.raises(rr.UsageError, match=rf"builtins\.{type(thing).__name__}.*numpy\.asarray"):
        call(thing)


@pytest.mark.parametrize("call", ALL, ids=name_of)
@pytest.mark.parametrize("dtype", ["M8[s]", "m8[ns]", "O", "U3", "S3", "g", "G", ">f4", ">i8", [("a", "i4")]], ids=str)
def test_unsupported_dtype(call: Callable[[Any], Any], dtype: Any) -> None:
    values = np.zeros(2, dtype)
    with pytest.raises(rr.UsageError, match=r"dtype must be one of int8, .*bfloat16, .*bool: it is .*Convert"):
        call(values)


@pytest.mark.parametrize("call", ALL, ids=name_of)
@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "int4"])
def test_small_dtypes_of_ml_dtypes_are_refused(call: Callable[[Any], Any], dtype: str) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="needs ml_dtypes")
    with pytest.raises(rr.UsageError, match=f"dtype must be one of .*: it is {dtype}"):
        call(np.ones(3, getattr(ml_dtypes, dtype)))


STRIDED: dict[str, Callable[[], Any]] = {
    "every second": lambda: np.arange(8.0)[::2],
    "column": lambda: np.ones((3, 3))[:, 0],
    "reversed": lambda: np.arange(3.0)[::-1],
    "Fortran order": lambda: np.ones((2, 3), order="F"),
    "stride 0": lambda: np.broadcast_to(np.float32(2), (3, 2)),
    "memoryview": lambda: memoryview(bytearray(8))[::2],
    "DLPack": lambda: OnlyDlpack(np.arange(8.0)[::2]),
}


@pytest.mark.parametrize("kind", [kind for kind in STRIDED if kind != "DLPack"])
@pytest.mark.parametrize("call", IN_PLACE, ids=name_of)
def test_in_place_needs_a_contiguous_array(call: Callable[[Any], Any], kind: str) -> None:
    with pytest.raises(rr.UsageError, match=r"contiguous.*of shape \(.*without underscore"):
        call(STRIDED[kind]())


@pytest.mark.parametrize("call", IN_PLACE, ids=name_of)
def test_in_place_needs_a_contiguous_array_of_any_library(call: Callable[[Any], Any]) -> None:
    with pytest.raises(rr.UsageError, match=r"contiguous.*OnlyDlpack"):
        call(STRIDED["DLPack"]())


@pytest.mark.parametrize("kind", list(STRIDED))
@pytest.mark.parametrize("call", OUT_OF_PLACE, ids=name_of)
def test_out_of_place_takes_any_strides(call: Callable[[Any], Any], kind: str) -> None:
    source = STRIDED[kind]()
    result = call(source)
    expected = np.asarray(source.inner if isinstance(source, OnlyDlpack) else source)
    assert result.flags.c_contiguous and result.flags.writeable
    assert result.dtype == expected.dtype
    np.testing.assert_array_equal(result, expected)


def read_only() -> np.ndarray[Any, Any]:
    values = np.ones(3)
    values.flags.writeable = False
    return values


READ_ONLY: dict[str, Callable[[], Any]] = {
    "numpy": read_only,
    "bytes": lambda: b"abc",
    "memoryview": lambda: memoryview(b"abcd").cast("i"),
    "scalar": lambda: np.float32(1),
    "DLPack": lambda: OnlyDlpack(read_only()),
    "old DLPack": lambda: OldDlpack(np.ones(3)),
}


@pytest.mark.parametrize("kind", list(READ_ONLY))
@pytest.mark.parametrize("call", IN_PLACE, ids=name_of)
def test_in_place_needs_a_writable_array(call: Callable[[Any], Any], kind: str) -> None:
    with pytest.raises(rr.UsageError, match=r"must be writable.*without underscore"):
        call(READ_ONLY[kind]())


@pytest.mark.parametrize("kind", list(READ_ONLY))
@pytest.mark.parametrize("call", OUT_OF_PLACE, ids=name_of)
def test_out_of_place_takes_a_read_only_array(call: Callable[[Any], Any], kind: str) -> None:
    result = call(READ_ONLY[kind]())
    assert result.flags.writeable


@pytest.mark.parametrize("call", [rr.allreduce, rr.allreduce_, rr.plan_allreduce], ids=name_of)
@pytest.mark.parametrize("op", [2, 6, -1, "sum", None, 1.0], ids=repr)
def test_unsupported_operator(call: Callable[..., Any], op: Any) -> None:
    with pytest.raises(rr.UsageError, match=f"op must be Sum, Average, Min, Max or Product.*{re.escape(repr(op))}"):
        call(np.ones(2), op)


def test_operator_of_another_library_is_not_taken_by_its_number() -> None:
    distributed = pytest.importorskip("torch.distributed", reason="needs torch")
    with pytest.raises(rr.UsageError, match="RedOpType"):
        rr.allreduce(np.ones(2), distributed.ReduceOp.SUM)


@pytest.mark.parametrize(
    ("dtype", "op"),
    [(bool, rr.Average), (np.complex64, rr.Min), (np.complex64, rr.Max), (np.complex128, rr.Min)],
    ids=str,
)
def test_operator_that_the_dtype_does_not_have(dtype: Any, op: rr.Op) -> None:
    for call in (rr.allreduce, rr.allreduce_, rr.plan_allreduce):
        with pytest.raises(rr.UsageError, match=f"{op.name} is not for {np.dtype(dtype).name}"):
            call(np.ones(2, dtype), op)


@pytest.mark.parametrize("root", [1, -1, 2**40, "0", 0.0, None], ids=repr)
def test_root_must_be_a_rank(root: Any) -> None:
    for call in (rr.broadcast, rr.broadcast_):
        with pytest.raises(rr.UsageError, match=f"root_rank must be a rank, 0 to 0: it is {re.escape(repr(root))}"):
            call(np.ones(2), root)


def test_usage_errors_are_value_errors() -> None:
    with pytest.raises(ValueError, match="array"):
        rr.allreduce(None)
    assert issubclass(rr.UsageError, rr.RingredError)
    assert rr.HorovodInternalError is rr.RingredError


# What is taken


def test_buffers_of_the_standard_library_in_place() -> None:
    for thing in (bytearray(b"abc"), array.array("d", [1, 2]), (ctypes.c_float * 3)(1, 2, 3), memoryview(bytearray(4))):
        before = bytes(thing)
        assert rr.allreduce_(thing) is thing
        assert rr.broadcast_(thing) is thing
        assert bytes(thing) == before


class Image(np.ndarray):  # type: ignore[type-arg]
    """A subclass of numpy's array."""


def test_subclasses_come_back_as_plain_arrays() -> None:
    image = np.ones((1, 2)).view(Image)
    for call in OUT_OF_PLACE:
        result = call(image)
        assert type(result) is np.ndarray and result.shape == (1, 2)
    assert rr.allreduce_(image) is image


def test_dlpack_object_in_and_out_of_place() -> None:
    inner = np.arange(6.0).reshape(2, 3)
    thing = OnlyDlpack(inner)
    assert rr.allreduce_(thing) is thing
    for call in OUT_OF_PLACE:
        result = call(thing)
        assert result.base is not inner
        np.testing.assert_array_equal(result, inner)


def test_dlpack_object_that_numpy_cannot_take() -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    thing = OnlyDlpack(torch.ones(3, dtype=torch.bfloat16))
    assert rr.allreduce_(thing) is thing
    for call in OUT_OF_PLACE:
        with pytest.raises(rr.UsageError, match=r"numpy must be able to take.*OnlyDlpack.*torch\.from_dlpack"):
            call(thing)


def test_shapes_up_to_the_most_dimensions_of_numpy() -> None:
    for shape in [(), (1,) * 32, (0,), (3, 0, 2)]:
        values = np.ones(shape, np.float32)
        for call in OUT_OF_PLACE:
            assert call(values).shape == shape
        assert rr.allreduce_(values) is values


def test_an_error_keeps_no_reference_to_the_array() -> None:
    values = bytearray(8)
    for call in IN_PLACE:
        with pytest.raises(rr.UsageError, match="contiguous"):
            call(memoryview(values)[::2])
    with pytest.raises(rr.UsageError, match="op"):
        rr.allreduce_(values, 2)  # type: ignore[arg-type]
    gc.collect()
    values.extend(b"more")  # refused while a buffer is exported


# Tensors


def tensors(torch: Any) -> dict[str, tuple[Any, str]]:
    """Tensors that no collective takes, and what the error says."""
    return {
        "sparse": (torch.ones(3).to_sparse(), "must be dense.*sparse_coo.*to_dense"),
        "compressed": (torch.ones(3, 3).to_sparse_csr(), "must be dense.*sparse_csr.*to_dense"),
        "meta": (torch.ones(3, device="meta"), "main memory.*on meta"),
        "float8": (torch.ones(3).to(torch.float8_e4m3fn), "dtype must be one of.*float8_e4m3fn"),
    }


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize("call", ALL, ids=name_of)
@pytest.mark.parametrize("kind", ["sparse", "compressed", "meta", "float8"])
def test_tensors_that_are_refused(call: Callable[[Any], Any], kind: str) -> None:
    tensor, words = tensors(pytest.importorskip("torch", reason="needs torch"))[kind]
    with pytest.raises(rr.UsageError, match=words):
        call(tensor)


@pytest.mark.filterwarnings("ignore:Accessing the data pointer")
def test_tensors_without_memory_are_refused() -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode() as mode:
        fake = mode.from_tensor(torch.ones(2))
        for call in (rr.allreduce_, rr.plan_allreduce):
            with pytest.raises(rr.UsageError, match="memory"):
                call(fake)


def test_lazy_conjugates_and_negatives_are_made_real() -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    for tensor in (torch.tensor([1 + 2j]).conj(), torch._neg_view(torch.ones(3))):
        for call in OUT_OF_PLACE:
            assert torch.equal(call(tensor), tensor)
        for call in IN_PLACE:
            with pytest.raises(rr.UsageError, match=r"lazy.*resolve"):
                call(tensor)


def test_gradients_do_not_flow_through_a_collective() -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    parameter = torch.nn.Parameter(torch.ones(2))
    for call in OUT_OF_PLACE:
        result = call(parameter)
        assert type(result) is torch.Tensor
        assert not result.requires_grad and result.grad_fn is None
        assert torch.equal(result, parameter.detach())
    assert rr.allreduce_(parameter) is parameter


def test_tensors_in_other_memory_formats_out_of_place() -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    image = torch.arange(96.0).view(2, 3, 4, 4).to(memory_format=torch.channels_last)
    for tensor in (image, torch.ones(1).expand(4), torch.arange(6).view(2, 3).t()):
        for call in OUT_OF_PLACE:
            result = call(tensor)
            assert result.is_contiguous() and torch.equal(result, tensor)
        with pytest.raises(rr.UsageError, match="contiguous"):
            rr.allreduce_(tensor)


# Arrays in the arena


@pytest.mark.parametrize("shape", [(), 0, 1, (0,), (3, 0), (2, 3), [2, 3], np.int64(4)], ids=str)
@pytest.mark.parametrize("dtype", ["f4", "c16", "?", "i1"])
def test_empty_gives_zeros(shape: Any, dtype: str) -> None:
    values = rr.empty(shape, dtype)
    expected = np.zeros(shape, dtype)
    assert values.shape == expected.shape and values.dtype == expected.dtype
    assert values.flags.c_contiguous and values.flags.writeable and values.flags.aligned
    np.testing.assert_array_equal(values, expected)
    values[...] = 1
    assert rr.allreduce_(values, rr.Sum) is values


def test_memory_that_is_used_again_is_zero_again() -> None:
    rr.empty(1000)[...] = 7
    assert not rr.empty(1000).any()


def test_empty_takes_bytes_and_structures_but_no_objects() -> None:
    assert rr.empty(3, [("a", "i4"), ("b", "f8")])["b"].tolist() == [0, 0, 0]
    assert rr.empty(3, "S0").shape == (3,)
    with pytest.raises(rr.UsageError, match="no Python objects"):
        rr.empty(3, object)
    with pytest.raises(rr.UsageError, match="no Python objects"):
        rr.empty(3, [("a", "O")])


@pytest.mark.parametrize("shape", [-1, (2, -1), (0, -3)], ids=str)
def test_empty_with_a_negative_extent(shape: Any) -> None:
    with pytest.raises(rr.UsageError, match="must not be negative"):
        rr.empty(shape)


@pytest.mark.parametrize("shape", [1 << 44, 1 << 62, (1 << 40, 1 << 40)], ids=str)
def test_empty_too_large(shape: Any) -> None:
    with pytest.raises(rr.SystemError, match=r"array of .*(does not fit|no arena).*(Raise|Use)"):
        rr.empty(shape, "f8")
    assert rr.empty(5).shape == (5,)


def test_views_keep_arena_memory() -> None:
    view = rr.empty(100_000)[10:20]
    view[...] = 3
    others = [rr.empty(100_000) for _ in range(3)]
    for other in others:
        other[...] = 1
    assert (view == 3).all()


def test_arena_memory_is_given_back() -> None:
    """A hundred arrays of 64 MiB, one after the other, fit where they would not fit side by side."""
    for _ in range(100):
        values = rr.empty(1 << 20, "f8")
        values[0] = values[-1] = 1
        del values


@pytest.mark.parametrize("call", IN_PLACE, ids=name_of)
def test_masked_arrays_are_refused(call: Callable[[Any], Any]) -> None:
    with pytest.raises(rr.UsageError, match=r"must not be masked.*filled"):
        call(np.ma.masked_array(np.ones(3), mask=[True, False, False]))


def test_an_output_that_overlaps_the_input_in_part_is_refused() -> None:
    values = np.arange(10.0)
    for source, out in ((values[:-1], values[1:]), (values[1:], values[:-1])):
        with pytest.raises(rr.UsageError, match="overlap in part"):
            rr.allreduce(source, rr.Sum, out=out)
    assert rr.allreduce(values[:5], rr.Sum, out=values[5:]).tolist() == [0, 1, 2, 3, 4]
    assert rr.allreduce(values, rr.Sum, out=values) is values


@pytest.mark.parametrize("call", [*OUT_OF_PLACE, rr.allgather, rr.allreduce_async, rr.broadcast_async], ids=name_of)
def test_masked_arrays_are_refused_out_of_place(call: Callable[[Any], Any]) -> None:
    with pytest.raises(rr.UsageError, match=r"must not be masked.*filled.*compressed"):
        call(np.ma.masked_array(np.ones(3), mask=[True, False, False]))


@pytest.mark.parametrize("call", [rr.allreduce, rr.allreduce_, rr.plan_allreduce, rr.allreduce_async], ids=name_of)
def test_an_op_is_no_bool_and_any_integer(call: Callable[..., Any]) -> None:
    for op in (True, False, np.True_, 1.0):
        with pytest.raises(rr.UsageError, match=f"op must be .*{re.escape(repr(op))}, of type"):
            call(np.ones(2), op)
    call(np.ones(2), np.int64(1))


@pytest.mark.parametrize("call", ALL, ids=name_of)
def test_tags_are_text(call: Callable[..., Any]) -> None:
    for tag in (3, None, [], "\udcff"):
        with pytest.raises(rr.UsageError, match="tag must be"):
            call(np.ones(2), tag=tag)
    call(np.ones(2), tag="größe")


def test_roots_are_integers() -> None:
    for root in (0.0, np.array([0]), "0", None):
        for call in (rr.broadcast, rr.broadcast_, rr.broadcast_async):
            with pytest.raises(rr.UsageError, match=r"root_rank must be a rank.*of type"):
                call(np.ones(2), root)
    assert rr.broadcast(np.ones(2), np.int64(0)).tolist() == [1, 1]  # type: ignore[arg-type]


def test_names_are_text() -> None:
    for name in (3, [], b"x", "\udcff"):
        for op in (rr.Sum, rr.Adasum):
            with pytest.raises(rr.UsageError, match="name must be"):
                rr.allreduce_async(np.ones(2), op, name=name)  # type: ignore[arg-type]
        with pytest.raises(rr.UsageError, match="name must be"):
            rr.barrier_async(name=name)  # type: ignore[arg-type]


@pytest.mark.parametrize("factor", [None, "2", 1j, float("nan"), float("inf"), 10**400], ids=lambda one: str(one)[:5])
def test_factors_are_finite_real_numbers(factor: Any) -> None:
    for call in (rr.allreduce_async, rr.allreduce_async_, rr.reducescatter):
        for option in ("prescale_factor", "postscale_factor"):
            with pytest.raises(rr.UsageError, match=f"{option} must be a finite real number"):
                call(np.ones(2), **{option: factor})


@pytest.mark.parametrize("bad", [None, [0], 0], ids=repr)
def test_sets_are_process_sets(bad: Any) -> None:
    values = np.ones(2)
    for call in (
        lambda: rr.allreduce_async(values, process_set=bad),
        lambda: rr.allreduce_async(values, rr.Adasum, process_set=bad),
        lambda: rr.broadcast_async(values, process_set=bad),
        lambda: rr.alltoall(values, process_set=bad),
        lambda: rr.reducescatter(values, process_set=bad),
        lambda: rr.join(process_set=bad),
        lambda: rr.check_replicas({}, process_set=bad),
        lambda: rr.stragglers(bad),
        lambda: rr.remove_process_set(bad),
    ):
        with pytest.raises(rr.UsageError, match=r"process_set must be a ProcessSet: it is .*of type"):
            call()


def test_handles_stay_in_their_process() -> None:
    handle = rr.allreduce_async(np.ones(2))
    for call in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(rr.UsageError, match="cannot be pickled or copied"):
            call(handle)
    with pytest.raises(rr.UsageError, match="takes a function"):
        handle.add_done_callback(3)  # type: ignore[arg-type]
    handle.wait()


def test_what_is_no_shape_or_dtype() -> None:
    for shape in (2.5, "ab", None, [1.0]):
        with pytest.raises(rr.UsageError, match="shape must be"):
            rr.empty(shape)  # type: ignore[arg-type]
    with pytest.raises(rr.UsageError, match="dtype must be one that numpy knows"):
        rr.empty(2, "nonsense")


def test_flights_go_to_a_file_that_can_be_written(tmp_path: Path) -> None:
    for path in (tmp_path / "none" / "file", "/dev/null/file"):
        with pytest.raises(rr.UsageError, match=r"a file that this rank may write"):
            rr.dump_flight_recorder(path)
    with pytest.raises(rr.UsageError, match="takes the path of a file"):
        rr.dump_flight_recorder(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("path", [None, 3, b"file", "a\0b", ""], ids=repr)
def test_a_timeline_goes_to_a_path(path: Any) -> None:
    with pytest.raises(rr.UsageError, match="start_timeline takes the path of a file"):
        rr.start_timeline(path)
