"""check_replicas: what differs is named on all ranks alike, and what does not differ is not."""

from __future__ import annotations

import copy
import os
import re
from typing import Any

import numpy as np
import pytest
import torch

import ringred as rr
from ringred.errors import ReplicaError
from ringred.replicas import check_replicas

ALONE = pytest.mark.skipif("rr.size() == 1", reason="takes two ranks")


def last() -> int:
    return rr.size() - 1


def error_of(call: Any, kind: type[Exception] = rr.MismatchError) -> str:
    """The text of the error that the call raises, after a check that all ranks have the same one."""
    with pytest.raises(kind) as caught:
        call()
    text = str(caught.value)
    data = np.frombuffer(text.encode().ljust(4000), np.uint8)
    assert (rr.broadcast(data, 0) == data).all()
    return text


def model() -> torch.nn.Module:
    torch.manual_seed(5)
    return torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 3))


def trained(network: torch.nn.Module, kind: str = "Adam") -> torch.optim.Optimizer:
    """An optimizer that has made one step, alike on all ranks."""
    optimizer: torch.optim.Optimizer = getattr(torch.optim, kind)(network.parameters(), lr=0.1)
    network(torch.randn(4, 7, generator=torch.Generator().manual_seed(3))).square().sum().backward()
    optimizer.step()
    return optimizer


@pytest.mark.parametrize("kind", ["Adam", "SGD", "AdamW", "Adagrad"])
def test_equal_models_and_optimizers(kind: str) -> None:
    network = model()
    assert check_replicas(network) is None
    assert check_replicas(network, trained(network, kind)) is None


@ALONE
def test_first_parameter_that_differs_is_named_with_ranks_and_elements() -> None:
    network = model()
    if rr.rank() == last():
        with torch.no_grad():
            network[2].weight[1, 2:4] += 1
            network[2].bias[0] += 1
    text = error_of(lambda: check_replicas(network), ReplicaError)
    assert "'2.weight' (float32, shape (3, 5))" in text
    assert f"rank {last()} differs in 2 of 15 elements, first in number 7." in text
    assert "1 more of the tensors differ" in text
    check_replicas(model())


@ALONE
def test_buffers_are_compared_too() -> None:
    network = model()
    if rr.rank() == 0:
        network[1].num_batches_tracked += 1
    assert "'1.num_batches_tracked' (int64, shape ())" in error_of(lambda: check_replicas(network))


@pytest.mark.skipif("rr.size() < 3", reason="takes a majority")
def test_the_majority_is_right() -> None:
    text = error_of(lambda: check_replicas({"x": np.full(3, float(rr.rank() == 0))}))
    assert "compared with ranks 1, 2, " in text
    assert "rank 0 differs in 3 of 3 elements" in text


@ALONE
@pytest.mark.parametrize(
    ("key", "change", "words"),
    [
        ("state", lambda state: state["exp_avg"].flatten()[3:].zero_(), "exp_avg of 0.weight in the optimizer"),
        ("state", lambda state: state["step"].add_(1), "step of 0.weight in the optimizer"),
        ("group", lambda group: group.update(lr=0.2), "lr of the optimizer's group 0"),
        ("group", lambda group: group.update(betas=(0.9, 0.9)), "betas of the optimizer's group 0"),
    ],
)
def test_optimizer_state_and_numbers_are_compared(key: str, change: Any, words: str) -> None:
    network = model()
    optimizer = trained(network)
    if rr.rank() == last():
        change(optimizer.state[network[0].weight] if key == "state" else optimizer.param_groups[0])
    assert words in error_of(lambda: check_replicas(network, optimizer))


@ALONE
def test_state_that_only_one_rank_has() -> None:
    network = model()
    optimizer = trained(network) if rr.rank() == 0 else torch.optim.Adam(network.parameters(), lr=0.1)
    for parameter in network.parameters():  # the step has moved them
        rr.broadcast_(parameter.detach(), 0)
    for buffer in network.buffers():
        rr.broadcast_(buffer, 0)
    text = error_of(lambda: check_replicas(network, optimizer))
    assert "exp_avg of 0.weight in the optimizer' (float32, shape (5, 7)) on rank 0; " in text


@ALONE
@pytest.mark.parametrize(
    ("mine", "words"),
    [
        ({"b": np.ones(3)}, "'b' (float64, shape (3,))"),
        ({"a": np.ones(3, np.float32)}, "'a' (float32, shape (3,))"),
        ({"a": np.ones((3, 1))}, "'a' (float64, shape (3, 1))"),
        ({}, "none"),
        ({"a": np.ones(3), "b": np.ones(2)}, "'b' (float64, shape (2,))"),
    ],
)
def test_names_dtypes_and_shapes_are_compared(mine: dict[str, Any], words: str) -> None:
    text = error_of(lambda: check_replicas(mine if rr.rank() == last() else {"a": np.ones(3)}))
    assert re.search(re.escape(words) + rf" on rank {last()}", text), text


NAN = np.array([0x7FC00001], np.uint32).view(np.float32)


@pytest.mark.parametrize(
    "values",
    [
        NAN,
        np.zeros(0),
        np.array(3.5),
        np.arange(24).reshape(4, 6)[::2, ::3],
        np.array([True, False]),
        np.array([1j, np.nan]),
        torch.arange(6.0).bfloat16(),
        torch.tensor(2.5),
        torch.arange(12).reshape(3, 4).t(),
        torch.tensor([1 + 2j]).conj(),
        torch.tensor([float("nan")]),
        torch.empty(0, 3),
        torch.ones(5).expand(3, 5),
        torch.ones(3, requires_grad=True),
    ],
    ids=lambda values: f"{type(values).__name__} {values.dtype} {tuple(values.shape)}",
)
def test_kinds_of_arrays(values: Any) -> None:
    check_replicas({"x": values})
    check_replicas(iter([("x", values)]))


@ALONE
@pytest.mark.parametrize(
    ("ours", "theirs", "count"),
    [
        (np.array([0.0, 1.0]), np.array([-0.0, 1.0]), 1),
        (NAN, NAN.view(np.uint32).__add__(1).view(np.float32), 1),
        (np.array(1), np.array(2), 1),
        (np.arange(6).reshape(2, 3).T, np.arange(6).reshape(3, 2), 4),
        (np.array([1j, 2j, 3j]), np.array([1j, 2, 3]), 2),
        (torch.arange(300).bfloat16(), -torch.arange(300).bfloat16(), 300),
        (torch.tensor([True, False]), torch.tensor([True, True]), 1),
    ],
    ids=["zeros", "nans", "0-dim", "strided", "complex", "bfloat16", "bool"],
)
def test_elements_are_counted_by_their_bits(ours: Any, theirs: Any, count: int) -> None:
    text = error_of(lambda: check_replicas([("x", theirs if rr.rank() == last() else ours)]))
    assert f"rank {last()} differs in {count} of " in text


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (5, "a torch module, a mapping from name to array, or pairs"),
        (torch.ones(3), "a torch module"),
        ([torch.ones(3)], "entry 0 is a Tensor"),
        ({"x": np.array([object()])}, "compares plain values"),
        ({"x": torch.eye(2).to_sparse()}, "must be dense"),
        ({3: torch.ones(2)}, "entry 0 is a tuple"),
    ],
    ids=["number", "tensor", "list", "objects", "sparse", "keys"],
)
def test_wrong_arguments(wrong: Any, words: str) -> None:
    with pytest.raises(rr.UsageError, match=words):
        check_replicas(wrong)


@ALONE
def test_wrong_argument_on_one_rank_is_an_error_on_all() -> None:
    if rr.rank() == 0:
        with pytest.raises(rr.UsageError, match="it got a int"):
            check_replicas(5)
    else:
        with pytest.raises(rr.MismatchError, match="All ranks must list their tensors: rank 0 could not"):
            check_replicas({})
    with pytest.raises(rr.UsageError, match="optimizer must be"):
        check_replicas({}, optimizer=3)


def test_nothing_is_changed() -> None:
    network = model()
    optimizer = trained(network)
    before = copy.deepcopy((network.state_dict(), optimizer.state_dict()))
    optimizer.param_groups[0]["lr"] = 0.1 + rr.rank()
    with pytest.raises(rr.MismatchError) if rr.size() > 1 else open(os.devnull):
        check_replicas(network, optimizer)
    optimizer.param_groups[0]["lr"] = 0.1
    after = (network.state_dict(), optimizer.state_dict())
    assert str(before) == str(after)


def test_many_tensors() -> None:
    tensors = {f"tensor {number}": torch.full((number % 7,), number) for number in range(3000)}
    check_replicas(tensors)
    if rr.size() > 1:
        tensors["tensor 2999"][0] = rr.rank()
        assert "'tensor 2999'" in error_of(lambda: check_replicas(tensors))
