"""broadcast_optimizer_state: all ranks go on from the root's optimizer, as if they had loaded its checkpoint.

Invariant: parameters and gradients are not touched, and no step is taken; the root's optimizer is only read.

    1. The root sends its state and the options of its groups as one object, with a marker (shape and dtype) in place of
       each tensor.
    2. The others make the tensors that the markers describe.
    3. All tensors are broadcast in one operation.
    4. The others put state and options into their optimizers. What was in their state before is gone.

With fused=True each rank has a part of the state: all gather it before 1, and each keeps its part after 3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from ringred import world
from ringred.arguments import shown
from ringred.errors import UsageError
from ringred.objects import broadcast_object
from ringred.process_sets import ProcessSet, checked_set, global_process_set
from ringred.torch.parameters import broadcast_tensors, check_in_set


class Marker(NamedTuple):
    """Stands for a tensor that travels by itself."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    on_device: bool  # where the parameter is, which may be a GPU; else on the CPU


def broadcast_optimizer_state(
    optimizer: torch.optim.Optimizer,
    root_rank: int = 0,
    model: torch.nn.Module | None = None,
    process_set: ProcessSet = global_process_set,
) -> None:
    """Give all ranks the state and options of the root's optimizer. A collective.

    Works for any optimizer, a DistributedOptimizer or not, LBFGS too, before the first step and after; where the root
    has no state, the others have none afterwards. Learning rates and other options may be numbers or tensors.

    Args:
        optimizer: of the same class, over the same parameters in the same groups on all ranks.
        root_rank: the rank whose state wins: of the whole job, also with a process set.
        model: ignored, for Horovod's scripts.
        process_set: the ranks that take part.

    Raises:
        UsageError: this is no optimizer, root_rank is no rank of the set, or the state cannot be pickled.
        MismatchError: ranks have different parameter groups; raised on all of them, nothing is written.
        PeerLostError, TimeoutError: a rank died, left or did not come.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UsageError(
            f"optimizer must be a torch optimizer: it is {shown(optimizer)}. Pass the one "
            "that steps, wrapped in a DistributedOptimizer or not."
        )
    checked_set(process_set).rank_of(root_rank, "root_rank")
    check_in_set(process_set, "The parameter groups of an optimizer", _describe(optimizer))
    is_root = world.rank() == root_rank
    is_spread = getattr(optimizer, "state_is_spread", False)
    state = optimizer.state_dict() if is_root or is_spread else None
    tensors: list[torch.Tensor] = []
    outline: Any = None
    if is_root:
        outline = _mapped(state, lambda value: _take_out(value, tensors))
    outline = broadcast_object(outline, root_rank, name="optimizer_state.outline", process_set=process_set)  # 1
    if not is_root:
        movable: set[int] = set()
        filled = _mapped(outline, lambda value: _make(value, tensors, movable))  # 2
    broadcast_tensors(tensors, root_rank, "optimizer_state.tensors", process_set)  # 3
    if not is_root:  # 4
        optimizer.load_state_dict(filled) if is_spread else _install(optimizer, filled, movable)


def _describe(optimizer: torch.optim.Optimizer) -> list[str]:
    return [
        f"group {number}: {tuple(parameter.shape)}, {parameter.dtype}"
        for number, group in enumerate(optimizer.param_groups)
        for parameter in group["params"]
    ]


def _take_out(value: Any, tensors: list[torch.Tensor]) -> Any:
    """Return a marker for a dense tensor, which goes to the list; other values are pickled as they are."""
    if type(value) not in (torch.Tensor, torch.nn.Parameter) or value.layout != torch.strided:
        return value
    tensors.append(value.detach())
    return Marker(tuple(value.shape), value.dtype, not value.is_cpu)


def _make(value: Any, tensors: list[torch.Tensor], movable: set[int]) -> Any:
    """Return a tensor on the CPU for a marker, which goes to the list; and its id to the set if it is to be moved."""
    if not isinstance(value, Marker):
        return value
    tensors.append(torch.empty(value.shape, dtype=value.dtype, device="cpu"))
    if value.on_device:
        movable.add(id(tensors[-1]))
    return tensors[-1]


def _mapped(value: Any, function: Callable[[Any], Any]) -> Any:
    """Copy nested dicts, lists and tuples, with `function` applied to what they hold."""
    if isinstance(value, dict):
        return {key: _mapped(one, function) for key, one in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_mapped(one, function) for one in value)
    return function(value)


def _install(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any], movable: set[int]) -> None:
    """Load a state_dict, but with the dtypes that it has: load_state_dict() would cast state to the parameters'.

    Tensors whose ids are in `movable` go to the devices of their parameters, a group's to that of its first one.
    """

    def brought(value: Any, parameter: Any) -> Any:
        if parameter is None:  # of a group without any, or state that is no parameter's
            return value
        return _mapped(value, lambda one: one.to(parameter.device) if id(one) in movable else one)

    if set(state_dict) != {"state", "param_groups"}:
        optimizer.load_state_dict(state_dict)  # an optimizer of the user's, with more to it
        return
    by_number: dict[int, torch.Tensor] = {}
    for group, packed in zip(optimizer.param_groups, state_dict["param_groups"], strict=True):
        by_number.update(zip(packed["params"], group["params"], strict=True))
        home = next(iter(group["params"]), None)
        group.update({key: brought(value, home) for key, value in packed.items() if key != "params"})
    optimizer.state.clear()
    for number, state in state_dict["state"].items():
        parameter = by_number.get(number)
        optimizer.state[number if parameter is None else parameter] = brought(state, parameter)
