"""Sizes of gradients: their squares, and factors for all of them at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def scale(gradients: Sequence[torch.Tensor], factor: float) -> None:
    """Multiply gradients in place."""
    lazy = [one for one in gradients if one.is_conj() or one.is_neg()]  # these _foreach_mul_ does not take
    if gradients and not lazy:
        torch._foreach_mul_(list(gradients), factor)
        return
    for one in gradients:
        one.mul_(factor)


def squares_of(gradient: torch.Tensor | None) -> float:
    """The sum of squares in float64; 0 for None."""
    if gradient is None:
        return 0.0
    values = gradient.coalesce().values() if gradient.layout == torch.sparse_coo else gradient
    values = torch.view_as_real(values.resolve_conj()) if values.is_complex() else values
    return float(torch.linalg.vector_norm(values, dtype=torch.float64).item()) ** 2
