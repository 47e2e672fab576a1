"""DistributedOptimizer: an optimizer that averages gradients over all ranks before it uses them.

Invariant: the wrapped optimizer never sees a gradient that is not the same on all ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch.optim import Optimizer

import ringred as rr
from ringred.torch.closures import LossReduction
from ringred.torch.composed import ComposedOptimizer
from ringred.torch.exchange import GradientExchange
from ringred.torch.names import NamedTensor, name_parameters
from ringred.torch.reducer import Reducer, WorldReducer


class DistributedOptimizer(ComposedOptimizer):
    """Wrap `optimizer` so that `step()` sees gradients averaged (or summed) over all ranks.

    `step()` replaces every gradient by the average over ranks of what it is on each of them, where None counts as zero;
    a gradient that is None on all ranks stays None. Gradients travel during the backward pass, in buckets of about
    1 MiB in the shared arena, and all ranks end with the same bits. In a single process nothing is done at all.

    All ranks must build the optimizer over equal parameters in equal order, and call `step()`, `synchronize()` and
    `zero_grad()` equally often and in equal order: they are collectives. Ranks whose parameters differ all get
    `ringred.MismatchError` in the first exchange.

    - Parameters that are frozen (`requires_grad=False`) when the optimizer is built are left out; unfreeze first.
    - Call `synchronize()` after `backward()` and before you clip, unscale or log gradients; `step()` then does not
      exchange them again. Works with `torch.amp.GradScaler`: synchronize(), then scaler.step(optimizer).
    - Drop a backward pass with `optimizer.zero_grad()`, not with `model.zero_grad()`, which does not reach the other
      ranks.
    - Under reentrant activation checkpointing a parameter shared between segments counts one pass for each.
    - It is not pickled or deep-copied; save `state_dict()`, which is that of the wrapped optimizer.

    Args:
        optimizer: any torch optimizer whose parameters are on the CPU; floating-point or complex dtypes.
        named_parameters: pairs (name, parameter), as from `model.named_parameters()`, that cover all parameters of the
            optimizer. Names appear in error messages and are compared between ranks.
        op: `ringred.Average` or `ringred.Sum`.
        backward_passes_per_step: gradients accumulate on each rank over this many backward passes and travel in the
            last one; they are not divided by it. A `step()` after fewer passes exchanges what is there.
        reducer: how to reach the other ranks; for tests. Default: all ranks of the job.

    Raises:
        ringred.UsageError: also a ValueError; names are missing or not distinct, an argument is out of range, or
            ringred is not initialised.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        named_parameters: Iterable[NamedTensor] | None = None,
        op: rr.Op = rr.Average,
        backward_passes_per_step: int = 1,
        *,
        reducer: Reducer | None = None,
    ) -> None:
        if not isinstance(optimizer, Optimizer) or isinstance(optimizer, DistributedOptimizer):
            raise rr.UsageError(
                f"DistributedOptimizer wraps a plain torch optimizer, once; got {type(optimizer).__name__}."
            )
        if op not in (rr.Average, rr.Sum):
            raise rr.UsageError(f"Gradients are reduced with Average or Sum, where a missing one is zero; got {op!r}.")
        if backward_passes_per_step < 1:
            raise rr.UsageError(f"backward_passes_per_step must be at least 1, got {backward_passes_per_step}.")
        named = name_parameters(optimizer.param_groups, named_parameters)
        super().__init__(optimizer)
        self._names = {id(parameter): name for name, parameter in named}
        self._op = op
        self._passes = backward_passes_per_step
        self._reducer = WorldReducer() if reducer is None else reducer
        self._loss_reduction: LossReduction | None = None
        self._closed = False
        self._earlier_seconds = 0.0  # communication before add_param_group() rebuilt the exchange
        self._exchange = self._build_exchange(named)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Exchange what is left to exchange, then step the wrapped optimizer.

        With a closure, gradients are exchanged after each of its calls, and the loss that it returns (a number or a
        one-element tensor) is reduced with the same op, so that line searches decide alike on all ranks.

        Returns:
            What the wrapped optimizer returns: None, or the loss of the first call of the closure.
        """
        if self._closed:
            raise rr.UsageError("A DistributedOptimizer does not step after close(); build a new one.")
        if self._exchange is None:
            return self._inner.step() if closure is None else self._inner.step(closure)
        if closure is None:
            self._exchange.synchronize()
            result = self._inner.step()
        else:
            if self._loss_reduction is None:
                self._loss_reduction = LossReduction(self._reducer, self._op)
            result = self._inner.step(self._loss_reduction.wrap(closure, self._exchange.synchronize))
        self._exchange.finish_step()
        return result

    def synchronize(self) -> None:
        """Exchange gradients now, as `step()` would; it then will not do so again. A collective."""
        if self._exchange is not None:
            self._exchange.synchronize()

    def no_sync(self) -> AbstractContextManager[None]:
        """Return a context in which backward passes accumulate on this rank only; the next one outside exchanges."""
        return nullcontext() if self._exchange is None else self._exchange.no_sync()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear all gradients, and finish with the other ranks an exchange that a backward pass has begun."""
        if self._exchange is not None:
            self._exchange.discard()
        self._inner.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the wrapped optimizer and to the exchange; its parameters get the name `added.<n>`.

        Raises:
            ringred.UsageError: between a backward pass and the step that uses it.
        """
        if self._exchange is not None and self._exchange.pending:
            raise rr.UsageError("Parameter groups are not added between backward() and step(); call zero_grad() first.")
        self._inner.add_param_group(param_group)
        parameters = [parameter for group in self._inner.param_groups for parameter in group["params"]]
        for parameter in parameters:
            self._names.setdefault(id(parameter), f"added.{len(self._names)}")
        if self._exchange is not None:
            self._earlier_seconds = self.communication_seconds
            self._exchange.close()
            self._exchange = self._build_exchange([(self._names[id(parameter)], parameter) for parameter in parameters])

    @property
    def communication_seconds(self) -> float:
        """Wall time in seconds that this rank has spent in exchanges so far, waiting for other ranks included."""
        return self._earlier_seconds + (0.0 if self._exchange is None else self._exchange.communication_seconds)

    def close(self) -> None:
        """Remove all hooks; the wrapped optimizer stays usable. Collecting the object does the same."""
        if self._exchange is not None:
            self._exchange.close()
        self._closed = True

    def _build_exchange(self, named: list[NamedTensor]) -> GradientExchange | None:
        for name, parameter in named:
            if parameter.device.type != "cpu":
                raise rr.UsageError(
                    f"Parameters must be on the CPU; {name!r} is on {parameter.device}. This version has no GPU path."
                )
        if self._reducer.size == 1:
            return None
        return GradientExchange(named, self._reducer, self._op, self._passes)
