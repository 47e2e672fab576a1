"""Groups of parameters whose gradients travel together, as the user names them.

Invariant: a group lists indices of the optimizer's parameters; no index is in two groups.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from ringred.arguments import is_whole
from ringred.errors import UsageError
from ringred.torch.agreement import NamedTensor


def form_groups(parameters: Sequence[NamedTensor], groups: Any) -> list[list[int]]:
    """Return the groups that Horovod's argument asks for; parameters in none of them travel alone.

    Args:
        parameters: the optimizer's.
        groups: None or 0 for no groups, a number of groups of about equal length (no more than there are parameters),
            or a list of lists of parameters.
            Tensors that are no parameters of the optimizer are left out.

    Raises:
        UsageError: these are none of that, or a parameter is in two groups.
    """
    if groups is None:
        return []
    if is_whole(groups) and groups >= 0:
        return _split(len(parameters), min(groups, len(parameters)))
    if not isinstance(groups, (list, tuple)):
        raise UsageError(f"groups must be a non-negative number or a list of lists of parameters: it is {groups!r}.")
    indices = {id(parameter): index for index, (_, parameter) in enumerate(parameters)}
    seen: set[int] = set()
    result = []
    for group in groups:
        members = _checked(group)
        if any(id(parameter) in seen for parameter in members) or len({id(one) for one in members}) < len(members):
            raise UsageError("A parameter may appear in groups once: one of them appears twice.")
        seen.update(id(parameter) for parameter in members)
        known = [indices[id(parameter)] for parameter in members if id(parameter) in indices]
        if known:
            result.append(known)
    return result


def _checked(group: Any) -> list[torch.Tensor]:
    if isinstance(group, Iterable) and not isinstance(group, torch.Tensor):
        members = list(group)
        if all(isinstance(member, torch.Tensor) for member in members):
            return members
    raise UsageError(
        f"groups must consist of lists of parameters: it holds a {type(group).__qualname__} that is none. Pass lists "
        "of layer.parameters()."
    )


def _split(count: int, groups: int) -> list[list[int]]:
    """Cut 0 ... count - 1 into pieces of about equal length."""
    if groups == 0:
        return []
    ends = [count * number // groups for number in range(groups + 1)]
    return [list(range(start, end)) for start, end in itertools.pairwise(ends) if start < end]
