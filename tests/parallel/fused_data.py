"""Twins for tests of the fused step: parameters that it updates, and copies that torch updates with averages.

Gradients are chosen: of magnitude 0.5 to 1.5, with signs that are the same on all ranks. So averages are far from 0,
and distances between twins have a bound. With u = eps, csrc/reduce/update.h states for one step from one state at most
2 u of what is added in a parameter, a momentum buffer and exp_avg, 4 u in exp_avg_sq. The largest rates in use are 0.05
for SGD with a momentum of 0.9, 0.01 for Adam, and a decay of 0.01. Then:

- SGD: gradients with decay are below 2, the buffer below 2 / (1 - momentum) = 20, and its error E follows
  E' <= 0.9 E + 2 u 20: it stays below 400 u. A parameter (below 4) gets at most
  2 u (4 + 0.05 * 2 * 20) + 0.05 * 2 * 400 u = 52 u a step.
- Adam: exp_avg has an error of at most 2 u of 2 / (1 - beta1), 40 u, relative to its magnitude 20 u; exp_avg_sq one of
  4 u a step, which its root halves: after n steps 2 n u. The quotient is below 2 / 0.5 where all ranks have gradients,
  and below 16 where it is one of four for some steps. A parameter gets at most
  2 u (4 + 0.01 * 16) + 0.01 * 16 (20 + 2 n) u, for n = 50 below 28 u a step.
- Decay brings errors of parameters back, times 0.01: within 50 steps that is less than a factor of 1.3.

The averages of both twins have the same bits. Hence `bound`: 80 u a step for parameters, and 500 u for states, relative
to values above 1. What a wrong rate, order or sign does is larger than 1e-6, which is 5e9 u of float64.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

import ringred as rr
import ringred.torch as hvd

Make = Callable[[Any], torch.optim.Optimizer]

SHAPES: list[tuple[int, ...]] = [(7, 5), (7,), (), (0,), (3, 2, 2), (129,)]


def generator(*seeds: object) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(repr(seeds).encode()))


def make_parameters(
    shapes: Iterable[tuple[int, ...]] = SHAPES, dtype: torch.dtype = torch.float64
) -> list[nn.Parameter]:
    """Equal on all ranks, of magnitude 0.5 to 1.5."""
    return [nn.Parameter(numbers(shape, dtype, ("parameter", index))) for index, shape in enumerate(shapes)]


def numbers(shape: Sequence[int], dtype: torch.dtype, signs: tuple[object, ...], *seeds: object) -> torch.Tensor:
    """Numbers of magnitude 0.5 to 1.5; their signs follow from `signs` alone."""
    sign = torch.rand(tuple(shape), generator=generator(*signs)).sub(0.5).sign()
    magnitude = 0.5 + torch.rand(tuple(shape), generator=generator(*signs, *seeds))
    return torch.where(sign == 0, 1.0, sign).mul(magnitude).to(dtype)


def gradient_of(rank: int, step: int, index: int, like: torch.Tensor) -> torch.Tensor:
    """What `rank` has as gradient of parameter number `index`."""
    return numbers(like.shape, like.dtype, ("gradient", step, index), rank)


def gradients_of(rank: int, step: int, parameters: Sequence[torch.Tensor]) -> list[torch.Tensor | None]:
    return [gradient_of(rank, step, index, parameter) for index, parameter in enumerate(parameters)]


def give_gradients(parameters: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor | None]) -> None:
    """Run a backward pass that adds exactly these gradients; none where there is no gradient."""
    terms = [(p * g).sum().double() for p, g in zip(parameters, gradients, strict=True) if g is not None]
    if terms:
        torch.stack(terms).sum().backward()  # type: ignore[no-untyped-call]


def averages(
    gradients: Sequence[torch.Tensor | None],
    parameters: Sequence[torch.Tensor],
    exists: Sequence[bool],
    op: rr.Op = hvd.Average,
    members: rr.ProcessSet = hvd.global_process_set,
) -> list[torch.Tensor | None]:
    """What allreduce makes of the ranks' gradients; `exists` tells which of them some rank has."""
    own = [torch.zeros_like(parameter).detach() for parameter in parameters]
    for message, gradient in zip(own, gradients, strict=True):
        if gradient is not None:
            message.copy_(gradient)
    results: Iterator[torch.Tensor] = iter([])
    if any(exists):
        sent = [message for message, there in zip(own, exists, strict=True) if there]
        results = iter(hvd.grouped_allreduce(sent, op=op, process_set=members))
    return [message.copy_(next(results)) if there else None for message, there in zip(own, exists, strict=True)]


def bound(steps: int, dtype: torch.dtype, each: float = 80.0) -> float:
    return each * steps * torch.finfo(dtype).eps


def assert_within(ours: torch.Tensor, theirs: torch.Tensor, most: float) -> None:
    """At most `most` apart, relative to magnitudes above 1; of the same dtype and shape."""
    assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
    distance = (ours.detach() - theirs.detach()).abs()
    allowed = most * theirs.detach().abs().clamp(min=1.0)
    assert bool((distance <= allowed).all()), (float(distance.max()), most)


def assert_same_states(ours: dict[str, Any], theirs: dict[str, Any], most: float) -> None:
    """Two state_dict() have the same keys and options, and tensors of the same kind that are at most `most` apart."""
    assert ours.keys() == theirs.keys()
    assert ours["state"].keys() == theirs["state"].keys()
    for number, wanted in theirs["state"].items():
        found = ours["state"][number]
        assert set(found) == set(wanted)
        for key, value in wanted.items():
            if not isinstance(value, torch.Tensor):
                assert found[key] == value
                continue
            assert found[key].layout == value.layout and not found[key].requires_grad
            assert found[key].stride() == value.stride()
            if key == "step":
                assert torch.equal(found[key], value) and found[key].dtype == value.dtype
            else:
                assert_within(found[key], value, most)
    assert len(ours["param_groups"]) == len(theirs["param_groups"])
    for found, wanted in zip(ours["param_groups"], theirs["param_groups"], strict=True):
        assert found == wanted


class Twins:
    """Parameters under a fused optimizer, and copies of them under a plain one.

    Args:
        parameters: equal on all ranks.
        make: the plain optimizer of given parameters.
        options: of the DistributedOptimizer.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], make: Make, **options: Any) -> None:
        self.ours, self.theirs = list(parameters), copy.deepcopy(list(parameters))
        self.members: rr.ProcessSet = options.get("process_set", hvd.global_process_set)
        self.op = options.get("op", hvd.Average)
        self.plain = make(self.theirs)
        named = [(f"p{index}", parameter) for index, parameter in enumerate(self.ours)]
        self.fused = hvd.DistributedOptimizer(make(self.ours), named, fused=True, **options)
        self.steps = 0

    def step(self, exists: Callable[[int, int], bool] = lambda rank, index: True) -> None:
        """One step of both; `exists` tells which gradients a rank has."""
        rank, indices = self.members.rank(), range(len(self.ours))
        own: list[torch.Tensor | None] = [
            gradient_of(rank, self.steps, index, self.ours[index]) if exists(rank, index) else None for index in indices
        ]
        somewhere = [any(exists(one, index) for one in range(self.members.size())) for index in indices]
        self.fused.zero_grad()
        give_gradients(self.ours, own)
        self.fused.step()
        for parameter, average in zip(
            self.theirs, averages(own, self.theirs, somewhere, self.op, self.members), strict=True
        ):
            parameter.grad = average
        self.plain.step()
        self.steps += 1

    def check(self, replicas: bool = True) -> None:
        """Twins are within the bound, and all ranks have the same bits."""
        for ours, theirs in zip(self.ours, self.theirs, strict=True):
            assert_within(ours, theirs, bound(self.steps, ours.dtype))
        if replicas:
            rr.check_replicas({str(n): p.detach() for n, p in enumerate(self.ours)}, process_set=self.members)
