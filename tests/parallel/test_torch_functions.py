"""broadcast_parameters, broadcast_optimizer_state, objects: everybody goes on from the root's, nothing else changes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from training_data import assert_same_on_all_ranks

import ringred as rr
import ringred.torch as hvd
from ringred.errors import MismatchError

# broadcast_parameters


def tensors_of(rank: int) -> dict[str, torch.Tensor]:
    """A state_dict with everything that a model may hold, with values that tell the rank."""
    value = rank + 1
    return {
        "float": torch.full((3, 4), float(value)),
        "half": torch.full((5,), value, dtype=torch.float16),
        "bfloat": torch.full((5,), value, dtype=torch.bfloat16),
        "double": torch.full((2, 2), value, dtype=torch.float64),
        "flags": torch.tensor([True, rank == 0, rank != 0]),
        "count": torch.tensor(value),
        "scalar": torch.tensor(float(value)),
        "transposed": torch.arange(12.0).view(3, 4).t() * value,
        "strided": (torch.arange(10) * value)[::2],
        "complex": torch.full((2,), complex(value, -value), dtype=torch.complex64),
        "conjugate": torch.full((2,), complex(value, -value), dtype=torch.complex64).conj(),
        "nothing": torch.empty(0, 3),
        "large": torch.full((600_001,), float(value)),
        "large transposed": (torch.arange(600_000.0).view(600, 1000) + value).t(),
    }


@pytest.mark.parametrize("as_pairs", [False, True])
def test_broadcast_parameters(as_pairs: bool) -> None:
    for root_rank in {0, hvd.size() - 1}:
        own, expected = tensors_of(hvd.rank()), tensors_of(root_rank)
        hvd.broadcast_parameters(iter(own.items()) if as_pairs else own, root_rank=root_rank)
        for name, tensor in own.items():
            assert tensor.stride() == expected[name].stride()
            assert torch.equal(tensor, expected[name]), name


def test_broadcast_reaches_parameters_and_buffers_of_a_model() -> None:
    torch.manual_seed(hvd.rank())
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model(torch.randn(2, 1, 5, 5))
    hvd.broadcast_parameters(model.state_dict())
    assert_same_on_all_ranks(list(model.state_dict().values()))
    hvd.broadcast_parameters(model.named_parameters())
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in model.parameters())


@pytest.mark.parametrize("bad", [3, torch.ones(3), "text", [torch.ones(1)], {"a": 1.0}, [("a", None)], None])
def test_broadcast_parameters_refuses(bad: object) -> None:
    with pytest.raises(ValueError, match="name"):
        hvd.broadcast_parameters(bad)  # type: ignore[arg-type]


def test_broadcast_of_different_models_is_an_error_everywhere() -> None:
    if hvd.size() == 1:
        pytest.skip("needs two ranks")
    shape = (2, 3) if hvd.rank() == 0 else (3, 2)
    tensor = torch.full(shape, float(hvd.rank()))
    with pytest.raises(rr.MismatchError):
        hvd.broadcast_parameters({"weight": tensor})
    assert torch.equal(tensor, torch.full(shape, float(hvd.rank())))
    hvd.barrier()


# broadcast_optimizer_state


def make_model(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1)).to(dtype)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        inputs = torch.randn(5, 3, generator=generator).to(next(model.parameters()).dtype)

        def closure(inputs: torch.Tensor = inputs) -> torch.Tensor:
            optimizer.zero_grad()
            loss: torch.Tensor = model(inputs).square().mean()
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        optimizer.step(closure)


def flattened(value: Any) -> list[Any]:
    """All that is in a nested state, tensors as lists of numbers."""
    if isinstance(value, dict):
        return [item for key in sorted(value, key=str) for item in [str(key), *flattened(value[key])]]
    if isinstance(value, (list, tuple)):
        return [item for one in value for item in flattened(one)]
    return [str(value.dtype), *value.reshape(-1).tolist()] if isinstance(value, torch.Tensor) else [value]


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.1),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, amsgrad=True),
    "tensor lr": lambda parameters: torch.optim.Adam(parameters, lr=torch.tensor(0.1), foreach=False),
    "adagrad": lambda parameters: torch.optim.Adagrad(parameters),
    "rprop": lambda parameters: torch.optim.Rprop(parameters),
    "lbfgs": lambda parameters: torch.optim.LBFGS(parameters, max_iter=3),
    "wrapped": lambda parameters: hvd.DistributedOptimizer(torch.optim.Adam(parameters)),
}


@pytest.mark.parametrize("kind", sorted(OPTIMIZERS))
@pytest.mark.parametrize("who", ["root only", "all but the root", "everybody"])
def test_state_of_the_root_wins(kind: str, who: str) -> None:
    """The ranks' optimizers are apart in state and options; some have no state at all."""
    if kind == "wrapped" and who != "everybody":
        pytest.skip("ranks of a DistributedOptimizer step together")
    rank, root = hvd.rank(), hvd.size() - 1
    model = make_model(seed=0 if kind == "wrapped" else rank)  # which refuses models that differ
    optimizer = OPTIMIZERS[kind](model.parameters())
    trained = {"root only": rank == root, "all but the root": rank != root, "everybody": True}[who]
    train(model, optimizer, 2 if trained else 0, seed=rank)
    optimizer.param_groups[0]["extra"] = f"of rank {rank}"
    if kind != "tensor lr":
        optimizer.param_groups[0]["lr"] = 0.5 + rank
    before = copy.deepcopy(model.state_dict()), [copy.deepcopy(parameter.grad) for parameter in model.parameters()]
    on_root = hvd.broadcast_object(flattened(optimizer.state_dict()), root)

    hvd.broadcast_optimizer_state(optimizer, root_rank=root)

    assert flattened(optimizer.state_dict()) == on_root
    assert optimizer.param_groups[0]["extra"] == f"of rank {root}"
    assert flattened(model.state_dict()) == flattened(before[0])
    assert flattened([parameter.grad for parameter in model.parameters()]) == flattened(before[1])

    hvd.broadcast_parameters(model.state_dict(), root)
    train(model, optimizer, 2, seed=5)
    hvd.check_replicas(model, optimizer)


def test_state_keeps_its_dtypes() -> None:
    """load_state_dict would cast it to the dtype of the parameters."""
    model = make_model(dtype=torch.bfloat16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if hvd.rank() == 0:
        for parameter in model.parameters():
            optimizer.state[parameter]["master"] = parameter.detach().float()
            optimizer.state[parameter]["flags"] = parameter.detach() > 0
    hvd.broadcast_optimizer_state(optimizer)
    for parameter in model.parameters():
        state = optimizer.state[parameter]
        assert state["master"].dtype == torch.float32 and torch.equal(state["master"], parameter.detach().float())
        assert torch.equal(state["flags"], parameter.detach() > 0)


def test_schedulers_go_on_with_the_groups() -> None:
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0 if hvd.rank() == 0 else 7.0)
    group = optimizer.param_groups[0]
    hvd.broadcast_optimizer_state(optimizer)
    assert optimizer.param_groups[0] is group and group["lr"] == 1.0


def test_different_groups_are_a_mismatch_everywhere() -> None:
    if hvd.size() == 1:
        pytest.skip("needs two ranks")
    parameters = list(make_model().parameters())
    optimizer = torch.optim.SGD(parameters[: 4 if hvd.rank() else 2], lr=0.1)
    with pytest.raises(MismatchError, match="entry 2 is none on rank 0"):
        hvd.broadcast_optimizer_state(optimizer)
    hvd.barrier()


def test_within_a_process_set() -> None:
    if hvd.size() < 2:
        pytest.skip("needs two ranks")
    last = hvd.size() - 1
    pair = hvd.add_process_set([0, last])
    try:
        if pair.included():
            model = make_model(seed=hvd.rank())
            optimizer = torch.optim.SGD(model.parameters(), lr=float(1 + hvd.rank()), momentum=0.9)
            train(model, optimizer, hvd.rank(), seed=0)
            hvd.broadcast_optimizer_state(optimizer, last, process_set=pair)
            hvd.broadcast_parameters(model.named_parameters(), last, process_set=pair)
            assert optimizer.param_groups[0]["lr"] == 1.0 + last
            hvd.check_replicas(model, optimizer, process_set=pair)
            assert hvd.allgather_object(hvd.rank(), process_set=pair) == [0, last]
            assert hvd.broadcast_object(hvd.rank(), last, process_set=pair) == last
    finally:
        hvd.barrier()
        hvd.remove_process_set(pair)


def test_objects() -> None:
    assert hvd.broadcast_object({"rank": hvd.rank()}, root_rank=hvd.size() - 1, name="object") == {
        "rank": hvd.size() - 1
    }
    gathered = hvd.allgather_object(["x"] * hvd.rank())
    assert gathered == [["x"] * rank for rank in range(hvd.size())]
