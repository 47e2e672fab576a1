"""Fused optimizers by name: torch's optimizer and DistributedOptimizer(fused=True) in one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch.optim import SGD, Adam, AdamW, Optimizer

from ringred.process_sets import ProcessSet, global_process_set
from ringred.torch.agreement import NamedTensor
from ringred.torch.optimizer import DistributedOptimizer


class _Fused(DistributedOptimizer):
    """Take parameters and options as the torch optimizer does, and these of DistributedOptimizer by name.

    Args:
        params: parameters, or dicts of groups.
        named_parameters: pairs (name, parameter) for error messages.
        backward_passes_per_step: see DistributedOptimizer.
        process_set: the ranks that take part.
        keep_gradients: step() leaves the averages in the gradients.
        share_parameters: keep one copy of the parameters for all ranks of the node.
        options: those of the torch optimizer.

    Raises:
        UsageError: see DistributedOptimizer; and what the torch optimizer raises.
    """

    _torch: type[Optimizer]

    def __init__(
        self,
        params: Any,
        *,
        named_parameters: Iterable[NamedTensor] | None = None,
        backward_passes_per_step: int = 1,
        process_set: ProcessSet = global_process_set,
        keep_gradients: bool = False,
        share_parameters: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(
            self._torch(params, **options),
            named_parameters,
            backward_passes_per_step=backward_passes_per_step,
            process_set=process_set,
            fused=True,
            keep_gradients=keep_gradients,
            share_parameters=share_parameters,
        )


class FusedSGD(_Fused):
    """torch.optim.SGD, fused into the reduction of the gradients."""

    _torch = SGD


class FusedAdam(_Fused):
    """torch.optim.Adam, fused into the reduction of the gradients."""

    _torch = Adam


class FusedAdamW(_Fused):
    """torch.optim.AdamW, fused into the reduction of the gradients."""

    _torch = AdamW
