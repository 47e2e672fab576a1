"""Names for the parameters of an optimizer: what error messages say, and what ranks compare.

Invariant: the result lists every parameter of the optimizer exactly once, in the optimizer's order, each name once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch

from ringred.errors import UsageError
from ringred.torch.agreement import NamedTensor


def name_parameters(
    param_groups: list[dict[str, Any]], named_parameters: Iterable[NamedTensor] | None
) -> list[NamedTensor]:
    """Pair every parameter in `param_groups` with its name.

    Without `named_parameters` the names are those that the groups carry (`param_names`, torch 2.6 and newer), and
    otherwise `parameter.<group>.<index>`.

    Raises:
        UsageError: the entries are not (name, tensor) pairs, a name occurs twice, or a parameter has no name.
    """
    given = None if named_parameters is None else check_pairs(named_parameters, "named_parameters")
    names = {} if given is None else {id(tensor): name for name, tensor in given}
    result, unnamed = [], []
    for group_index, group in enumerate(param_groups):
        own_names = group.get("param_names")
        for index, parameter in enumerate(group["params"]):
            if given is None:
                default = f"parameter.{group_index}.{index}"
                result.append((own_names[index] if own_names else default, parameter))
            elif id(parameter) in names:
                result.append((names[id(parameter)], parameter))
            else:
                unnamed.append(f"group {group_index} index {index} of shape {tuple(parameter.shape)}")
    if unnamed:
        raise UsageError(
            f"named_parameters must name every parameter of the optimizer; {len(unnamed)} have no name: "
            f"{_some(unnamed)}. Pass model.named_parameters() of the whole model, or leave named_parameters out."
        )
    _check_unique([name for name, _ in result], "the optimizer's parameters")
    return result


def check_pairs(pairs: Iterable[Any], what: str) -> list[NamedTensor]:
    """Return `pairs` as a list, after checking that it holds (name, tensor) pairs with distinct names."""
    if not isinstance(pairs, Iterable):
        raise UsageError(
            f"{what} must hold pairs (name, tensor); it is a {type(pairs).__name__}. Pass model.named_parameters()."
        )
    entries = list(pairs)
    for index, entry in enumerate(entries):
        is_pair = isinstance(entry, tuple) and len(entry) == 2
        if not (is_pair and isinstance(entry[0], str) and isinstance(entry[1], torch.Tensor)):
            got = f"({', '.join(type(part).__name__ for part in entry)})" if is_pair else type(entry).__name__
            raise UsageError(
                f"{what} must hold pairs (name, tensor); entry {index} is {got}. Pass model.named_parameters()."
            )
    _check_unique([name for name, _ in entries], what)
    return entries


def _check_unique(names: list[str], what: str) -> None:
    duplicates = sorted(name for name, count in Counter(names).items() if count > 1)
    if duplicates:
        raise UsageError(
            f"Names must be distinct within {what}; {len(duplicates)} occur more than once: {_some(duplicates)}. "
            "Give each model a prefix of its own when you chain several named_parameters()."
        )


def _some(items: list[str]) -> str:
    return ", ".join(items[:6]) + (", ..." if len(items) > 6 else "")
