"""Sizes of gradients: their squares, and factors for all of them at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch


def scale(gradients: Sequence[torch.Tensor], factor: float) -> None:
    """Multiply gradients in place."""
    lazy = [one for one in gradients if one.is_conj() or one.is_neg()]  # these _foreach_mul_ does not take
    if gradients and not lazy:
        torch._foreach_mul_(list(gradients), factor)
        return
    for one in gradients:
        one.mul_(factor)


def sum_of_squares(gradients: Iterable[torch.Tensor | None]) -> float:
    """The sum of squares of all in float64. Each GPU is waited for once."""
    total = 0.0
    norms: dict[torch.device, list[torch.Tensor]] = {}
    for gradient in gradients:
        if gradient is None or gradient.is_cpu:
            total += squares_of(gradient)
        else:
            norms.setdefault(gradient.device, []).append(_norm(gradient))
    return total + sum(float(torch.stack(one).square().sum().item()) for one in norms.values())


def squares_of(gradient: torch.Tensor | None) -> float:
    """The sum of squares in float64; 0 for None."""
    if gradient is None:
        return 0.0
    return float(_norm(gradient).item()) ** 2


def _norm(gradient: torch.Tensor) -> torch.Tensor:
    values = gradient.coalesce().values() if gradient.layout == torch.sparse_coo else gradient
    values = torch.view_as_real(values.resolve_conj()) if values.is_complex() else values
    norm: torch.Tensor = torch.linalg.vector_norm(values, dtype=torch.float64)
    return norm
